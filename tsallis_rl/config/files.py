"""Loads config files: FILE.py[:key=value,…]."""

import importlib.util
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.errors import UserError, sentence
from tsallis_rl.runs.paths import dangling

CONFIGS = Path(__file__).parents[2] / "configs"
EMBEDDED = CONFIGS / "hops.py"


def load_module(file: Path) -> ModuleType:
    """Runs a Python file as a module of its own, from wherever it lies.

    Raises:
      ImportError: the file is no Python file; and whatever the file itself raises.
    """
    spec = importlib.util.spec_from_file_location(f"experiment_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_config(reference: str) -> ConfigDict:
    """Calls get_config(argument) of `FILE[:argument]`.

    Raises:
      UserError: there is no such file, or it gives no config.
    """
    file, _, argument = reference.partition(":")
    config = call_file("--config", file, "get_config", argument or None)
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config of {file} returns a {type(config).__name__}, no ConfigDict")
    missing = sorted(set(field_names(base_config())) - set(field_names(config)))
    if missing:
        raise UserError(f"--config: the config of {file} has no field {missing[0]}; begin it with base_config()")
    return config


def call_file(flag: str, file: str, name: str, *arguments: str | None) -> Any:
    """Calls the function `name` of a Python file that a flag names.

    Raises:
      UserError: there is no such file or function, or something in it fails; says in which line.
    """
    if not Path(file).is_file():
        found = dangling(Path(file)) or f"no file {file!r} (looked from {Path.cwd()})"
        raise UserError(f"{flag}: {found}; configs lie in the folder configs/, grids in configs/grids/")
    if Path(file).suffix != ".py":
        raise UserError(f"{flag}: {file} is not a Python file")
    try:
        function = getattr(load_module(Path(file)), name, None)
        made = function(*arguments) if function else None
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{flag}: {file}: {sentence(error)}") from error
    except (Exception, SystemExit) as error:  # whatever Python finds wrong in it
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 1
        raise UserError(f"{flag}: {file}, line {line}: {type(error).__name__}: {error}") from error
    if function is None:
        raise UserError(f"{flag}: {file} has no function {name}({', '.join(['argument'] * len(arguments))})")
    return made


def field_names(config: ConfigDict) -> list[str]:
    """Lists section.field of every field."""
    fields = [f"{name}.{key}" for name, section in config.items() if isinstance(section, ConfigDict) for key in section]
    return fields + [name for name, value in config.items() if not isinstance(value, ConfigDict)]
