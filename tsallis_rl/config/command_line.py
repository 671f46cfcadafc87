"""Command lines: --config=FILE[:key=value,…], --config.section.field=value, and one sentence for a mistake in them."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from tsallis_rl.config.files import EMBEDDED, field_names, load_config
from tsallis_rl.runs.errors import UserError, one_sentence


def _check_fields(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Refuses --config.… for a field that the config does not have."""
    fields = field_names(config)
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
        told = "The experiment: FILE[:key=value,…]."
        config_flags.DEFINE_config_file("config", str(EMBEDDED), told, sys_argv=list(arguments))
        program, *words = flags.FLAGS(arguments)
    except flags.Error as error:
        raise UserError(str(error)) from None
    if words:
        hint = f"; a config is given by --config={words[0]}" if Path(words[0].partition(":")[0]).suffix == ".py" else ""
        raise UserError(f"{words[0]!r} is not a flag{hint or '; flags are --NAME=VALUE, see --help'}")
    return [program]


def run(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> None:
    """Runs an entry point that reads flags.FLAGS.config, by sys.argv or `arguments`; see `one_sentence`."""

    def quietly(arguments: Sequence[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # the libraries' own progress notes would bury ours
        main(arguments)

    with one_sentence():
        app.run(quietly, argv=arguments, flags_parser=parse_flags)
