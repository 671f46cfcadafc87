"""Tabulates test figures: every method's, and the paper's with ours beside."""

import html
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from tsallis_rl.evaluation.intervals import RESAMPLES
from tsallis_rl.report.claims import FIGURES, PAPER, SETS, Arm
from tsallis_rl.report.orderings import by_seed, figure
from tsallis_rl.report.runs import DONE, ESCAPED, Run, methods
from tsallis_rl.report.statistics import Summary, spread, summarize
from tsallis_rl.report.tables import table

_DASH = "–"


NOTE = (
    "Test split, the checkpoint with the best validation m@n. Mean ± standard deviation over seeds; in brackets a 95% "
    f"bootstrap interval of that mean ({RESAMPLES} resamples of the test prompts within each run): it says how well "
    "these prompts measure these runs, not how other seeds would end; it has no width where every prompt came out "
    "alike. Below, every seed in order; then the last checkpoint's, where it was tested."
)


def figures_of_merit(runs: Sequence[Run]) -> str:
    """Tabulates test figures and steps of escape of runs of one task and start, a row a method."""
    n, part = runs[0].samples, runs[0].part
    names = ("pass@1", f"pass@{n}", f"maj@{n}")
    measured = [run for run in reversed(runs) if run.metric_before("pass@1") is not None]
    # Of each seed the first run's, of those whose evaluations sample a rationale where there are any: sft's do not.
    starts = {run.config["seed"]: run for run in sorted(measured, key=lambda run: run.samples_rationales)}
    before = [_values([starts[seed] for seed in sorted(starts)], name, Run.metric_before) for name in names]
    rows = [["before training", "", *(_merit(spread(values)) for values in before), "", ""]]
    for method, some in methods(runs).items():
        done = sum(run.state == DONE for run in some)
        last = [_values(some, name, Run.metric_last) for name in names]
        cells = [_merit(summarize(some, name), values) for name, values in zip(names, last, strict=True)]
        steps = [", ".join(found) for found in _escapes(some)]
        name = f'<span class="whole">{html.escape(method)}</span>'
        rows.append([name, f"{done} of {len(some)}", *cells, *(text or _DASH for text in steps)])
    escapes = [f"first step with P̂ ≥ {ESCAPED}", f"with max c<sub>m</sub>/M<sup>q</sup> &gt; {ESCAPED}"]
    heads = ["method", "seeds done", "p@1", f"p@{n}", f"m@{n}", *escapes]
    prompts = runs[0].config.get("task.test_examples")
    half = ", their cold half" if part else ""
    caption = (
        f"{prompts} test prompts{half}, {n} samples each; where none came out right, a rate of up to {3 / prompts:.1%} "
        "could be missed."
        if prompts
        else ""
    )
    return table(heads, rows, caption)


def _values(runs: Sequence[Run], name: str, read: Callable[[Run, str], float | None]) -> list[float]:
    return [value for run in runs if (value := read(run, name)) is not None]


def _escapes(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Says when the runs escaped by P̂, and by max c_m/M^q those with a q."""
    begun = [run for run in runs if run.last_step is not None]
    by_advantage = [run.when(run.advantage_step) for run in begun if run.q is not None]
    return [run.when(run.escape_step) for run in begun], by_advantage


def _merit(found: Summary, last: Sequence[float] = ()) -> str:
    """Writes a cell: mean over the seeds, their spread, and each; `last` are those of the last checkpoint."""
    lines = [_mean(found)] if found.values else [] if last else [_DASH]
    if not np.isnan(found.low):
        lines.append(f"[{found.low:.3f}, {found.high:.3f}]")
    if found.values:
        lines.append(_note(", ".join(f"{value:.3f}" for value in found.values)))
    if last:
        lines += [_note(f"last: {np.mean(last):.3f}"), _note(", ".join(f"{value:.3f}" for value in last))]
    return f'<span class="whole">{"<br>".join(lines)}</span>'


def _note(text: str) -> str:
    return f'<span class="note">{text}</span>'


def _mean(found: Summary) -> str:
    return f"<b>{found.mean:.3f}</b>" + ("" if np.isnan(found.sd) else f" ± {found.sd:.3f}")


def paper_tables(runs: Sequence[Run]) -> str:
    """Tabulates the paper's test figures on the sets that the runs have, cold and warm, with theirs beside.

    Rows and sets without a finished run are named below. Empty where no run is of one of the sets.
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
                    rows.append([SETS[name], f'<span class="whole">{label}</span>', *itertools.chain(*pairs)])
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
    """Writes our figures for a row of the paper's tables, a cell each of FIGURES."""
    of_arm = by_seed({arm.start: runs}, arm).values()
    found = [spread([x for run in of_arm if (x := figure(run, name, arm.estimator)) is not None]) for name in FIGURES]
    return [f"{_mean(x)} ({len(x.values)})" if x.values else _DASH for x in found]
