"""Command lines: each command's own flags, --config with its fields, and one sentence for a mistake.

A command is a module with `FLAGS = flags.FlagValues()`, flags defined in it, and a function under `@command(FLAGS)`.
"""

import contextlib
import faulthandler
import functools
import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from logging import LogRecord
from pathlib import Path
from typing import NamedTuple

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from tsallis_rl.config.argument import UnknownArgument
from tsallis_rl.config.files import EMBEDDED, field_names, load_config, named, resolved
from tsallis_rl.config.own_options import set_own_options
from tsallis_rl.config.suggestions import nearest
from tsallis_rl.runs.errors import UserError, one_sentence
from tsallis_rl.runs.object_store import fetched

_HELP = ("--help", "-help", "-h", "--helpfull")
_READ_AT_IMPORT = {"jax": "JAX_", "tqdm": "TQDM_", "matplotlib": "MPLBACKEND"}
_CONFIG = "The experiment: NAME or FILE.py, then [:key=value,…]; set any field by --config.section.field=value."

_started_with: list[str] = []


class Chosen(NamedTuple):
    """The config that a command line names; see `command`.

    Attributes:
      reference: FILE[:argument] or NAME[:argument].
      estimators: names of estimators whose options become fields of the config; none: only its own estimator's.
    """

    reference: str
    estimators: Sequence[str] = ()


class Source(NamedTuple):
    """Where a command's config comes from; see `command`."""

    config: bool
    saved: str
    choose: Callable[[Sequence[str]], Chosen] | None


def command(
    flag_values: flags.FlagValues,
    *,
    config: bool = False,
    saved: str = "",
    choose: Callable[[Sequence[str]], Chosen] | None = None,
    words: Sequence[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function an entry point: main(arguments=None) parses arguments, by default sys.argv, and calls it.

    --help prints the module's docstring and flags. A UserError is printed as one sentence, with status 2.

    Args:
      flag_values: the command's flags, which hold the values that were parsed last.
      config: the command has --config and its fields; the function's first argument is the config.
      saved: with `config`: the flag that names a run's folder, whose settings replace those of --config; one of the two
        must be given.
      choose: with `config`: returns what the arguments choose, whose reference is the function's second argument;
        None: --config and --config.estimator.name choose.
      words: names of the arguments that are not flags; they are the function's next arguments.
    """

    source = Source(config, saved, choose)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def main(arguments: Sequence[str] | None = None) -> None:
            with one_sentence(is_process=arguments is None):
                given = sys.argv[1:] if arguments is None else list(arguments)
                _check_unicode(given)
                _check_environment()
                _reset(flag_values)
                if any(argument in _HELP for argument in given):
                    print(_help(sys.modules[function.__module__].__doc__ or "", flag_values, source))
                    return
                found, reference = _parse(flag_values, given, source, words)
                _quiet()
                _started_with[:] = given
                from tsallis_rl.runs.progress import reporting  # here, so that a mistyped flag is answered at once

                with reporting():
                    function(*([flag_values.config] if config else []), *([reference] if choose else []), *found)

        return main

    return decorate


def started_with() -> list[str]:
    """Returns the arguments of the running command."""
    return list(_started_with)


def _check_unicode(given: Sequence[str]) -> None:
    """Refuses arguments that are not text, such as names of files whose bytes are not UTF-8."""
    for argument in given:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"{argument!a}: bytes that are not UTF-8; rename that file or folder") from None


def _check_environment() -> None:
    """Refuses environment variables that a library fails to read when it is first imported."""
    for library, prefix in _READ_AT_IMPORT.items():
        # Without such variables, a mistyped flag is answered before the library is imported.
        if names := sorted(name for name in os.environ if name.startswith(prefix)):
            try:
                importlib.import_module(library)
            except ValueError as error:
                read = f"{library} reads {', '.join(names)[:200]}"
                raise UserError(f"a variable of the environment: {error}; correct it, or unset it ({read})") from None


def _reset(flag_values: flags.FlagValues) -> None:
    """Sets every flag to its default and forgets the fields of an earlier --config."""
    for name in list(flag_values):
        if name == "config" or name.startswith("config."):
            delattr(flag_values, name)
    flag_values.unparse_flags()


def _parse(
    flag_values: flags.FlagValues, given: list[str], source: Source, words: Sequence[str]
) -> tuple[list[str], str]:
    """Parses a command line into `flag_values`; returns its words, and FILE[:argument] of its config or "".

    Raises:
      UserError: an unknown flag or field, a value that is not accepted, or too few or too many words.
    """
    config, reference = None, ""
    flag_values.set_gnu_getopt(True)
    if source.config:
        config, reference, given = _config(given, source)
        _check_fields(config, given)
    try:
        if config:
            config_flags.DEFINE_config_dict("config", config, _CONFIG, flag_values, sys_argv=["", *given])
        found = flag_values(["", *given])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(_of_unknown_flag(error.flagname, flag_values, given, config, reference)) from None
    except flags.Error as error:
        missing = re.match(r"flag --(\w+)=None: ", str(error))
        text = re.sub(r"could not convert string to float: (.*)", r"\1 is no number", str(error))
        text = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number", text)
        raise UserError(f"--{missing[1]} is missing; see --help" if missing else text) from None
    except ValueError as error:  # --no… with a value
        raise UserError(f"{error}; see --help") from None
    if len(found) > len(words):
        word = found[len(words)]
        is_config = config is not None and Path(word.partition(":")[0]).suffix == ".py"
        given_by = f"a config is given by --config={word.removeprefix('config=')}"
        hint = given_by if is_config else "flags are --NAME=VALUE, see --help"
        if words:
            raise UserError(f"{word!r} is one too many: give one {words[-1].upper()}; flags are --NAME=VALUE")
        raise UserError(f"{word!r} is not a flag; {hint}")
    if len(found) < len(words):
        raise UserError(f"{words[len(found)].upper()} is missing; see --help")
    return found, reference


def _config(given: Sequence[str], source: Source) -> tuple[ConfigDict, str, list[str]]:
    """Loads the config that arguments name; returns it, its FILE[:argument] ("" for a run's), and other arguments."""
    estimator = value_of_flag(given, "config.estimator.name")
    chosen = Chosen(value_of_flag(given, "config") or str(EMBEDDED), [estimator] if estimator else [])
    if source.choose:
        chosen = source.choose(given)
    saved = _saved_settings(given, source.saved) if source.saved else None
    reference = "" if saved else resolved("--config", chosen.reference)
    config = saved or load_config(reference)
    if chosen.estimators:
        set_own_options(config, chosen.estimators)
    return config, reference, _without_config(given)


def value_of_flag(given: Sequence[str], flag: str) -> str | None:
    """Finds the value given for a flag, before flags are defined; None if none is given."""
    value = None
    for i, argument in enumerate(given):
        if argument in (f"--{flag}", f"-{flag}") and i + 1 < len(given):
            value = given[i + 1]
        elif argument.startswith((f"--{flag}=", f"-{flag}=")):
            value = argument.partition("=")[2]
    return value


def _without_config(given: Sequence[str]) -> list[str]:
    """Removes --config, which is read before flags are defined, from the arguments."""
    rest, words = [], iter(given)
    for word in words:
        if word in ("--config", "-config"):
            next(words, None)
        elif not word.startswith(("--config=", "-config=")):
            rest.append(word)
    return rest


def _saved_settings(given: Sequence[str], flag: str) -> ConfigDict | None:
    """Reads the settings of the run that `flag` names; None if --config is given instead."""
    run, config = value_of_flag(given, flag), value_of_flag(given, "config")
    if (run is None) == (config is None):
        raise UserError(f"give either --{flag}=FOLDER of a run or --config=FILE, one of the two; see --help")
    if run is None:
        return None
    from tsallis_rl.config.saved import run_config  # here, since it imports jax, for which no flag should wait

    return run_config(fetched(run), f"--{flag}")


def _check_fields(config: ConfigDict, given: Sequence[str]) -> None:
    """Refuses --config.… for a field that the config does not have."""
    fields = field_names(config)
    for argument in given:
        flag = argument.lstrip("-").removeprefix("no").partition("=")[0]
        field = flag.removeprefix("config.")
        if field != flag and field not in fields:
            near = [f"{field}.name"] if f"{field}.name" in fields else nearest(field, fields)
            section = field.partition(".")[0]
            there = [name.partition(".")[2] for name in fields if name.startswith(f"{section}.")]
            if near:
                hint = f"did you mean {' or '.join(near)}?"
            elif there:
                hint = f"config.{section} has {', '.join(there)}"
            else:
                hint = "--show_config of tsallis_rl.main lists the fields"
            raise UserError(f"--config.{field}: the config has no such field; {hint}")


def _of_unknown_flag(
    name: str, flag_values: flags.FlagValues, given: Sequence[str], config: ConfigDict | None, reference: str
) -> str:
    """Suggests what an unknown flag may mean: an argument after a config's colon, a flag, or a field."""
    value = value_of_flag(given, name)
    told = f"--{name}" if value is None else f"--{name}={value}"
    if reference and f"{name}s" not in flag_values and _takes(reference, name):
        given_so = named(reference)
        meant_so = f"{given_so}{',' if ':' in given_so else ':'}{name}={value or '…'}"
        return f"{told} is not a flag: {name} goes after the config's colon, as in --config={meant_so}"
    known = [flag for flag in flag_values if not flag.startswith("config.") and len(flag) > 1]
    meant = [f"--{flag}" for flag in nearest(name, known)]
    if config:
        meant += [f"--config.{field}" for field in nearest(name, field_names(config), 2)]
    return f"{told} is not a flag; " + (f"did you mean {' or '.join(meant[:3])}?" if meant else "see --help")


def _takes(reference: str, key: str) -> bool:
    """Returns whether a config file accepts a key after its colon."""
    try:
        load_config(f"{reference.partition(':')[0]}:{key}=")
    except UnknownArgument:
        return False
    except UserError:  # it accepts the key, but not an empty value
        return True
    return True


def _help(documentation: str, flag_values: flags.FlagValues, source: Source) -> str:
    """Returns the text of --help: a module's docstring, then a paragraph for each flag."""
    lines = [documentation.strip(), "", "flags:"]
    if source.config:
        default = f"the settings of --{source.saved}" if source.saved else EMBEDDED
        listed = "--show_config of tsallis_rl.main lists the fields"
        lines.append(f"  --config: {_CONFIG}\n    (default: {default}; {listed})")
    for name in sorted(flag_values):
        flag = flag_values[name]
        if "-" not in name:  # else an alias
            default = f"\n    (default: {flag.default_as_str})" if flag.default else ""
            lines.append(f"  --{'[no]' * flag.boolean}{name}: {flag.help}{default}")
    return "\n".join(lines)


def _quiet() -> None:
    """Silences the libraries' own notes, which would bury ours; other warnings, and crashes, are still shown.

    Also silences tracebacks and warnings about what this program itself reports in a sentence: orbax's about a
    checkpoint that cannot be written or read, and numpy's about numbers that are not finite.
    """
    with contextlib.suppress(io.UnsupportedOperation):  # stderr is not a file in a notebook
        faulthandler.enable()
    flags.FLAGS.mark_as_parsed()  # absl's logging reads its own flags, which keep their defaults
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().addFilter(_is_not_orbax)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _tell_unraisable
    warnings.filterwarnings("ignore", "(invalid value|overflow|divide by zero) encountered", RuntimeWarning)


def _tell_unraisable(raised: "sys.UnraisableHookArgs") -> None:
    """Reports an exception that nothing catches, unless it says that parts of a failed save are still under way."""
    if str(raised.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(raised)


def _is_not_orbax(record: LogRecord) -> bool:
    """Returns whether a log record is not from orbax, which writes checkpoints."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname
