"""Loads config files: FILE.py[:key=value,…], or NAME[:key=value,…] of one that comes with the package."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.config.own_options import set_own_options
from tsallis_rl.config.schema import base_config
from tsallis_rl.config.suggestions import nearest
from tsallis_rl.runs.errors import UserError, sentence
from tsallis_rl.runs.own_code import line_in, reason
from tsallis_rl.runs.paths import dangling

_INSTALLED = Path(__file__).parents[1] / "_configs"  # where setup.py puts configs/
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "configs"
EMBEDDED = CONFIGS / "hops.py"
# Flag -> folder of the files that it knows by name, and the function that each of them defines.
_NAMED = {"--config": (CONFIGS, "get_config"), "--grid": (CONFIGS / "grids", "get_grid")}


def load_module(file: Path) -> ModuleType:
    """Runs a Python file as a module of its own, from any folder.

    Raises:
      ImportError: the file is not a Python file. Whatever the file itself raises is raised, too.
    """
    spec = importlib.util.spec_from_file_location(f"experiment_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def known_names(flag: str) -> list[str]:
    """Lists the names that --config or --grid takes in place of a path."""
    folder, function = _NAMED[flag]
    files = sorted(folder.glob("*.py"))
    return [file.stem for file in files if f"def {function}(" in file.read_text(encoding="utf-8")]


def resolved(flag: str, reference: str) -> str:
    """Replaces a name by the path of the package's file: NAME[:argument] → FILE[:argument]. A path stays as it is."""
    name, colon, argument = reference.partition(":")
    if Path(name).is_file() or name not in known_names(flag):
        return reference
    return f"{_NAMED[flag][0] / name}.py{colon}{argument}"


def named(reference: str) -> str:
    """Undoes `resolved` for --config: the path of one of the package's files becomes its name, for commands."""
    file, colon, argument = reference.partition(":")
    return f"{Path(file).stem}{colon}{argument}" if Path(file).parent == CONFIGS else reference


def load_config(reference: str) -> ConfigDict:
    """Calls get_config(argument) of `FILE[:argument]` or `NAME[:argument]`.

    If the config names a user's own estimator, it gets a field for each of that estimator's options.

    Raises:
      UserError: there is no such file, or it returns no config, or the config names no estimator.
    """
    file, _, argument = resolved("--config", reference).partition(":")
    config = call_file("--config", file, "get_config", argument or None)
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config of {file} returns a {type(config).__name__}, not a ConfigDict")
    missing = sorted(set(field_names(base_config())) - set(field_names(config)))
    if missing:
        raise UserError(f"--config: the config of {file} has no field {missing[0]}; begin it with base_config()")
    set_own_options(config, [config.estimator.name])
    return config


def call_file(flag: str, file: str, name: str, *arguments: str | None) -> Any:
    """Calls the function `name` of a Python file that a flag names.

    Raises:
      UserError: there is no such file or function, or something in it fails; names the line.
    """
    if not Path(file).is_file():
        found = dangling(Path(file)) or f"no file {file!r} (looked from {Path.cwd()})"
        names = known_names(flag)
        near = nearest(Path(file).stem, names, 1)
        hint = f"did you mean {flag}={near[0]}?" if near else f"give a path, or one of the names {', '.join(names)}"
        raise UserError(f"{flag}: {found}; {hint}")
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
        line = line_in(str(Path(file).absolute()), error)
        raise UserError(f"{flag}: {file}, line {line}: {reason(error)}") from error
    if function is None:
        raise UserError(f"{flag}: {file} has no function {name}({', '.join(['argument'] * len(arguments))})")
    return made


def field_names(config: ConfigDict) -> list[str]:
    """Lists section.field of every field."""
    fields = [f"{name}.{key}" for name, section in config.items() if isinstance(section, ConfigDict) for key in section]
    return fields + [name for name, value in config.items() if not isinstance(value, ConfigDict)]
