"""Draws curves of runs in panels, with one legend; a run's line looks the same in every figure."""

import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tsallis_rl.laboratory.colors import style_of
from tsallis_rl.report.runs import Run, methods
from tsallis_rl.runs.own_code import is_dotted
from tsallis_rl.runs.progress import count_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Line(NamedTuple):
    """A line: runs that differ only in their seed, its label in the legend, and its style."""

    runs: Sequence[Run]
    label: str
    style: dict[str, Any]


Panels = dict[str, list[Line]]  # title -> lines
_SHARES = ("closed_sampled", "closed_forced", "unclosed", "unique_rationales", "below_eps", "max_advantage")
COLUMNS = 5  # panels in a row; more go on rows below
MOST_PANELS = 20  # panels in a figure; nobody looks at a larger picture
SMOOTHED = 20  # a running mean covers 1/SMOOTHED of the steps


def style_of_run(run: Run) -> dict[str, Any]:
    """Looks up a run's line style, by its estimator and commitment alone, so that it does not depend on other runs."""
    name = run.label if is_dotted(run.estimator) else run.estimator
    return style_of(name, run.q, run.commitment, run.config.get("estimator.tau", 1.0))


def over_seeds(runs: Sequence[Run], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Collects a metric over runs: the steps at which any run has it, and values [runs, steps], NaN if missing."""
    curves = [dict(zip(*(x.tolist() for x in run.curve(name)), strict=True)) for run in runs]
    steps = sorted(set().union(*curves))
    return np.array(steps), np.array([[curve.get(step, np.nan) for step in steps] for curve in curves])


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Averages values [steps] over the `width` around each, fewer at the ends and where one is NaN → [steps]."""
    there = np.isfinite(values)
    total, count = (np.convolve(x, np.ones(width), "same") for x in (np.where(there, values, 0.0), there * 1.0))
    return total / np.where(count == 0, np.nan, count)


def draw_line(axis: "Axes", line: Line, name: str) -> None:
    """Draws the mean over seeds, with a band from the lowest to the highest."""
    steps, values = over_seeds(line.runs, name)
    if not len(steps):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # steps at which no run is finite
        mean, low, high = np.nanmean(values, 0), np.nanmin(values, 0), np.nanmax(values, 0)
    axis.plot(steps, mean, label=printable(line.label), markevery=(len(steps) // 12 or 1), **line.style)
    if len(line.runs) > 1:
        axis.fill_between(steps, low, high, color=line.style["color"], alpha=0.15, linewidth=0)


def draw_smoothed(axis: "Axes", line: Line, name: str) -> None:
    """Draws the running mean of the mean over seeds, and faintly every seed's own values."""
    steps, values = over_seeds(line.runs, name)
    if not len(steps):
        return
    for one in values:
        axis.plot(steps, one, color=line.style["color"], linewidth=0.5, alpha=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = np.nanmean(values, 0)
    style = line.style | {"marker": "", "linewidth": 1.8}
    axis.plot(steps, smoothed(mean, len(steps) // SMOOTHED or 1), label=printable(line.label), **style)


def printable(text: str, width: int = 60) -> str:
    """Makes a label of a name that other files hold: short, printable, and read as no formula."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return (line if len(line) <= width else f"{line[: width - 1]}…").replace("$", r"\$")


def by_estimator(runs: Sequence[Run]) -> Panels:
    """Gives each estimator a panel, then each variant of it; estimators without a commitment share one."""
    panels: Panels = {}
    for some in sorted(methods(runs).values(), key=lambda some: some[0].variant):
        run = some[0]
        title, label = run.label, run.commitment_text
        if run.q is None:
            title, label = "without q", " ".join(filter(None, (title, label)))
        title = f"{title}, {run.variant}" if run.variant else title
        panels.setdefault(title, []).append(Line(some, label, style_of_run(run)))
    return panels


def by_q(runs: Sequence[Run]) -> Panels:
    """Gives each q a panel, and each variant of it; estimators share it."""
    panels: Panels = {}
    with_q = sorted((run for run in runs if run.q is not None), key=lambda run: (run.variant, run.q))
    for some in methods(with_q).values():
        run = some[0]
        title = f"q = {run.q:g}, {run.variant}" if run.variant else f"q = {run.q:g}"
        panels.setdefault(title, []).append(Line(some, run.label, style_of_run(run)))
    return panels


def draw_panels(
    figure: "Figure",
    panels: Panels,
    metrics: dict[str, str],
    line: Callable[["Axes", Line, str], None] = draw_line,
) -> str:
    """Draws one row per metric {name: y label} and one column per panel, wrapping into further rows.

    Returns a sentence that explains the lines, or "" if there are no numbers. A metric's panels share their y axis:
    from 0 to 1 for a share, from 0 up for a length.
    """
    having = {
        title: some
        for title, lines in panels.items()
        if (some := [one for one in lines if any(len(run.curve(name)[0]) for name in metrics for run in one.runs)])
    }
    if not having:
        return ""
    shown = dict(list(having.items())[:MOST_PANELS])
    high = math.ceil(len(shown) / COLUMNS)
    wide = math.ceil(len(shown) / high)
    grid = grid_of(figure, high * len(metrics), wide, sharex=True)
    for i, (name, label) in enumerate(metrics.items()):
        for place in range(high * wide):
            axis = grid[place // wide * len(metrics) + i, place % wide]
            if place:
                axis.sharey(grid[i, 0])
            if place >= len(shown):
                axis.set_axis_off()
                continue
            title, lines = list(shown.items())[place]
            for one in lines:
                line(axis, one, name)
            if i == 0:
                axis.set_title("\n".join(textwrap.wrap(printable(title, 90), 26)))
            axis.tick_params(labelleft=place % wide == 0, labelbottom=i == len(metrics) - 1)
            if place % wide == 0:
                axis.set_ylabel(label)
            if i == len(metrics) - 1:
                axis.set_xlabel("step")
        if name.rpartition("/")[2].startswith(("pass@", "maj@", *_SHARES)):
            grid[i, 0].set_ylim(-0.04, 1.04)
        elif name.endswith("rationale_length"):  # from 0, so that lengths that hardly change look alike
            grid[i, 0].set_ylim(0, 1.05 * grid[i, 0].get_ylim()[1])
    _legend(figure, [one for lines in shown.values() for one in lines])
    rest = len(having) - len(shown)
    left_out = f" {count_of(rest, 'further panel')} are not drawn." if rest else ""
    return f"{sentence_on_seeds([run for lines in shown.values() for one in lines for run in one.runs])}{left_out}"


def _legend(figure: "Figure", lines: Sequence[Line]) -> None:
    """Draws one legend above all panels, one entry per label; all grey if a label occurs in several colours."""
    from matplotlib.lines import Line2D

    looks: dict[str, dict[str, Any]] = {}
    colors: dict[str, set[str]] = {}
    for one in sorted(lines, key=lambda one: one.runs[0].q if one.runs[0].q is not None else 2.0):
        looks.setdefault(printable(one.label), one.style)
        colors.setdefault(printable(one.label), set()).add(one.style["color"])
    grey = {"color": "0.3", "marker": ""} if max(map(len, colors.values())) > 1 else {}
    handles = [Line2D([], [], **style | grey, label=label) for label, style in looks.items()]
    width = max(len(label) for label in looks) + 6
    columns = max(1, int(figure.get_figwidth() * 13 // width))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(columns, len(handles)))


def sentence_on_seeds(runs: Sequence[Run]) -> str:
    """Describes what lines and bands show."""
    if len({run.config.get("seed") for run in runs}) < 2:
        return "One seed a line."
    return "Lines: the mean over the seeds that have come to the step; bands: from their lowest to their highest."


def grid_of(figure: "Figure", rows: int, columns: int, **share: Any) -> np.ndarray:
    """Makes axes [rows, columns] in a figure that fits a page's width."""
    width = min(3.4 * columns, 10.5) if columns > 1 else 5.2
    figure.set_size_inches(width, (2.7 if rows < 3 else 2.0) * rows + 0.5)
    return figure.subplots(rows, columns, squeeze=False, **share)
