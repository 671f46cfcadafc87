"""Runs the cells of a sweep as processes, and keeps their states in sweep.json."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.runs.cache import fingerprint, write_whole, writing
from tsallis_rl.runs.checkpoints import newest_control, newest_step
from tsallis_rl.runs.devices import ask_device, host_cores
from tsallis_rl.runs.errors import InUseError, UserError
from tsallis_rl.runs.json_files import plain, read_object
from tsallis_rl.runs.paths import check_no_device, is_plain_name
from tsallis_rl.runs.progress import Bar, count_of
from tsallis_rl.runs.run_directory import RunDirectory
from tsallis_rl.runs.run_lock import LOCK, Holder, find_holder, is_held
from tsallis_rl.runs.signals import stop_requests
from tsallis_rl.sweeps.standing import figures, last_words, steps_made

DONE, FAILED, STOPPED, WAITING, RUNNING = "done", "failed", "stopped", "waiting", "running"
LOOK = 2.0  # seconds between two looks at the progress of the cells
# glibc returns the memory of every XLA call to the kernel and asks for it again. If it keeps the memory, a cell on two
# CPU cores takes a sixth less time. Other allocators ignore these variables.
KEEP_MEMORY = {"MMAP_MAX": 0, "TRIM_THRESHOLD": 2**32, "TOP_PAD": 2**28, "ARENA_MAX": 1}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
      folder: the run's folder.
      config: its settings.
      command: the command that starts or continues the run.
    """

    folder: Path
    config: ConfigDict
    command: list[str]

    def is_done(self) -> bool:
        """Returns whether the run has tested its best and last checkpoints, as its control state records.

        Raises:
          UserError: the folder holds a run of another config.
        """
        RunDirectory(self.folder, self.config)
        control = newest_control(self.folder / "checkpoints")
        return control is not None and control.get("tested_at") == self.config.train.steps

    @property
    def shared(self) -> str:
        """A text that is equal for cells that use the same data, tokeniser and base model in the cache."""
        sections = {name: self.config[name].to_json() for name in ("task", "model", "base")}
        return fingerprint(sections | {"init": self.config.train.init})


def read_states(cells: Sequence[Cell], out: Path) -> dict[str, dict[str, Any]]:
    """Reads {cell: {state, error, seconds}} from out/sweep.json, and whether `cells` are done from their folders.

    Cells of other grids in the same folder keep their states; one recorded as running without a process is stopped.

    Raises:
      UserError: sweep.json cannot be read, or a cell's folder holds a run of another config.
    """
    file = out / "sweep.json"
    found = read_object(file, "remove it; cells that are done stay") if file.exists() else {}
    states = {name: state for name, state in found.items() if isinstance(state, dict)}
    for name, state in states.items():
        if state.get("state") == RUNNING and not (is_plain_name(name) and is_held(out / name)):
            states[name] = {"state": STOPPED}
    for cell in cells:
        of_cell, done = states.pop(cell.folder.name, {}), cell.is_done()
        kept = {name: x for name, x in of_cell.items() if done and name == "seconds"}
        states[cell.folder.name] = {"state": DONE if done else WAITING, **kept}
    return states


def run_cells(cells: Sequence[Cell], out: Path, jobs: int, price: float | None = None) -> dict[str, dict[str, Any]]:
    """Runs the cells that are not done, `jobs` at a time; keeps {cell: {state, error, seconds}} in out/sweep.json.

    `seconds` is recorded only for a cell that one process ran from beginning to end. A signal is passed on to the
    running cells, which save and exit; no cell starts after it. The end of each cell is printed, with a new `estimate`
    if it is done. If another process works on a cell, such as one that a killed sweep left, the sweep waits for it, and
    continues the cell if it is unfinished.

    Returns:
      The contents of sweep.json.

    Raises:
      UserError: a cell's folder holds a run of another config.
    """
    sweep = _Sweep(cells, out, min(jobs, max(1, len(cells))), price)
    told_to_stop, looked = False, -math.inf
    with sweep.progress as progress, stop_requests() as stop, _ended(sweep.running):
        sweep.keep()
        progress.write(estimate(cells, sweep.states, sweep.jobs, price))
        while sweep.running or (sweep.is_left and not stop.signum):
            if not stop.signum:
                sweep.begin()
            elif not told_to_stop:
                told_to_stop = True
                sweep.terminate()
            time.sleep(0.1)
            if sweep.end() or time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                sweep.look()
    sweep.keep()
    if stop.signum and not sweep.has_ended:
        left = f", {len(sweep.elsewhere)} of other processes go on" if sweep.elsewhere else ""
        not_begun = f"{len(sweep.waiting)} cell(s) not begun{left}"
        print(f"stopped: {not_begun}; the same command continues the sweep", file=sys.stderr)
        sys.exit(128 + stop.signum)
    return sweep.states


class _Sweep:
    """The state of a sweep's cells.

    Attributes:
      jobs: how many cells run at a time.
      states: the contents of sweep.json.
      waiting: cells to begin, in order.
      running: process -> cell.
      elsewhere: name -> cell, and the process outside this sweep that works on it.
      progress: the bar, which counts the steps of all cells.
    """

    def __init__(self, cells: Sequence[Cell], out: Path, jobs: int, price: float | None):
        self._cells, self._file, self._price, self.jobs = cells, out / "sweep.json", price, jobs
        self.states, self._is_kept = read_states(cells, out), False
        self.waiting = [cell for cell in cells if self.states[cell.folder.name]["state"] == WAITING]
        self.running: dict[subprocess.Popen, Cell] = {}
        self.elsewhere: dict[str, tuple[Cell, Holder]] = {}
        self._began: dict[str, float] = {}  # when cells without a checkpoint began
        self._made = {cell.folder: steps_made(cell.folder) for cell in cells}
        self._longest = max(len(cell.folder.name) + 1 for cell in cells)
        steps = sum(cell.config.train.steps for cell in cells)
        self.progress = Bar(total=steps, initial=sum(self._made.values()), desc="cells", called="steps")
        threads = {"NPROC": str(max(1, host_cores() // jobs))}  # for XLA, so that cells do not compete for cores
        memory = {f"MALLOC_{name}_": str(value) for name, value in KEEP_MEMORY.items()}
        ordered = {"PYTHONUNBUFFERED": "1"}  # keeps printed lines before the final error in the log
        self._environment = memory | os.environ | threads | ordered

    @property
    def is_left(self) -> bool:
        """Whether any cell is still to be begun or waited for."""
        return bool(self.waiting or self.elsewhere)

    @property
    def has_ended(self) -> bool:
        """Whether every cell is done or has failed, so that a signal stopped none."""
        return all(self.states[cell.folder.name]["state"] in (DONE, FAILED) for cell in self._cells)

    def keep(self) -> None:
        """Writes sweep.json; keeps the entries that other sweeps in the same folder have written."""
        if self._is_kept:
            with contextlib.suppress(UserError):  # removed or damaged: written anew
                mine = {cell.folder.name for cell in self._cells}
                found = read_object(self._file).items()
                theirs = {name: x for name, x in found if name not in mine and isinstance(x, dict)}
                self.states = theirs | {name: self.states[name] for name in mine}
        self._is_kept = True
        write_whole(self._file, (json.dumps(self.states, indent=2, sort_keys=True) + "\n").encode())

    def begin(self) -> None:
        """Begins cells while fewer than `jobs` run on this host."""
        while self.waiting and len(self.running) + self._others_here() < self.jobs:
            cell = self.waiting.pop(0)
            if self._is_elsewhere(cell):
                continue
            if (state := _state(cell, None))["state"] != WAITING:  # another process has run it meanwhile
                self._enter(cell, state, self._told(cell, state))
                continue
            try:
                anew = newest_control(cell.folder / "checkpoints") is None
                process = _start(cell, self._environment)
            except UserError as error:  # a problem with its folder; the other cells go on
                failed = {"state": FAILED, "error": f"error: {error}"}
                self._enter(cell, failed, self._told(cell, failed))
                continue
            self.running[process] = cell
            self._began |= {cell.folder.name: time.monotonic()} if anew else {}
            self._enter(cell, {"state": RUNNING})

    def terminate(self) -> None:
        """Asks the running cells to save and exit."""
        self.progress.write(f"{len(self.running)} cell(s) save their state")
        for process in self.running:
            process.terminate()

    def end(self) -> bool:
        """Prints the cells that have ended; returns whether there are any."""
        ended = [process for process in self.running if process.poll() is not None]
        for process in ended:
            cell = self.running.pop(process)
            began = self._began.pop(cell.folder.name, None)
            if process.returncode == InUseError.status:  # another process took the cell's run lock first
                self.waiting.append(cell)
                self._enter(cell, {"state": WAITING}, "another process began it first; it is checked again")
                continue
            state = _state(cell, process.returncode)
            if state["state"] == DONE and began is not None:
                state["seconds"] = round(time.monotonic() - began, 1)
            self._enter(cell, state, self._told(cell, state))
        return bool(ended)

    def look(self) -> None:
        """Updates the progress, and enters cells of other processes that have ended."""
        for cell, holder in list(self.elsewhere.values()):
            if find_holder(cell.folder) is None:
                del self.elsewhere[cell.folder.name]
                state = _state(cell, None)
                again = f"{holder.words}, has left it unfinished; the sweep continues it"
                self._enter(cell, state, again if state["state"] == WAITING else self._told(cell, state))
                self.waiting[:0] = [cell] * (state["state"] == WAITING)
        others = [cell for cell, _ in self.elsewhere.values()]
        self._made |= {cell.folder: steps_made(cell.folder) for cell in (*self.running.values(), *others)}
        done = sum(self.states[cell.folder.name]["state"] == DONE for cell in self._cells)
        self.progress.note, self.progress.more = f"{done} of {len(self._cells)} cells", f"{len(self.running)} running"
        self.progress.more += f", {len(others)} by other processes" if others else ""
        self.progress.update(sum(self._made.values()) - self.progress.n)

    def _is_elsewhere(self, cell: Cell) -> bool:
        """Returns whether another process works on a cell; if so, the sweep waits for it, and a line says so."""
        if holder := find_holder(cell.folder):
            self.elsewhere[cell.folder.name] = (cell, holder)
            ended = "" if holder.host == socket.gethostname() else f"; if it has ended, remove {cell.folder / LOCK}"
            self._enter(cell, {"state": RUNNING}, f"{holder.words}, works on it; the sweep waits for its end{ended}")
        return holder is not None

    def _others_here(self) -> int:
        """Counts the cells on which other processes of this host work."""
        host = socket.gethostname()
        return sum(holder.host == host for _, holder in self.elsewhere.values())

    def _told(self, cell: Cell, state: Mapping[str, Any]) -> str:
        """Describes how a cell ended."""
        reached = figures(cell.folder, cell.config.evaluate.samples) if state["state"] == DONE else ""
        return f"{state['state']} {state.get('error', reached)}".rstrip()

    def _enter(self, cell: Cell, state: dict[str, Any], told: str = "") -> None:
        """Records the state of a cell, and prints it."""
        self.states[cell.folder.name] = state
        self._made[cell.folder] = steps_made(cell.folder)
        self.keep()
        if told:
            self.progress.write(f"{f'{cell.folder.name}:'.ljust(self._longest)} {told}")
        if state["state"] == DONE:
            self.progress.write(estimate(self._cells, self.states, self.jobs, self._price))


def _start(cell: Cell, environment: Mapping[str, str]) -> subprocess.Popen:
    """Starts the process of a cell; its output goes to log.txt in its folder."""
    log_file = cell.folder / "log.txt"
    with writing(log_file):
        cell.folder.mkdir(parents=True, exist_ok=True)
        check_no_device(log_file)
        log_file.write_bytes(b"")
    with log_file.open("a") as log:
        # A session of its own: Ctrl-C reaches a cell only once, through this process.
        return subprocess.Popen(
            cell.command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


@contextlib.contextmanager
def _ended(running: Mapping[subprocess.Popen, Cell]) -> Iterator[None]:
    """Asks running cells to save and exit if the sweep ends by an error; the next sweep waits for them."""
    try:
        yield
    finally:
        for process in running:
            process.terminate()


def _state(cell: Cell, code: int | None) -> dict[str, Any]:
    """Finds a cell's state from the exit status `code` of its process, or None if this sweep did not begin it."""
    signals = (signal.SIGTERM, signal.SIGINT)
    if code in (*(128 + number for number in signals), *(-number for number in signals)):  # before or after its steps
        return {"state": STOPPED}
    try:
        if not code and cell.is_done():
            return {"state": DONE}
    except UserError as error:  # another process made a different run there
        return {"state": FAILED, "error": f"error: {error}"}
    if code is None:
        return {"state": WAITING}
    if code < 0:  # not by the program itself: its last words are those of its work
        name = signal.Signals(-code).name
        why = ", as by a machine that is out of memory" if name == "SIGKILL" else ""
        return {"state": FAILED, "error": f"ended by the signal {name}{why}; the same sweep continues it"}
    return {"state": FAILED, "error": last_words(cell.folder) or f"exit status {code} without a word"}


def estimate(cells: Sequence[Cell], states: Mapping[str, Mapping[str, Any]], jobs: int, price: float | None) -> str:
    """Describes how long the unfinished cells will take, and how that is known; no guess before a cell has ended.

    Time per step is that of finished cells with the same data and model, or of all finished cells if there are none. It
    includes the cell's other work, such as compiling and evaluating.

    Args:
      cells: the cells of the sweep.
      states: see `read_states`.
      jobs: how many cells run at a time.
      price: price of an hour, or None to leave it out.
    """
    left = [cell for cell in cells if states.get(cell.folder.name, {}).get("state") != DONE]
    to_go = [max(0, cell.config.train.steps - newest_step(cell.folder / "checkpoints")) for cell in left]
    told = f"{count_of(len(cells), 'cell')}, {len(cells) - len(left)} done"
    if not left:
        return told
    told += f"; {sum(to_go):,} steps to go, {min(jobs, len(left))} at a time"
    rates: dict[str, list[float]] = {}
    for cell in cells:
        if seconds := plain(states.get(cell.folder.name, {}).get("seconds")):
            rates.setdefault(cell.shared, []).append(seconds / cell.config.train.steps)
    every = [rate for found in rates.values() for rate in found]
    if not every:
        return f"{told}: how long that takes is known when a cell that this command began has ended"
    seconds = sum(n * median(rates.get(cell.shared, every)) for n, cell in zip(to_go, left, strict=True))
    seconds /= min(jobs, len(left))
    paid = "" if price is None else f", {price * seconds / 3600:.2f} at {price:g} an hour"
    told += (
        f": about {_span(seconds)}{paid}, at {median(every):.3g} seconds a step as in cells that ended ({len(every)})"
    )
    unlike = sum(cell.shared not in rates for cell in left)
    return told + (f"; cells left with another task, start or model: {unlike}" if unlike else "")


def _span(seconds: float) -> str:
    """Formats a time in the largest unit of which there are at least two."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def default_jobs() -> int:
    """Chooses how many cells run at a time: one per CPU core, or one on an accelerator (`ask_device`)."""
    return host_cores() if ask_device(" for the cells", "give --jobs").platform == "cpu" else 1
