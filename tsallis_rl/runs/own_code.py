"""Loads a user's own Python code by its dotted path, MODULE.NAME; tells its failures, and hashes its files."""

import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tsallis_rl.runs.errors import UserError, sentence, shortened

# Their frames are between this package and a user's code.
_NOT_OWN = (f"{Path(__file__).parents[1]}{os.sep}", f"{Path(importlib.__file__).parent}{os.sep}", "<frozen importlib")


def is_dotted(path: str) -> bool:
    """Returns whether a text has the form MODULE.NAME."""
    return "." in path and all(part.isidentifier() for part in path.split("."))


def own_module(module: str, where: str) -> ModuleType:
    """Imports a module of the user's.

    Args:
      module: its dotted name.
      where: the beginning of messages, as in config.task.metric='my_module.my_grade'.

    Raises:
      UserError: there is no such module, or it cannot be imported.
    """
    with own_failures(f"{where}: the module {module} cannot be imported"):
        try:
            return _noted(importlib.import_module(module))
        except ModuleNotFoundError as error:
            if not error.name:  # the module raises one of its own
                raise
            if not f"{module}.".startswith(f"{error.name}."):
                found = f"{module} needs the module {error.name!r}, which is missing"
                raise UserError(f"{where}: {found}; install it, or correct its name") from None
            raise UserError(f"{where}: no module {module!r}, looked from the working directory") from None


# A module's name -> the specification that it was loaded by, which is another one after a reload, and its file's hash.
_LOADED: dict[str, tuple[Any, str]] = {}


def _noted(module: ModuleType) -> ModuleType:
    """Notes the hash of a module's file when it is first seen, and after a reload; later it may have been edited."""
    specification, _ = _LOADED.get(module.__name__, (None, ""))
    if specification is not module.__spec__ and (file := _file(module)):
        _LOADED[module.__name__] = (module.__spec__, hashlib.sha256(file.read_bytes()).hexdigest()[:16])
    return module


def _file(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if file is not None and Path(file).is_file() else None


def own_object(path: str, where: str) -> Any:
    """Loads MODULE.NAME; returns None if the module has no such name.

    Args:
      path: a text for which `is_dotted` is true.
      where: as for `own_module`.

    Raises:
      UserError: as `own_module`.
    """
    module, _, name = path.rpartition(".")
    return getattr(own_module(module, where), name, None)


@contextmanager
def own_failures(where: str) -> Iterator[None]:
    """Turns whatever a user's code raises in the block into one sentence, also SystemExit, which would be silent.

    Raises:
      UserError: the code failed; names its file and line.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        file = _own_file(error)
        place = f"{file}, line {line_in(file, error)}: " if file else ""
        raise UserError(f"{where}: {place}{reason(error)}") from error


def reason(error: BaseException) -> str:
    """Describes an error on one line: its type and message, or for an OSError what the system refused."""
    if isinstance(error, OSError):
        return sentence(error)
    message = shortened(" ".join(str(error).split()))
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def line_in(file: str, error: BaseException) -> int:
    """Finds the last line of a file that an error passed; 1 if it passed none.

    Args:
      file: the file, as Python names it.
      error: the error.
    """
    if isinstance(error, SyntaxError) and error.filename == file:  # not that of a module it imports
        return error.lineno or 1
    return ([line for name, line in _steps(error) if name == file] or [1])[-1]


def _steps(error: BaseException) -> list[tuple[str, int]]:
    """Lists file and line of each frame that an error passed, the one where it was raised last."""
    return [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]


def _own_file(error: BaseException) -> str | None:
    """Finds the first file that an error passed outside of this package and the import system, or None."""
    files = [name for name, _ in _steps(error) if not name.startswith(_NOT_OWN)]
    if not files and isinstance(error, SyntaxError):
        return error.filename
    return files[0] if files else None


def code_fingerprints(paths: Iterable[str]) -> dict[str, str]:
    """Hashes the files of a user's loaded modules, as they were when loaded → name of the module: hash.

    Args:
      paths: MODULE.NAME or MODULE; names without a dot are not the user's.
    """
    found: dict[str, str] = {}
    for path in filter(is_dotted, paths):
        module = path if path in sys.modules else path.rpartition(".")[0]
        if _file(sys.modules.get(module)):
            found[module] = _LOADED[_noted(sys.modules[module]).__name__][1]
    return found
