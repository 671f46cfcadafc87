"""Runs the cells of a sweep as processes, and keeps their states in sweep.json."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.runs.cache import fingerprint, write_whole, writing
from tsallis_rl.runs.checkpoints import newest_control
from tsallis_rl.runs.devices import ask_device
from tsallis_rl.runs.json_files import plain, read_object
from tsallis_rl.runs.paths import check_no_device, is_plain_name
from tsallis_rl.runs.progress import Bar
from tsallis_rl.runs.run_directory import RunDirectory
from tsallis_rl.runs.run_lock import is_held
from tsallis_rl.runs.signals import stop_requests
from tsallis_rl.sweeps.standing import figures, steps_made

DONE, FAILED, STOPPED, WAITING, RUNNING = "done", "failed", "stopped", "waiting", "running"
LOOK = 2.0  # seconds between two looks at how far the cells are
# glibc hands the memory of every XLA call back to the kernel and asks for it again; kept, a cell on two CPU cores takes
# a sixth less time. Other allocators do not read these.
KEEP_MEMORY = {"MMAP_MAX": 0, "TRIM_THRESHOLD": 2**32, "TOP_PAD": 2**28, "ARENA_MAX": 1}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
      folder: of the run.
      config: its settings.
      command: makes the run, or continues it.
    """

    folder: Path
    config: ConfigDict
    command: list[str]

    def is_done(self) -> bool:
        """Tells whether the run has tested its best and last checkpoints, which its control state keeps.

        Raises:
          UserError: the folder holds a run of another config.
        """
        RunDirectory(self.folder, self.config)
        control = newest_control(self.folder / "checkpoints")
        return control is not None and control["tested_at"] == self.config.train.steps

    @property
    def shared(self) -> str:
        """A text that cells have in common which find the same data, tokeniser and base model in the cache."""
        sections = {name: self.config[name].to_json() for name in ("task", "model", "base")}
        return fingerprint(sections | {"init": self.config.train.init})


def read_states(cells: Sequence[Cell], out: Path) -> dict[str, dict[str, Any]]:
    """Reads {cell: {state, error, seconds}} of out/sweep.json, and of `cells` from their folders which are done.

    Cells of other grids in the same folder keep their states; one that a killed sweep left running is stopped.

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
    """Runs what is not done, `jobs` at a time, and keeps {cell: {state, error, seconds}} in out/sweep.json.

    `seconds` are those of a cell that was begun and ended by one process. A signal is passed on to the running cells,
    which save and exit; none is started after it. Each cell that ends is told with `estimate`.

    Returns:
      What sweep.json holds.

    Raises:
      UserError: a cell's folder holds a run of another config.
    """
    file = out / "sweep.json"
    states = read_states(cells, out)
    waiting = [cell for cell in cells if states[cell.folder.name]["state"] == WAITING]

    def keep() -> None:
        write_whole(file, (json.dumps(states, indent=2, sort_keys=True) + "\n").encode())

    jobs = min(jobs, max(1, len(cells)))
    threads = {"NPROC": str(max(1, _cores() // jobs))}  # XLA's: cells do not fight over cores
    memory = {f"MALLOC_{name}_": str(value) for name, value in KEEP_MEMORY.items()}
    ordered = {"PYTHONUNBUFFERED": "1"}  # in the log what is printed stands before the error that ends the cell
    environment = memory | os.environ | threads | ordered
    keep()
    print(estimate(cells, states, jobs, price))
    running: dict[subprocess.Popen, Cell] = {}
    began: dict[str, float] = {}  # cells that had no checkpoint
    told_to_stop: list[subprocess.Popen] = []
    made, looked = {cell.folder: steps_made(cell.folder) for cell in cells}, -math.inf
    steps, longest = sum(cell.config.train.steps for cell in cells), max(len(cell.folder.name) + 1 for cell in cells)
    progress = Bar(total=steps, initial=sum(made.values()), desc="cells", called="steps")
    with stop_requests() as stop, progress, _ended(running):
        while running or (waiting and not stop.signum):
            while waiting and len(running) < jobs and not stop.signum:
                cell = waiting.pop(0)
                if newest_control(cell.folder / "checkpoints") is None:
                    began[cell.folder.name] = time.monotonic()
                running[_start(cell, environment)] = cell
                states[cell.folder.name] = {"state": RUNNING}
                keep()
            if stop.signum and not told_to_stop:
                told_to_stop = list(running)
                progress.write(f"{len(running)} cell(s) save their state")
                for process in running:
                    process.terminate()
            time.sleep(0.1)
            ended = [process for process in running if process.poll() is not None]
            for process in ended:
                cell = running.pop(process)
                made[cell.folder] = steps_made(cell.folder)
                states[cell.folder.name] = state = _state(cell, process.returncode)
                if state["state"] == DONE and cell.folder.name in began:
                    state["seconds"] = round(time.monotonic() - began[cell.folder.name], 1)
                keep()
                reached = figures(cell.folder, cell.config.evaluate.samples) if state["state"] == DONE else ""
                name = f"{cell.folder.name}:".ljust(longest)
                progress.write(f"{name} {state['state']} {state.get('error', reached)}".rstrip())
                if state["state"] == DONE:
                    progress.write(estimate(cells, states, jobs, price))
            if ended or time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                made |= {cell.folder: steps_made(cell.folder) for cell in running.values()}
                done = sum(states[cell.folder.name]["state"] == DONE for cell in cells)
                progress.note, progress.more = f"{done} of {len(cells)} cells", f"{len(running)} running"
                progress.update(sum(made.values()) - progress.n)
    keep()
    if stop.signum:
        print(f"stopped: {len(waiting)} cell(s) not begun; the same command continues the sweep", file=sys.stderr)
        sys.exit(128 + stop.signum)
    return states


def _start(cell: Cell, environment: Mapping[str, str]) -> subprocess.Popen:
    """Starts the process of a cell, whose words go to the log.txt of its folder."""
    log_file = cell.folder / "log.txt"
    with writing(log_file):
        cell.folder.mkdir(parents=True, exist_ok=True)
        check_no_device(log_file)
        log_file.write_bytes(b"")
    with log_file.open("a") as log:
        # A session of its own: Ctrl-C reaches the cells once, through us.
        return subprocess.Popen(
            cell.command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


@contextlib.contextmanager
def _ended(running: Mapping[subprocess.Popen, Cell]) -> Iterator[None]:
    """Kills the cells that still run when the sweep ends, however it ends."""
    try:
        yield
    finally:
        for process in running:
            process.kill()


def _state(cell: Cell, code: int) -> dict[str, Any]:
    """Tells how a cell ended, from the exit status `code` of its process."""
    signals = (signal.SIGTERM, signal.SIGINT)
    if code in (*(128 + number for number in signals), *(-number for number in signals)):  # before or after its steps
        return {"state": STOPPED}
    if code == 0 and cell.is_done():
        return {"state": DONE}
    lines = (cell.folder / "log.txt").read_text(errors="replace").strip().splitlines()
    # Behind it may stand lines of a process that a killed sweep left, for which this one could not begin.
    lines = [line for line in lines if line.startswith("error: ")] or lines
    return {"state": FAILED, "error": lines[-1] if lines else f"exit status {code} without a word"}


def estimate(cells: Sequence[Cell], states: Mapping[str, Mapping[str, Any]], jobs: int, price: float | None) -> str:
    """Says how long the cells that are not done take, and on what ground; nothing is guessed before one has ended.

    A step takes as long as in the cells that ended of the same data and model, or of all where there is none. What a
    cell does besides, as compiling and evaluating, is part of its steps.

    Args:
      cells: of the sweep.
      states: see `read_states`.
      jobs: cells at a time.
      price: of an hour; None: of no interest.
    """
    left = [cell for cell in cells if states.get(cell.folder.name, {}).get("state") != DONE]
    steps = sum(cell.config.train.steps for cell in left)
    told = f"{len(cells)} cell{'s' * (len(cells) != 1)}, {len(cells) - len(left)} done"
    if not left:
        return told
    told += f"; {steps:,} steps to go, {min(jobs, len(left))} at a time"
    rates: dict[str, list[float]] = {}
    for cell in cells:
        if seconds := plain(states.get(cell.folder.name, {}).get("seconds")):
            rates.setdefault(cell.shared, []).append(seconds / cell.config.train.steps)
    every = [rate for found in rates.values() for rate in found]
    if not every:
        return f"{told}: how long that takes is known when a cell has ended"
    seconds = sum(cell.config.train.steps * median(rates.get(cell.shared, every)) for cell in left)
    seconds /= min(jobs, len(left))
    paid = "" if price is None else f", {price * seconds / 3600:.2f} at {price:g} an hour"
    told += (
        f": about {_span(seconds)}{paid}, at {median(every):.3g} seconds a step as in cells that ended ({len(every)})"
    )
    unlike = sum(cell.shared not in rates for cell in left)
    return told + (f"; to come with another task, start or model: {unlike}" if unlike else "")


def _span(seconds: float) -> str:
    """Writes a time in the unit of which there are at least two."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def default_jobs() -> int:
    """Chooses cells at a time: one per CPU core, or one on an accelerator, which is asked for in another process."""
    return _cores() if ask_device(" for the cells", "give --jobs").platform == "cpu" else 1


def _cores() -> int:
    """Counts the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
