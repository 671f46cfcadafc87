"""Draws the report's figures. Okabe and Ito's colours, dashes and markers tell lines apart in print and to everyone."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tsallis_rl.laboratory.figures import SETTINGS, STYLES, THEORY
from tsallis_rl.report.runs import ESCAPED, Run, methods, settings
from tsallis_rl.report.statistics import fitted_constant, flow_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Drawn(NamedTuple):
    """A figure that was written.

    Attributes:
      file: the PNG.
      title: one line.
      caption: what the figure shows, and how.
    """

    file: Path
    title: str
    caption: str


_LOG_P = "train/log_p_hat_mean"
_RATIO = "/norm_ratio"
OVER_SEEDS = "Lines: the mean over the seeds that have come to the step; bands: from their lowest to their highest."


def draw(runs: Sequence[Run], folder: Path, names: Sequence[str] | None = None) -> list[Drawn]:
    """Draws NAME.png of every figure, or of those in `names`, for which the runs have numbers.

    Runs of several tasks or starts have figures of their own, NAME-1.png, NAME-2.png, … in the order of `settings`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an axis without points has no limits to set
        found = settings(runs)
        for i, (setting, some) in enumerate(found.items(), 1):
            begun = [run for run in some if run.records]
            for name in FIGURES if names is None else names:
                title, make = FIGURES[name]
                file = folder / (f"{name}-{i}.png" if len(found) > 1 else f"{name}.png")
                figure = plt.figure()
                if caption := make(begun, figure):
                    figure.savefig(file)
                    drawn.append(Drawn(file, f"{title}: {setting}" if len(found) > 1 else title, caption))
                plt.close(figure)
    return drawn


def _kind(run: Run) -> tuple[Any, ...]:
    """Returns the sort key that decides the look of a run's line, so that one q looks the same in every panel."""
    return (run.q is None, run.q or 0.0, run.variant, "" if run.q is not None else run.method)


def _style(runs: Sequence[Run], run: Run) -> dict[str, Any]:
    kinds = sorted({_kind(other) for other in runs})
    rank = kinds.index(_kind(run))
    style = STYLES[rank % len(STYLES)]
    if len(kinds) <= len(STYLES):
        return style
    import matplotlib

    return style | {"color": matplotlib.colormaps["viridis"](0.9 * rank / (len(kinds) - 1))}


def over_seeds(runs: Sequence[Run], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Collects a metric over runs: steps at which any has it, values [runs, steps], NaN where one has none."""
    curves = [dict(zip(*(x.tolist() for x in run.curve(name)), strict=True)) for run in runs]
    steps = sorted(set().union(*curves))
    return np.array(steps), np.array([[curve.get(step, np.nan) for step in steps] for curve in curves])


def _line(axis: "Axes", runs: Sequence[Run], name: str, label: str, style: dict[str, Any]) -> None:
    steps, values = over_seeds(runs, name)
    if not len(steps):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # steps at which no run is finite
        mean, low, high = np.nanmean(values, 0), np.nanmin(values, 0), np.nanmax(values, 0)
    axis.plot(steps, mean, label=_shown(label), markevery=(len(steps) // 12 or 1), **style)
    if len(runs) > 1:
        axis.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _shown(text: str) -> str:
    """Makes a label of a name that other files hold: short, printable, and read as no formula."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return (line if len(line) <= 60 else f"{line[:59]}…").replace("$", r"\$")


def _panels(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Groups runs by estimator; estimators without a commitment share a panel."""
    panels: dict[str, list[Run]] = {}
    for run in runs:
        panels.setdefault(run.estimator.upper() if run.q is not None else "without q", []).append(run)
    return panels


def _grid(figure: "Figure", rows: int, columns: int, **share: Any) -> np.ndarray:
    width = min(3.4 * columns, 10.5) if columns > 1 else 5.2
    figure.set_size_inches(width, (2.7 if rows < 3 else 2.0) * rows + 0.2)
    return figure.subplots(rows, columns, squeeze=False, **share)


def _curves(runs: Sequence[Run], figure: "Figure", metrics: dict[str, str], **axes: Any) -> bool:
    """Draws a row a metric {name: y label}, a column an estimator, a line a method; False if there are no numbers."""
    panels = _panels([run for run in runs if any(len(run.curve(name)[0]) for name in metrics)])
    if not panels:
        return False
    grid = _grid(figure, len(metrics), len(panels), sharex=True, sharey="row")
    for row, (name, label) in zip(grid, metrics.items(), strict=True):
        row[0].set_ylabel(label)
        for axis, some in zip(row, panels.values(), strict=True):
            for method, same in methods(some).items():
                short = method.partition(" q = ")[2]
                _line(axis, same, name, f"q = {short}" if short else method, _style(runs, same[0]))
            axis.set(**axes)
    for column, title in zip(grid.T, panels, strict=True):
        column[0].set_title(_shown(title))
        column[0].legend()
        column[-1].set_xlabel("step")
    return True


def _advantage(runs: Sequence[Run], figure: "Figure") -> str | None:
    with_q = [run for run in runs if run.q is not None]
    if not _curves(with_q, figure, {"train/max_advantage": r"max $c_m / M^q$"}):
        return None
    return (
        "The largest of a step's c_m/M^q, with c_m = w_m/w̄^q − w̄_¬m^(1−q) (figure 3 of the paper): near 0 while no "
        f"rollout stands out, up to 1 where a single one carries its group. {OVER_SEEDS}"
    )


def _success(runs: Sequence[Run], figure: "Figure") -> str | None:
    part, n = runs[0].part if runs else "", runs[0].samples if runs else 0
    metrics = {
        _LOG_P: "mean log P̂, training",
        f"eval/validation/{part}pass@1": "p@1, validation",
        f"eval/validation/{part}maj@{n}": f"m@{n}, validation",
    }
    if not _curves(runs, figure, metrics):
        return None
    half = " Accuracy is that of the cold half." if part else ""
    return f"P̂, the mean weight of a prompt's rollouts, in nats; and accuracy of sampled answers.{half} {OVER_SEEDS}"


def _escape(runs: Sequence[Run], figure: "Figure") -> str | None:
    trained = [run for run in runs if run.q is not None and not run.variant and len(run.curve(_LOG_P)[0])]
    if len({run.q for run in trained}) < 2:
        return None
    log_p0 = float(np.mean([run.curve(_LOG_P)[1][0] for run in trained]))
    last = max(int(run.curve(_LOG_P)[0][-1]) for run in trained)
    axis = _grid(figure, 1, 1)[0, 0]
    for i, (title, some) in enumerate(_panels(trained).items()):
        style = STYLES[1 + i % 5] | {"linestyle": "none"}
        for escaped in (True, False):
            chosen = [run for run in some if (run.escape_step is None) != escaped]
            points = [(run.q + 0.012 * i, (run.escape_step if escaped else last) + 1) for run in chosen]
            face = {} if escaped else {"markerfacecolor": "none"}
            label = title if escaped else f"{title}: not within {last + 1} updates"
            if points:
                axis.plot(*zip(*points, strict=True), label=_shown(label), **style, **face)
    prediction = _prediction(axis, [run for run in trained if run.escape_step is not None], log_p0)
    axis.set(xlabel="commitment q", ylabel="updates until escape", yscale="log", ylim=(0.6, 30 * (last + 1)))
    axis.legend(fontsize=7)
    return (
        f"Updates until P̂ (geometric mean over a step's prompts) is {ESCAPED} or more; a marker a run, hollow where it "
        f"was not when the run ended (drawn at its last step; the true value is above). {prediction}"
    )


def _prediction(axis: "Axes", free: Sequence[Run], log_p0: float) -> str:
    """Draws the gradient flow's time through the runs that escaped, and says how it fits."""
    log_p1 = np.log(ESCAPED)
    if not free or log_p0 >= log_p1:
        return "No gradient flow is drawn: no run escaped from below."
    of_q = {q: np.mean([run.escape_step + 1 for run in free if run.q == q]) for q in sorted({run.q for run in free})}
    times = dict(zip(of_q, flow_time(log_p0, log_p1, np.array(list(of_q))), strict=True))
    constant = fitted_constant(*(np.array([x[run.q] for run in free]) for x in (of_q, times)))
    q = np.linspace(0, 1, 101)
    axis.plot(q, constant * flow_time(log_p0, log_p1, q), label="gradient flow × one constant", **THEORY)
    text = (
        "The line is the time that gradient flow with a score of constant size takes from p0 to p1, "
        "(p0^−(1−q) − p1^−(1−q))/(1−q), below q = 1 about p0^−(1−q)/(1−q), "
        f"with log p0 = {log_p0:.1f} (mean log P̂ of the first step) and p1 = {ESCAPED}, times one constant, "
        f"{constant:.2g} updates, fitted to the {len(free)} runs that escaped (least squares of logarithms)."
    )
    if len(of_q) > 1:
        few, many = min(of_q, key=of_q.get), max(of_q, key=of_q.get)
        near = all(0.5 <= of_q[q] / (constant * times[q]) <= 2 for q in of_q)
        text += (
            f" Among the q that escaped the slowest (q = {many:g}) took {of_q[many] / of_q[few]:.2g} times as long as "
            f"the fastest (q = {few:g}); the flow has a factor of {max(times.values()) / min(times.values()):.2g} "
            f"between its own. With {free[0].config.get('optimizer.name')} the line "
            f"{'fits' if near else 'does not fit'} (to a factor of 2 at every q)."
        )
    return text


def _stability(runs: Sequence[Run], figure: "Figure") -> str | None:
    by_q: dict[float, dict[str, list[Run]]] = {}
    for run in runs:
        if run.estimator in ("garl", "paft") and not run.variant:
            by_q.setdefault(run.q, {}).setdefault(run.estimator, []).append(run)
    both = {q: pair for q, pair in sorted(by_q.items()) if len(pair) == 2}
    if not both:
        return None
    n, part = runs[0].samples, runs[0].part
    grid = _grid(figure, 1, len(both), sharey=True)
    for axis, (q, pair) in zip(grid[0], both.items(), strict=True):
        for style, (name, some) in zip(STYLES[1:], sorted(pair.items()), strict=False):
            _line(axis, some, f"eval/validation/{part}maj@{n}", name.upper(), style)
        axis.set(title=f"q = {q:g}", xlabel="step", ylim=(-0.03, 1.03))
    grid[0, 0].set_ylabel(f"m@{n}, validation")
    grid[0, -1].legend()
    return f"GARL and PAFT at the same q: a collapse is a curve that falls after its best. {OVER_SEEDS}"


def _sample_size(runs: Sequence[Run], figure: "Figure") -> str | None:
    metrics = {"train/effective_sample_size": "effective sample size", "train/unique_draws": "unique draws expected"}
    if not _curves(runs, figure, metrics):
        return None
    m = runs[0].config.get("rollouts.num_rollouts")
    return (
        f"(Σw)²/Σw², the number of rollouts of a group that carry its weight, out of M = {m}; and how many different "
        f"ones M draws in proportion to w would reach, which is what PAFT trains on. {OVER_SEEDS}"
    )


def _rationales(runs: Sequence[Run], figure: "Figure") -> str | None:
    metrics = {
        "train/rationale_length": "rationale length, tokens",
        "train/closed_sampled": "closed by itself",
        "train/closed_forced": "closed by the budget",
        "train/unclosed": "ended without closing",
    }
    if not _curves(runs, figure, metrics):
        return None
    return f"Mean length of rationales, and shares of rollouts by how the rationale closed. {OVER_SEEDS}"


def _gain(runs: Sequence[Run], figure: "Figure") -> str | None:
    part = runs[0].part if runs else ""
    metrics = {
        f"eval/validation/{part}rationale_gain": "gain by a rationale, nats",
        f"eval/validation/{part}unique_rationales": "unique rationales",
        f"eval/validation/{part}rationale_length": "rationale length, tokens",
    }
    if not _curves(runs, figure, metrics):
        return None
    return (
        "Validation: log P̂ − log p(gold with thinking closed at once), the mean over prompts; the share of a prompt's "
        f"samples whose rationale no earlier one has; and the mean length of rationales. {OVER_SEEDS}"
    )


def _optimizer(runs: Sequence[Run], figure: "Figure") -> str | None:
    metrics = {"train/below_eps": "share of parameters below eps"}
    if not _curves(runs, figure, metrics, ylim=(-0.02, 1.02)):
        return None
    return (
        "Share of parameters whose Adam √v̂ is below eps. At 1 the optimiser sees no gradient, and a gradient's size, "
        f"which is what q changes, decides; at 0 that size cancels. {OVER_SEEDS}"
    )


def _gradient_comparison(runs: Sequence[Run], figure: "Figure") -> str | None:
    watched = [(method, some) for method, some in methods(runs).items() if _compared(some[0])]
    if not watched:
        return None
    measures = {"cosine": "cosine to reference", "norm_ratio": "norm ratio", "variance": "variance over prompts"}
    grid = _grid(figure, len(watched), 3, sharex=True)
    for row, (method, some) in zip(grid, watched, strict=True):
        for axis, (measure, label) in zip(row, measures.items(), strict=True):
            for i, name in enumerate(_compared(some[0])):
                style = STYLES[i % len(STYLES)] | ({"alpha": 0.5} if i >= len(STYLES) else {})
                _line(axis, some, f"shadow/{name}/{measure}", name, style)
            axis.set(title=f"trained by {_shown(method)}" if measure == "cosine" else "", ylabel=label, xlabel="step")
            if measure != "cosine":
                axis.set_yscale("log")
        row[0].set_ylim(top=1.05)
        row[-1].legend(fontsize=6.5, ncols=2)
    return (
        "Which q now? What other estimators would have made of the same rollouts: the cosine of their gradient to a "
        "reference for ∇ℓ_q from many more rollouts, the ratio of the norms, and the variance of a prompt's gradient "
        f"relative to the squared norm of the mean. {OVER_SEEDS}"
    )


def _compared(run: Run) -> list[str]:
    """Lists the estimators that a run compared by gradient, as NAME@Q."""
    names = dict.fromkeys(name for record in run.records for name in record if name.endswith(_RATIO))
    return [name.removeprefix("shadow/").removesuffix(_RATIO) for name in names]


FIGURES: dict[str, tuple[str, Callable[[Sequence[Run], "Figure"], str | None]]] = {
    "advantage": ("The largest advantage", _advantage),
    "success": ("Success and accuracy", _success),
    "escape": ("Escape against the commitment", _escape),
    "stability": ("GARL against PAFT", _stability),
    "sample_size": ("Effective sample size", _sample_size),
    "rationales": ("Rationales", _rationales),
    "gain": ("What a rationale is worth", _gain),
    "optimizer": ("What the optimiser sees", _optimizer),
    "shadows": ("Gradient comparison", _gradient_comparison),
}
