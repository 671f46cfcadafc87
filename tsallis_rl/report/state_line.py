"""Writes one line on how far a run or a sweep has come, with a link to its newest rollouts."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tsallis_rl.report.rollout_page import Pages, link, step_of
from tsallis_rl.report.runs import DONE, FAILED, RUNNING, STOPPED, WAITING, Run

_WORDS = {DONE: "ended", RUNNING: "running", STOPPED: "stopped before its end", FAILED: "failed", WAITING: "not begun"}


def state_line(runs: Sequence[Run], pages: Mapping[Path, Pages], folder: Path) -> str:
    """Writes the line as markup: state, step of steps, time of the last metrics, newest rollouts.

    Args:
      runs: the report's runs.
      pages: the pages of each run's folder.
      folder: the report's folder, to which links are relative.
    """
    done = sum(run.updates for run in runs)
    total = sum(steps for run in runs if type(steps := run.config.get("train.steps")) is int)
    parts = [_WORDS[run.state] for run in runs[:1] if len(runs) == 1]  # for several runs the page counts the states
    parts += [f"step {done} of {total}" + " together" * (len(runs) > 1) if done else "no metrics yet"]
    changed = max((found for run in runs if (found := _changed(run.folder / "metrics.jsonl"))), default=None)
    if done and changed:
        parts.append(f"last change {clock(changed)}")
    newest = [found.rollouts[-1] for found in pages.values() if found.rollouts]
    if newest:
        page = max(newest, key=lambda page: _changed(page.with_suffix(".jsonl")) or 0.0)
        parts.append(f'<a href="{link(page, folder)}">newest rollouts (step {step_of(page)})</a>')
    return f'<p id="state">{", ".join(parts)}</p>\n'


def clock(seconds: float) -> str:
    """Writes a time as markup, in this machine's time zone; a watched page converts it to the reader's."""
    here = time.localtime(seconds)
    return f'<time datetime="{time.strftime("%Y-%m-%dT%H:%M:%S%z", here)}">{time.strftime("%F %T", here)}</time>'


def _changed(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None
