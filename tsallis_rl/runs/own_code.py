"""Loads a user's own Python object by its dotted path, MODULE.NAME, and hashes the file of its module."""

import hashlib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tsallis_rl.runs.errors import UserError, shortened


def is_dotted(path: str) -> bool:
    """Returns whether a text has the form MODULE.NAME."""
    return "." in path and all(part.isidentifier() for part in path.split("."))


def own_object(path: str, where: str) -> Any:
    """Loads MODULE.NAME; returns None if the module has no such name.

    Args:
      path: a text for which `is_dotted` is true.
      where: the beginning of messages, as in config.task.metric='my_module.my_grade'.

    Raises:
      UserError: there is no such module, or it cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"{where}: {module} needs the module {error.name!r}, which is missing") from None
        raise UserError(f"{where}: no module {module!r}, looked from the working directory") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # raised by the user's module
        reason = shortened(f"{type(error).__name__}: {error}")
        raise UserError(f"{where}: the module {module} cannot be imported: {reason}") from None


def code_fingerprints(paths: Iterable[str]) -> dict[str, str]:
    """Hashes the files of a user's loaded modules → name of the module: hash.

    Args:
      paths: MODULE.NAME or MODULE; names without a dot are not the user's.
    """
    found: dict[str, str] = {}
    for path in filter(is_dotted, paths):
        module = path if path in sys.modules else path.rpartition(".")[0]
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is not None:
            found[module] = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    return found
