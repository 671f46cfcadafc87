"""Summarizes a finished run: the table of test figures, and the curves that a person wants first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.report.figures import draw
from tsallis_rl.report.runs import DONE, Run
from tsallis_rl.runs.cache import writing
from tsallis_rl.runs.json_files import plain
from tsallis_rl.runs.run_directory import flatten

FIRST = ("success", "advantage", "sample_size")  # names of figures


def draw_curves(workdir: Path, config: ConfigDict, records: Sequence[dict[str, Any]]) -> Path:
    """Draws the report's figures `FIRST` into figures/ of a run and returns that folder.

    Reads no file of the run: only the first process draws, while reading a run's files involves all processes.
    """
    folder = workdir / "figures"
    with writing(folder):
        draw([Run(workdir, DONE, flatten(config.to_dict()), list(records))], folder, FIRST)
    return folder


def summary(records: Sequence[dict[str, Any]]) -> str:
    """Tabulates the test figures of the base model and of the best and last checkpoints; "–" for a missing figure.

    The last checkpoint has a column only if it was tested. A warning counts the updates that were left out because a
    number was not finite.
    """
    tested = [record for record in records if "eval/test/pass@1" in record]
    after = next((record for record in reversed(tested) if "eval/test/checkpoint_step" in record), {})
    before = next((record for record in tested if "eval/test/checkpoint_step" not in record), {})
    last = next((record for record in reversed(records) if "eval/test_last/pass@1" in record), {})
    columns = {"before": (before, "test"), "after": (after, "test")} | ({"last": (last, "test_last")} if last else {})
    names = [
        name.removeprefix("eval/test/")
        for name in (after or before)
        if name.startswith("eval/test/") and ("/pass@" in name or "/maj@" in name)
    ]
    lines = [f"{'test':<10}" + "".join(f"{head:>10}" for head in columns)]
    for name in names:
        figures = (_figure(record, f"eval/{split}/{name}") for record, split in columns.values())
        lines.append(f"{name.replace('pass@', 'p@').replace('maj@', 'm@'):<10}" + "".join(figures))
    if after:
        lines.append(f"(after: step {after['eval/test/checkpoint_step']}, the best on validation)")
    updates = [record for record in records if "train/loss" in record]
    if left_out := [record["step"] for record in updates if record.get("train/skipped")]:
        lines.append(
            f"WARNING: {len(left_out)} of {len(updates)} updates were left out, the first at step {left_out[0]}: "
            "a loss, gradient or parameter was not finite"
        )
    return "\n".join(lines)


def _figure(record: dict[str, Any], name: str) -> str:
    """Formats a figure as a cell of the table."""
    value = plain(record.get(name))
    return f"{'–':>10}" if value is None else f"{value:>10.3f}"
