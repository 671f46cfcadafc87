"""Tabulates test figures: those of every method, and the paper's next to ours."""

import html
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from tsallis_rl.evaluation.intervals import RESAMPLES
from tsallis_rl.laboratory.symbols import symbol
from tsallis_rl.report.claims import FIGURES, PAPER, SETS, Arm
from tsallis_rl.report.orderings import by_seed, figure
from tsallis_rl.report.runs import DONE, ESCAPED, Run, methods, step_part
from tsallis_rl.report.statistics import Summary, spread, summarize
from tsallis_rl.report.tables import table

_DASH = "–"


NOTE = (
    f"Test split, the checkpoint with the best validation {symbol('m@n')}. Mean ± standard deviation over seeds, where "
    f"there are several; in brackets a 95% bootstrap interval of that mean ({RESAMPLES} resamples of the test prompts, "
    "the same in every run): it says how well these prompts measure these runs, not how other seeds would end. "
    "It is left out where every prompt came out alike."
)
_EVERY = "Every seed, in order, and the last checkpoint"
_LAST = "The last checkpoint"


def figures_of_merit(runs: Sequence[Run]) -> str:
    """Tabulates test figures and escape steps of runs of one task and start, one row per method."""
    n, part = runs[0].samples, runs[0].part
    names = _names(n)
    before = [_merit(before_training(runs, name)) for name in names]
    rows = [["before training", "", *before, "", ""]] if any(before) else []
    for method, some in methods(runs).items():
        done = sum(run.state == DONE for run in some)
        cells = [_merit(summarize(some, name)) or _DASH for name in names]
        rows.append([_whole(html.escape(method)), f"{done} of {len(some)}", *cells, *_escapes(some)])
    escapes = [
        _whole(f"step with {symbol('P̂')} ≥ {ESCAPED}"), _whole(f"with max {symbol('c_m/M^q')} &gt; {ESCAPED}"),
    ]  # fmt: skip
    heads = ["method", "seeds done", *_heads(n), *escapes]
    caption = ""
    if prompts := max((len(run.outcomes["pass@1"]) for run in runs if run.outcomes), default=0):
        half = " of the cold half" if part else ""
        caption = (
            f"{prompts} test prompts{half}, {n} samples each; where none came out right, a rate of up to "
            f"{3 / prompts:.1%} could be missed."
        )
    if part and not step_part(runs):
        caption += f" Steps are those of both halves together: {symbol('P̂')} and {symbol('c_m/M^q')} of a whole batch."
    for column in (6, 5):
        if all(row[column] in ("", _DASH) for row in rows):
            heads, rows = _without(heads, column), [_without(row, column) for row in rows]
    return table(heads, rows, caption) + _details(runs)


def before_training(runs: Sequence[Run], name: str) -> Summary:
    """Summarizes a test metric of the model before training, from one run per seed: the first that measured it.

    Runs whose evaluations sample a rationale come first; those of sft do not.
    """
    measured = [run for run in reversed(runs) if run.metric_before("pass@1") is not None]
    starts = {run.config["seed"]: run for run in sorted(measured, key=lambda run: run.samples_rationales)}
    return spread(_values([starts[seed] for seed in sorted(starts)], name, Run.metric_before))


def _details(runs: Sequence[Run]) -> str:
    """Tabulates each seed's figures, and those of the last checkpoint if measured, in a part that opens on a click."""
    names, rows = _names(runs[0].samples), []
    several = any(len(some) > 1 for some in methods(runs).values())
    for method, some in methods(runs).items():
        for which, read in (("best", Run.metric_after), ("last", Run.metric_last)):
            values = [_values(some, name, read) for name in names]
            if any(values) and (several or which == "last"):
                each = (", ".join(f"{x:.3f}" for x in found) or _DASH for found in values)
                rows.append([_whole(html.escape(method)), which, *map(_whole, each)])
    if not rows:
        return ""
    shown = table(["method", "checkpoint", *_heads(runs[0].samples)], rows)
    return f"<details><summary>{_EVERY if several else _LAST}</summary>\n{shown}</details>\n"


def _names(n: int) -> tuple[str, str, str]:
    return "pass@1", f"pass@{n}", f"maj@{n}"


def _heads(n: int) -> list[str]:
    return [symbol("p@1"), symbol("p@n", f"p@{n}"), symbol("m@n", f"m@{n}")]


def _without(row: Sequence[str], column: int) -> list[str]:
    return [*row[:column], *row[column + 1 :]]


def _values(runs: Sequence[Run], name: str, read: Callable[[Run, str], float | None]) -> list[float]:
    return [value for run in runs if (value := read(run, name)) is not None]


def _escapes(runs: Sequence[Run]) -> tuple[str, str]:
    """Writes when the runs escaped by P̂ and, for those with a q, by max c_m/M^q."""
    begun = [run for run in runs if run.last_step is not None]
    by_advantage = [run.when(run.advantage_step) for run in begun if run.has_advantages]
    by_p_hat = [run.when(run.escape_step) for run in begun]
    return _together(by_p_hat), _together(by_advantage)


def _together(steps: Sequence[str]) -> str:
    """Writes the seeds' steps in order, or the one word that all share."""
    return _whole(steps[0] if len(set(steps)) == 1 and not steps[0].isdigit() else ", ".join(steps)) if steps else _DASH


def _merit(found: Summary) -> str:
    """Writes a cell in one line: the mean over seeds, their spread and the interval; "" if there is no value."""
    if not found.values:
        return ""
    low, high = f"{found.low:.3f}", f"{found.high:.3f}"
    interval = "" if np.isnan(found.low) or low == high else f' <span class="note">[{low}, {high}]</span>'
    return _whole(f"{_mean(found)}{interval}")


def _whole(text: str) -> str:
    """Keeps a cell's text in one line on wide screens."""
    return f'<span class="whole">{text}</span>'


def _mean(found: Summary) -> str:
    return f"<b>{found.mean:.3f}</b>" + ("" if np.isnan(found.sd) else f" ± {found.sd:.3f}")


def paper_tables(runs: Sequence[Run]) -> str:
    """Tabulates the paper's test figures, cold and warm, next to those of the runs, on the runs' sets.

    Rows and sets without a finished run are named below. Returns "" if no run is on one of the paper's sets.
    """
    had = {name: of_set for name in SETS if (of_set := [run for run in runs if run.config.get("task.name") == name])}
    if not had:
        return ""
    parts = []
    for start in dict.fromkeys(arm.start for arm in PAPER):
        rows, missing = [], [SETS[name] for name in SETS if name not in had]
        for name, of_set in had.items():
            some = [run for run in of_set if run.config["task.start"] == start]
            for arm, row in PAPER.items():
                if arm.start != start or name not in row:
                    continue
                variants = {run.variant: _ours([r for r in some if r.variant == run.variant], arm) for run in some}
                for variant, ours in (variants or {"": [_DASH] * len(FIGURES)}).items():
                    label = html.escape(", ".join(filter(None, (arm.method, variant))))
                    pairs = zip(map(_percent, row[name]), ours, strict=True)
                    rows.append([SETS[name], _whole(label), *itertools.chain(*pairs)])
                if all(cell == _DASH for ours in variants.values() for cell in ours):
                    missing.append(f"{SETS[name]} {arm.method}")
        heads = ["set", "method", *(f"{name}, {whose}" for name in FIGURES for whose in ("paper", "here"))]
        caption = (
            f"{start.capitalize()} start; n = 16 in the paper; here mean ± standard deviation over seeds, and how many."
        )
        parts.append(table(heads, rows, caption))
        if missing:
            parts.append(f'<p class="note">Without a finished run here: {"; ".join(missing)}.</p>\n')
    return "".join(parts)


def _percent(value: float | None) -> str:
    return _DASH if value is None else f"{value / 100:.3f}"


def _ours(runs: Sequence[Run], arm: Arm) -> list[str]:
    """Writes our figures for a row of the paper's tables, one cell for each of FIGURES."""
    of_arm = by_seed({arm.start: runs}, arm).values()
    found = [spread([x for run in of_arm if (x := figure(run, name, arm.estimator)) is not None]) for name in FIGURES]
    return [f"{_mean(x)} ({len(x.values)})" if x.values else _DASH for x in found]
