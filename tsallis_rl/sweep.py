"""Trains a grid of runs: python -m tsallis_rl.sweep --q=0,.25,.5,.75,1 --estimators=garl,paft,grpo --seeds=3

Every cell of the grid is a run directory of its own, made by `python -m tsallis_rl.main`; --config and its fields are
those of that program. Cells that are done are not run again, those that were stopped go on, one that fails leaves the
others alone. --dry-run prints the commands instead.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from tsallis_rl import objectives
from tsallis_rl.config import command_line as settings
from tsallis_rl.config.readers import unread
from tsallis_rl.runs.cache import fingerprint, write_whole, writing
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import local
from tsallis_rl.runs.run_directory import RunDirectory
from tsallis_rl.runs.signals import stop_requests

Q = flags.DEFINE_list("q", ["0", ".25", ".5", ".75", "1"], "Commitments, for the estimators that have one.")
ESTIMATORS = flags.DEFINE_list("estimators", ["garl", "paft", "grpo"], "Rows of tsallis_rl.objectives.ESTIMATORS.")
SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds: 0, 1, …", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "Folder of the cells; by default runs/sweep-NAME, named after the config.")
JOBS = flags.DEFINE_integer("jobs", None, "Cells at a time; by default one per CPU core, or one on an accelerator.", 1)
QUICK = flags.DEFINE_bool("quick", False, "One seed and a third of the steps.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands, one a line, and run nothing.")
flags.DEFINE_alias("dry-run", "dry_run")

DONE, FAILED, STOPPED, WAITING = "done", "failed", "stopped", "waiting"
# glibc hands the memory of every XLA call back to the kernel and asks for it again; kept, a cell on two CPU cores takes
# a sixth less time. Other allocators do not read these.
KEEP_MEMORY = {"MMAP_MAX": 0, "TRIM_THRESHOLD": 2**32, "TOP_PAD": 2**28, "ARENA_MAX": 1}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
      folder: of the run.
      config: its settings.
      command: that makes it, or goes on with it.
    """

    folder: Path
    config: ConfigDict
    command: list[str]

    @property
    def done(self) -> bool:
        """Whether the run has come to its end, the test of its best checkpoint."""
        return any("eval/test/checkpoint_step" in record for record in RunDirectory(self.folder, self.config).records())


def grid(config: ConfigDict, q: Sequence[float], estimators: Sequence[str], seeds: int) -> dict[str, dict[str, Any]]:
    """Names of cells -> the fields in which they differ, seed by seed; an estimator without q has one cell a seed.

    An option of config.estimator is at its default in the cells whose estimator does not read it.

    Raises:
      UserError: an unknown estimator, a q outside [0, 1], a cell that comes twice, or an option that no cell reads.
    """
    jax.config.update("jax_platforms", "cpu")  # an accelerator is the cells'
    cells: dict[str, dict[str, Any]] = {}
    ignored: list[dict[str, Any]] = []
    for seed, name in itertools.product(range(seeds), estimators):
        objectives.check({"name": name, "q": config.estimator.q}, config.rollouts.num_rollouts)
        takes_q = "q" in objectives.ESTIMATORS[name].needs
        for value in q if takes_q else [config.estimator.q]:
            objectives.check({"name": name, "q": value}, config.rollouts.num_rollouts)
            cell = (f"{name}-q{value:g}" if takes_q else name) + f"-seed{seed}"
            if cell in cells:
                raise UserError(f"--q, --estimators: the cell {cell} comes twice; name each value once")
            fields = {"estimator.name": name, "estimator.q": value, "seed": seed}
            ignored.append(unread(with_fields(config, fields)))
            cells[cell] = fields | {f"estimator.{option}": default for option, default in ignored[-1].items()}
    for option in set.intersection(*map(set, ignored)) - {"q"}:
        raise UserError(
            f"config.estimator.{option}={config.estimator[option]!r}: none of --estimators={','.join(estimators)} "
            "reads it; leave it out"
        )
    return cells


def with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """A copy with {"section.field": value} in it."""
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(fields)
    return changed


def check_not_swept(reference: str, overrides: Mapping[str, Any]) -> None:
    """Refuses what the grid would set again: fields of --config, and arguments behind the config file's colon."""
    swept = {"estimator.q": "--q", "estimator.name": "--estimators", "seed": "--seeds"}
    for field, flag in swept.items():
        if field in overrides:
            raise UserError(f"--config.{field}={overrides[field]}: a sweep sets it by {flag}; use that")
    for item in reference.partition(":")[2].split(","):
        name, equals, _ = item.partition("=")
        if equals and (flag := {"q": "--q", "estimator": "--estimators", "seed": "--seeds"}.get(name.strip())):
            raise UserError(
                f"--config={reference}: a sweep sets {name.strip()} by {flag}; leave it out behind the colon"
            )


def run_cells(cells: Sequence[Cell], out: Path, jobs: int) -> dict[str, dict[str, str]]:
    """Runs what is not done, `jobs` at a time, and keeps {cell: {state, error}} in out/sweep.json.

    A signal is passed on to the running cells, which save and exit; none is started after it.

    Returns:
      What sweep.json holds.

    Raises:
      UserError: a cell's folder holds a run of another config.
    """
    file = out / "sweep.json"
    states = _read_states(file)
    waiting = [cell for cell in cells if not cell.done]
    states |= {cell.folder.name: {"state": WAITING if cell in waiting else DONE} for cell in cells}

    def keep() -> None:
        write_whole(file, (json.dumps(states, indent=2, sort_keys=True) + "\n").encode())

    threads = {"NPROC": str(max(1, _cores() // jobs))}  # XLA's: cells do not fight over cores
    environment = {f"MALLOC_{name}_": str(value) for name, value in KEEP_MEMORY.items()} | os.environ | threads
    keep()
    running: dict[subprocess.Popen, Cell] = {}
    told_to_stop: list[subprocess.Popen] = []
    progress = tqdm(total=len(cells), initial=len(cells) - len(waiting), desc="cells", dynamic_ncols=True, disable=None)
    with stop_requests() as stop, progress, _ended(running):
        while running or (waiting and not stop.signum):
            while waiting and len(running) < jobs and not stop.signum:
                cell = waiting.pop(0)
                log_file = cell.folder / "log.txt"
                with writing(log_file):
                    cell.folder.mkdir(parents=True, exist_ok=True)
                    log_file.touch()
                with log_file.open("w") as log:
                    # A session of its own: Ctrl-C reaches the cells once, through us.
                    process = subprocess.Popen(
                        cell.command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
                    )
                running[process] = cell
            if stop.signum and not told_to_stop:
                told_to_stop = list(running)
                progress.write(f"{len(running)} cell(s) save their state")
                for process in running:
                    process.terminate()
            time.sleep(0.1)
            for process in [process for process in running if process.poll() is not None]:
                cell = running.pop(process)
                states[cell.folder.name] = state = _state(cell, process.returncode)
                keep()
                progress.write(f"{cell.folder.name}: {state['state']} {state.get('error', '')}".rstrip())
                progress.update(state["state"] == DONE)
    keep()
    if stop.signum:
        print(f"stopped: {len(waiting)} cell(s) not begun; the same command goes on", file=sys.stderr)
        sys.exit(128 + stop.signum)
    return states


def _read_states(file: Path) -> dict[str, dict[str, str]]:
    """What sweep.json holds, {} where there is none."""
    try:
        states = json.loads(file.read_bytes()) if file.exists() else {}
    except (OSError, ValueError, RecursionError):
        states = None
    if not isinstance(states, dict):
        raise UserError(f"{file} cannot be read, or is not what a sweep writes; remove it, cells that are done stay")
    return states


@contextlib.contextmanager
def _ended(running: Mapping[subprocess.Popen, Cell]) -> Iterator[None]:
    """No cell outlives the sweep, however it ends."""
    try:
        yield
    finally:
        for process in running:
            process.kill()


def _state(cell: Cell, code: int) -> dict[str, str]:
    """What became of a cell whose process has ended with `code`."""
    if code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        return {"state": STOPPED}
    if code == 0 and cell.done:
        return {"state": DONE}
    lines = (cell.folder / "log.txt").read_text(errors="replace").strip().splitlines()
    return {"state": FAILED, "error": lines[-1] if lines else f"exit status {code} without a word"}


def main(_: Sequence[str]) -> None:
    """Makes the cells' commands and runs or prints them."""
    reference = config_flags.get_config_filename(flags.FLAGS["config"])
    overrides = dict(config_flags.get_override_values(flags.FLAGS["config"]))
    config = flags.FLAGS.config
    check_not_swept(reference, overrides)
    if QUICK.value:
        overrides["train.steps"] = config.train.steps = max(1, config.train.steps // 3)
    name = f"runs/sweep-{config.task.name}-{config.task.start}-{fingerprint(config.to_json())}"
    out = local("--out", OUT.value or name)

    def command(module: str, fields: Mapping[str, Any]) -> list[str]:
        file = [] if reference == str(settings.EMBEDDED) else [f"--config={reference}"]
        fields = [f"--config.{name}={value}" for name, value in (overrides | fields).items()]
        return [sys.executable, "-m", f"tsallis_rl.{module}", *file, *fields]

    differ = grid(config, _numbers(Q), _named(ESTIMATORS), 1 if QUICK.value else SEEDS.value)
    cells = [
        Cell(out / name, with_fields(config, fields), [*command("main", fields), f"--workdir={out / name}"])
        for name, fields in differ.items()
    ]
    preparation = command("prepare", next(iter(differ.values())))
    if DRY_RUN.value:
        for line in [preparation, *(cell.command for cell in cells)]:
            print(shlex.join(["python", *line[1:]]))
        return
    if not all(cell.done for cell in cells) and (code := subprocess.run(preparation, check=False).returncode):
        sys.exit(code)
    states = run_cells(cells, out, JOBS.value or _jobs())
    failed = [cell.folder.name for cell in cells if states[cell.folder.name]["state"] == FAILED]
    print(f"{len(cells) - len(failed)} of {len(cells)} cells are done: {out}")
    for name in failed:
        print(f"failed: {name}: {states[name]['error']} (all of it: {out / name / 'log.txt'})", file=sys.stderr)
    sys.exit(1 if failed else 0)


def _named(flag: flags.FlagHolder) -> list[str]:
    """The values of a flag that is a list; refuses an empty one."""
    if not all(text.strip() for text in flag.value or [""]):
        raise UserError(f"--{flag.name}={','.join(flag.value)}: a value is empty; name values with commas between them")
    return [text.strip() for text in flag.value]


def _numbers(flag: flags.FlagHolder) -> list[float]:
    texts = _named(flag)
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise UserError(
            f"--{flag.name}={','.join(texts)}: choose numbers from 0 to 1, with commas between them"
        ) from None


def _jobs() -> int:
    """As many cells as CPU cores, or one on an accelerator; asked in a process that lets go of it again."""
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    backend = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    return _cores() if backend == "cpu" else 1


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    settings.run(main)
