"""Reads progress and results of cells from their folders."""

import json
from pathlib import Path

from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import plain
from tsallis_rl.runs.paths import check_no_device
from tsallis_rl.runs.run_directory import read_records

TAIL = 1 << 16  # bytes that are enough for the last lines of a file


def _tail(file: Path) -> list[bytes]:
    """Reads the last lines of a file, the first possibly cut short; no lines if the file cannot be read."""
    try:
        check_no_device(file)
        with file.open("rb") as opened:
            opened.seek(max(0, opened.seek(0, 2) - TAIL))
            return opened.read(TAIL).splitlines()
    except OSError:
        return []


def last_words(folder: Path) -> str:
    """Reads the last error in a cell's log.txt, or else its last line; "" if it has no lines.

    The error may be followed by lines of a process that a killed sweep left, and that kept this one from beginning.
    """
    lines = [text for line in _tail(folder / "log.txt") if (text := line.decode(errors="replace").rstrip())]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")


def steps_made(folder: Path) -> int:
    """Counts the steps that the run in a folder has made, from the end of its metrics.jsonl; 0 if there are none."""
    lines = _tail(folder / "metrics.jsonl")
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # cut short at either end, or not a run's
            continue
        step = record.get("step") if isinstance(record, dict) and "train/loss" in record else None
        if type(step) is int and step >= 0:
            return step + 1
    return 0


def figures(folder: Path, samples: int) -> str:
    """Formats the test figures of a finished run's best checkpoint: p@1, and m@n of `samples` answers."""
    try:
        tested = [record for record in read_records(folder) if "eval/test/checkpoint_step" in record]
    except UserError:  # metrics decide nothing: the cell is done without them
        tested = []
    found = {"p@1": "pass@1", f"m@{samples}": f"maj@{samples}"}
    values = {name: plain(tested[-1].get(f"eval/test/{key}")) if tested else None for name, key in found.items()}
    return ", ".join(f"{name} {'–' if value is None else f'{value:.3f}'}" for name, value in values.items())
