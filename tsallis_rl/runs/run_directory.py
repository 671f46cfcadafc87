"""The run directory, the interface to people: config.json, metrics.jsonl, checkpoints/, rollouts/, evaluations/."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.runs.cache import write_whole, writing
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.hub import RECORD
from tsallis_rl.runs.json_files import json_lines, read_object
from tsallis_rl.runs.loggers import Call, Logger, find_sinks, run_names, scalars_call, table_call
from tsallis_rl.runs.paths import plain_number
from tsallis_rl.runs.processes import from_first
from tsallis_rl.runs.run_lock import check_run_lock

STEPS = "train.steps"  # may change in a run's folder: the run continues
# May change too, for example after running out of memory or on another device: they change memory use and rounding.
MEMORY = {
    *("train.micro_batch", "train.micro_rollouts", "rollouts.at_once", "evaluate.prompts", "model.remat"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor"),
}
# What a start keeps of the inputs of its settings, besides RECORD.
KEPT = ("markers.json", "inputs.json", "init.json", "micro_batches.json")
ROLLOUTS = "rollouts/step"
LOG = "log"  # the section of loggers, which does not affect what a run computes


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to {"section.field": value}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def deciding(config: ConfigDict) -> str:
    """Returns, as JSON, the settings that decide what a run computes: all but those of loggers."""
    return json.dumps({name: value for name, value in json.loads(config.to_json()).items() if name != LOG})


def read_settings(folder: Path) -> dict[str, Any]:
    """Reads config.json of a run's folder; raises UserError if it cannot be used."""
    return read_object(folder / "config.json", "choose the folder of a run, or remove the file")


def finite(value: Any) -> Any:
    """Replaces NaN and infinities by None, because strict JSON has only null for them; in nested objects too."""
    if isinstance(value, Mapping):
        return {name: finite(x) for name, x in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl of a run's folder, on this process only.

    Skips lines that were cut short, and lines without a valid step.
    """
    return [record for record in json_lines(folder / "metrics.jsonl") if _is_step(record.get("step"))]


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows to a file, one JSON object per line, whole or not at all, on this process only."""
    write_whole(file, _lines(rows))


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Encodes rows as JSON, one object per line."""
    lines = (json.dumps(finite(row), ensure_ascii=False) for row in rows)
    return "".join(line + "\n" for line in lines).encode(errors="replace")


class RunDirectory:
    """A folder that belongs to one config; opening it again continues the run.

    These may change: config.train.steps (only upwards), the settings of MEMORY (`claim` prints each), and loggers.

    Of several processes, only the first reads and writes. Every process must call every method, so that an error of the
    first is raised on all: the others would otherwise wait for it in the next step.

    Raises:
      UserError: the folder holds another run; names a field that differs, task.name first, train.steps last.
    """

    def __init__(self, path: Path, config: ConfigDict):
        self.path = path
        self._settings = json.loads(config.to_json())
        self._file = path / "config.json"
        self._metrics = path / "metrics.jsonl"
        self._loggers: list[Logger] = []
        self._is_lost = False
        from_first(self._check)

    def _check(self) -> list[str]:
        """Refuses another run's folder; returns one line for each field of MEMORY that has changed."""
        if not (self._file.exists() and self._has_begun()):
            return []
        found, wanted = flatten(read_settings(self.path)), flatten(self._settings)
        changed = {name for name in found | wanted if found.get(name) != wanted.get(name)}
        changed = {name for name in changed if not name.startswith(f"{LOG}.")}
        for field in sorted(changed - {STEPS} - MEMORY, key=lambda name: (name != "task.name", name)):
            if field not in found:
                raise UserError(
                    f"{self.path} holds a run from before there was config.{field}: finish it with the version that "
                    f"began it, or start from its parameters in another --workdir: --config.train.init={self.path}"
                )
            if field not in wanted and not field.startswith("task."):  # each task has its own fields
                raise UserError(
                    f"{self.path} holds a run with config.{field}, which no longer exists: finish it with the version "
                    f"that began it, or start from its parameters in another --workdir: --config.train.init={self.path}"
                )
            grows = f"; to go on, only config.{STEPS} may change" if STEPS in changed else ""
            raise UserError(
                f"{self.path} holds a run with config.{field} = {found.get(field)!r}, this one has "
                f"{wanted.get(field)!r}{grows}; choose another --workdir (of a sweep: --out), or remove that folder"
            )
        if STEPS in changed:
            self._check_more(found.get(STEPS), wanted[STEPS])
        return [
            f"{self.path}: config.{field} was {found.get(field)}, and is {wanted[field]} from here on"
            for field in sorted(changed & MEMORY)
        ]

    def _check_more(self, before: Any, now: int) -> None:
        """Refuses fewer steps; refuses more, too, if the steps made so far would have been different with them."""
        if not isinstance(before, int) or now < before:
            raise UserError(
                f"{self.path} holds a run of config.{STEPS} = {before}, this one has {now}: they may only grow; choose "
                "another --workdir (of a sweep: --out), or remove that folder"
            )
        if self._settings["optimizer"]["schedule"] == "cosine":
            raise UserError(
                f"{self.path} holds a run whose learning rate falls to zero at step {before} "
                f"(config.optimizer.schedule = 'cosine'), so that it cannot go on to {now}; start from its parameters "
                f"in another --workdir: --config.train.init={self.path}:latest"
            )

    def _clear(self) -> None:
        """Removes what a start of other settings kept here before it was refused; not the commit of the same model."""
        if not self._file.exists() or self._has_begun():
            return
        before = read_settings(self.path)
        if before == self._settings:
            return
        check_run_lock(self.path)
        is_same = before.get("model", {}).get("size") == self._settings["model"]["size"]
        for name in KEPT if is_same else (*KEPT, RECORD):
            with writing(self.path / name):
                (self.path / name).unlink(missing_ok=True)

    def _has_begun(self) -> bool:
        """Returns whether a run has recorded or saved anything here; a start that was refused leaves its config."""
        return any((self.path / "checkpoints").glob("*.manifest")) or bool(read_records(self.path))

    def claim(self) -> None:
        """Writes config.json into the folder, creating it if needed. Call it while holding the run lock.

        Raises:
          UserError: another process has begun a different run there since this one checked.
        """
        told = from_first(self._check)
        from_first(self._clear)
        from_first(lambda: self._write(self._file, (json.dumps(self._settings, indent=2) + "\n").encode()))
        for line in told:
            print(line)

    def _write(self, file: Path, data: bytes) -> None:
        """Writes a file whole; refuses if this process has lost the run lock."""
        check_run_lock(self.path)
        write_whole(file, data)

    def records(self) -> list[dict[str, Any]]:
        """Reads metrics.jsonl, skipping lines that were cut short."""
        return from_first(lambda: read_records(self.path))

    def rewind(self, step: int, *, tested: bool = True) -> None:
        """Removes the records that a run resumed at `step` writes again: all later ones, and the step's own update.

        Unless it was `tested` as its end, the figures of such a test go too. So do the texts of rollouts and of sampled
        answers, with the pages that a report made of them.

        A step of −1 removes all. Training does not depend on the remaining records; stderr says how many are missing.
        """
        from_first(lambda: self._rewind(step, tested))

    def _rewind(self, step: int, tested: bool) -> None:
        written_again = {"train/loss"} if tested else {"train/loss", "eval/test/checkpoint_step"}
        records = read_records(self.path)
        kept = [r for r in records if r["step"] < step or (r["step"] == step and written_again.isdisjoint(r))]
        if missing := step - len({r["step"] for r in kept if "train/loss" in r}) if step > 0 else 0:
            print(
                f"WARNING: {self._metrics} lacks the records of {missing} of the {step} steps so far; they stay "
                "missing, and training continues as it would have",
                file=sys.stderr,
            )
        self._is_lost = missing > 0
        self._write(self._metrics, "".join(json.dumps(record) + "\n" for record in kept).encode())
        for name, first in ((ROLLOUTS, step), ("evaluations/validation", step + 1)):
            for file in (self.path / name).parent.glob(f"{Path(name).name}_*"):
                saved = plain_number(file.stem.rpartition("_")[2])
                if file.suffix in (".jsonl", ".html") and saved is not None and saved >= first:
                    with writing(file):
                        file.unlink()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line {"step": …, name: value, …}."""
        from_first(lambda: self._log(step, values))

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        record = {"step": step, **finite(values)}
        check_run_lock(self.path)
        with writing(self._metrics), self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._tell(scalars_call(record))

    def write_rows(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a step's rows, one JSON object per line, to NAME_STEP.jsonl, as in rollouts/step_000050.jsonl."""
        from_first(lambda: self._write(self.path / f"{name}_{step:06d}.jsonl", _lines(rows)))
        if name == ROLLOUTS:
            self._tell(lambda sink: sink.table(step, [finite(row) for row in rows]))

    def check_loggers(self) -> None:
        """Raises UserError if config.log.to names something that is not a logger, or is not installed."""
        from_first(lambda: dict.fromkeys(find_sinks(self._settings[LOG], self.path)))

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Sends to the loggers of config.log what the folder already holds, then everything logged inside the block."""
        from_first(self._start_loggers)
        try:
            yield
        finally:
            for logger in self._loggers:
                logger.close()
            self._loggers = []

    def _start_loggers(self) -> None:
        log = self._settings[LOG]
        if sinks := find_sinks(log, self.path):
            names = run_names(self.path, log, anew=self._is_lost)
            self._loggers = [
                Logger(name, partial(make, names), self._settings, self._calls()) for name, make in sinks.items()
            ]

    def _calls(self) -> Iterator[Call]:
        """Lists the calls that log again what the folder holds: the lines of metrics.jsonl, and files of rollouts."""
        calls = []
        for record in read_records(self.path):
            calls.append(scalars_call(record))
            file = self.path / f"{ROLLOUTS}_{record['step']:06d}.jsonl"
            if "train/loss" in record and file.exists():
                calls.append(table_call(record["step"], file))
        return iter(calls)

    def _tell(self, call: Call) -> None:
        for logger in self._loggers:
            logger.put(call)
