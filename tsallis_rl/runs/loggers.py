"""Sends what a run logs to other places than its folder: TensorBoard, W&B, Trackio, or a class of one's own.

metrics.jsonl stays the truth. A sink first gets what the folder already holds, and then what is logged. So a sink that
begins anew each time has every step once, however often the run was stopped, killed, or went back to an earlier
checkpoint. Each sink has a thread of its own: the run does not wait for it while training, and continues if it fails.
"""

import importlib
import json
import queue
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from tsallis_rl.runs.cache import write_whole
from tsallis_rl.runs.errors import UserError, shortened
from tsallis_rl.runs.json_files import json_lines, read_object
from tsallis_rl.runs.own_code import is_dotted, own_object

FILE = "log.json"
MOST_WAITING = 1000  # calls by which a sink may lag
PATIENCE = 60.0  # seconds that the end of a run waits for a sink
METHODS = ("begin", "scalars", "table", "close")

# config.log.to -> the class, in tsallis_rl.runs.log_sinks, and the package that it needs
LIBRARIES = {
    "tensorboard": ("TensorBoard", "tensorboardX"),
    "trackio": ("Trackio", "trackio"),
    "wandb": ("Wandb", "wandb"),
}


class RunNames(NamedTuple):
    """The names under which a run is logged.

    Attributes:
      folder: the run's folder.
      id: stays the same when the run is continued; kept in its log.json.
      project: config.log.project.
      run: config.log.run, or the folder's name.
      tags: config.log.tags.
    """

    folder: Path
    id: str
    project: str
    run: str
    tags: tuple[str, ...]


class Sink(Protocol):
    """A place that a run is logged to; made as CLASS(names), with `RunNames`. All calls come from one thread.

    An exception in a method ends the logging to that place, with a warning, and does not end the run.
    """

    def begin(self, config: Mapping[str, Any]) -> None:
        """Begins a log of the run from its first step; `config` holds the contents of config.json."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers of one line of metrics.jsonl; a step may have several lines."""

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs the rollouts of a step, as in its file in rollouts/."""

    def close(self) -> None:
        """Ends the log: the run is done, or stops here."""


Call = Callable[[Sink], None]


def scalars_call(record: Mapping[str, Any]) -> Call:
    """Makes the call that logs the numbers of a line of metrics.jsonl, without its texts and nulls."""
    values = {name: x for name, x in record.items() if isinstance(x, int | float) and not isinstance(x, bool)}
    step = int(values.pop("step"))
    return lambda sink: sink.scalars(step, values)


def table_call(step: int, file: Path) -> Call:
    """Makes the call that logs a file of rollouts; the call reads the file."""
    return lambda sink: sink.table(step, json_lines(file))


def find_sinks(log: Mapping[str, Any], folder: Path) -> dict[str, Callable[[RunNames], Sink]]:
    """Finds the classes that config.log.to names: name → class.

    Raises:
      UserError: there is no such class, or the package that it needs is not installed.
    """
    _names("tags", log["tags"])
    names = _names("to", log["to"])
    return {name: _library(name, folder) if name in LIBRARIES else _own(name) for name in names}


def _names(field: str, given: Sequence[str]) -> tuple[str, ...]:
    """Lists the names in config.log.`field`; a command line may give several separated by commas, as in a,b."""
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise UserError(f"config.log.{field}={given!r}: write names, as in ('a', 'b')")
    return tuple(name.strip() for text in given for name in text.split(",") if name.strip())


def _library(name: str, folder: Path) -> Callable[[RunNames], Sink]:
    """Loads the class for a library; imports the library now, so that its problems are reported at the start."""
    class_name, package = LIBRARIES[name]
    sinks = importlib.import_module("tsallis_rl.runs.log_sinks")
    sinks.prepare(name, folder)
    try:
        importlib.import_module(package)
    except ImportError as error:
        reason = "" if error.name == package else f" ({error})"
        raise UserError(
            f"config.log.to names {name!r}, which needs the package {package}{reason}: pip install 'tsallis_rl[{name}]'"
        ) from None
    sinks.check(name)
    return getattr(sinks, class_name)


def _own(path: str) -> Callable[[RunNames], Sink]:
    """Loads a class of the user's by its dotted path, MODULE.CLASS."""
    module, _, name = path.rpartition(".")
    if not is_dotted(path):
        raise UserError(
            f"config.log.to: {path!r} is no logger; choose from {', '.join(LIBRARIES)}, or name a class as MODULE.CLASS"
        )
    found = own_object(path, f"config.log.to: {path!r}")
    if missing := [method for method in METHODS if not callable(getattr(found, method, None))]:
        what = f"has no class {name!r}" if found is None else f"{name} has no method {missing[0]}"
        raise UserError(f"config.log.to: {path!r}: {module} {what}; a logger has {', '.join(METHODS)}")
    return cast(Callable[[RunNames], Sink], found)


def run_names(folder: Path, log: Mapping[str, Any], *, anew: bool = False) -> RunNames:
    """Reads the id of the run in `folder` from its log.json; makes a new one if there is none, or if `anew`.

    Raises:
      UserError: log.json cannot be read.
    """
    file, kept = folder / FILE, None
    if file.exists() and not anew:
        kept = read_object(file, "remove it, and loggers begin a new run").get("id")
    if not isinstance(kept, str) or not kept.isalnum():
        kept = uuid.uuid4().hex[:12]
        write_whole(file, (json.dumps({"id": kept}) + "\n").encode())
    name = log["run"] or folder.resolve().name
    return RunNames(folder, kept, log["project"], name, _names("tags", log["tags"]))


class Logger:
    """A sink in a thread of its own.

    Args:
      name: its name in config.log.to.
      make: makes the sink, in the thread.
      config: for its `begin`.
      earlier: calls that log again what the run's folder holds.
    """

    def __init__(self, name: str, make: Callable[[], Sink], config: Mapping[str, Any], earlier: Iterable[Call]):
        self._name, self._failed = name, False
        self._calls: queue.Queue[Call | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, args=(make, config, earlier), daemon=True)
        self._thread.start()

    def _run(self, make: Callable[[], Sink], config: Mapping[str, Any], earlier: Iterable[Call]) -> None:
        """Makes the calls, the earlier ones first; an exception ends them."""
        sink: Sink | None = None
        try:
            sink = make()
            sink.begin(config)
            for call in chain(earlier, iter(self._calls.get, None)):
                call(sink)
            sink.close()
        except BaseException as error:  # whatever a library raises, the run continues
            self._fail(f"{type(error).__name__}: {error}")
            with suppress(BaseException):
                if sink is not None:
                    sink.close()

    def _fail(self, reason: str) -> None:
        """Warns once that nothing more is logged there."""
        if not self._failed:
            from tsallis_rl.runs.progress import say  # here, because only runs need it

            self._failed = True
            told = shortened(" ".join(reason.split()))
            say(
                f"WARNING: nothing more is logged to {self._name} ({told}); the run goes on, metrics.jsonl has "
                "everything, and the same command logs all of it again where the run is continued"
            )

    def put(self, call: Call) -> None:
        """Hands a call to the thread; returns at once."""
        if not self._failed:
            try:
                self._calls.put_nowait(call)
            except queue.Full:
                self._fail(f"it is {MOST_WAITING} calls behind")

    def close(self) -> None:
        """Ends the log, and waits for that, but not forever."""
        if not self._failed:
            with suppress(queue.Full):
                self._calls.put(None, timeout=PATIENCE)
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                self._fail(f"it does not end within {PATIENCE:.0f} seconds")
