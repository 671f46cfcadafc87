"""Command lines: --config=FILE[:key=value,…], --config.section.field=value, and one sentence for a mistake in them."""

import difflib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from tsallis_rl.errors import UserError

EMBEDDED = Path(__file__).parents[1] / "configs" / "hops.py"


def load_config(reference: str) -> ConfigDict:
    """get_config(argument) of `FILE[:argument]`; raises UserError when there is no such file or it is no config."""
    file, _, argument = reference.partition(":")
    if not Path(file).is_file():
        raise UserError(f"--config: no file {file!r} (looked from {Path.cwd()}); configs lie in the folder configs/")
    spec = importlib.util.spec_from_file_location("experiment_config", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {file} has no function get_config(argument)")
    return module.get_config(argument or None)


def _check_fields(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Refuses --config.… for a field that the config does not have."""
    fields = [f"{name}.{key}" for name, section in config.items() if isinstance(section, ConfigDict) for key in section]
    fields += [name for name, value in config.items() if not isinstance(value, ConfigDict)]
    for argument in arguments:
        flag = argument.lstrip("-").removeprefix("no").partition("=")[0]
        field = flag.removeprefix("config.")
        if field != flag and field not in fields:
            near = difflib.get_close_matches(field, fields, n=3, cutoff=0.5)
            section = field.partition(".")[0]
            known = near or [f for f in fields if f.startswith(f"{section}.")] or list(config)
            raise UserError(f"--config.{field}: the config has no such field; did you mean {' or '.join(known)}?")


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Defines and parses --config and its fields; the embedded default is the config where none is named."""
    reference = str(EMBEDDED)
    for i, argument in enumerate(arguments):
        if argument in ("--config", "-config") and i + 1 < len(arguments):
            reference = arguments[i + 1]
        elif argument.startswith(("--config=", "-config=")):
            reference = argument.partition("=")[2]
    _check_fields(load_config(reference), arguments)
    try:
        config_flags.DEFINE_config_file("config", str(EMBEDDED), "The experiment: FILE[:key=value,…].")
        return flags.FLAGS(arguments)
    except flags.Error as error:
        raise UserError(str(error)) from None


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an entry point that reads flags.FLAGS.config; a UserError becomes one sentence and exit status 2."""

    def quietly(arguments: Sequence[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # the libraries' own progress notes would bury ours
        main(arguments)

    try:
        app.run(quietly, flags_parser=parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
