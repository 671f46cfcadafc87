"""Reads from the folders of cells how far they are, and what the finished ones reached."""

import json
from pathlib import Path

from tsallis_rl.runs.json_files import plain
from tsallis_rl.runs.run_directory import read_records

TAIL = 1 << 16  # bytes of metrics.jsonl in which its last lines have room


def steps_made(folder: Path) -> int:
    """Counts the steps that the run in a folder has made, by the end of its metrics.jsonl; 0 where it has none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            lines = file.read(TAIL).splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # cut short at either end
            continue
        if isinstance(record, dict) and "train/loss" in record and type(record.get("step")) is int:
            return record["step"] + 1
    return 0


def figures(folder: Path, samples: int) -> str:
    """Says what a finished run's best checkpoint reached on test: p@1 and m@n of `samples` answers."""
    tested = [record for record in read_records(folder) if "eval/test/checkpoint_step" in record]
    found = {"p@1": "pass@1", f"m@{samples}": f"maj@{samples}"}
    values = {name: plain(tested[-1].get(f"eval/test/{key}")) if tested else None for name, key in found.items()}
    return ", ".join(f"{name} {'–' if value is None else f'{value:.3f}'}" for name, value in values.items())
