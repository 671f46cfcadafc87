"""Shows in the report the models' answers in their newest evaluation on validation."""

import contextlib
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tsallis_rl.report.rollout_page import ANSWERS, saved_step, step_of
from tsallis_rl.report.runs import Run, methods
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import json_lines

EXAMPLES = 4  # examples for each method; the pages have the others
LONGEST = 300  # characters of a text


def said(runs: Sequence[Run]) -> list[list[str]]:
    """Lists the first sampled answer to some validation examples, from each method's first run that has any.

    Returns:
      Rows of markup: method, with the step; example; gold answer; the sampled answer with its special tokens; how many
      of the samples are right.
    """
    rows = []
    for method, some in methods(runs).items():
        step, groups = next((found for run in some if (found := saved_answers(run.folder, max))[1]), (0, []))
        for i, group in enumerate(groups[:EXAMPLES]):
            right = sum(row.get("correct") == 1 for row in group)
            name = f"{method}, step {step}" if i == 0 else ""
            texts = [name, *(shortened(group[0].get(field)) for field in ("example", "gold", "sampled"))]
            rows.append([*(html.escape(text) for text in texts), f"{right} of {len(group)}"])
    return rows


def saved_answers(folder: Path, choose: Callable[..., Path]) -> tuple[int, list[list[dict[str, Any]]]]:
    """Reads a file of sampled answers of the run in `folder`: its step, and rows, example by example.

    Args:
      folder: the run's folder.
      choose: min for the oldest file, max for the newest; a file that cannot be read gives no rows, and its page says
        why.
    """
    begin = folder / ANSWERS.files
    files = [file for file in begin.parent.glob(f"{begin.name}_*.jsonl") if saved_step(file) is not None]
    if not files:
        return 0, []
    file = choose(files, key=step_of)
    groups: dict[str, list[dict[str, Any]]] = {}
    with contextlib.suppress(UserError):
        for row in json_lines(file):
            groups.setdefault(str(row.get("example")), []).append(row)
    return step_of(file), list(groups.values())


def shortened(value: Any) -> str:
    """Shortens a text read from a file; anything but text becomes "(none)"."""
    if not isinstance(value, str):
        return "(none)"
    return value if len(value) <= LONGEST else f"{value[:LONGEST]} …"
