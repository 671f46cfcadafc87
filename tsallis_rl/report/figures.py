"""Draws the report's figures; each q has the same colour in all of them (`tsallis_rl.laboratory.colors`)."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tsallis_rl.laboratory.colors import color_of_q, style_of
from tsallis_rl.laboratory.figures import SETTINGS, THEORY
from tsallis_rl.report.panels import (
    Line,
    by_estimator,
    by_q,
    draw_line,
    draw_panels,
    draw_smoothed,
    grid_of,
    printable,
    sentence_on_seeds,
    style_of_run,
)
from tsallis_rl.report.runs import ESCAPED, Run, methods, settings, step_part
from tsallis_rl.report.statistics import fitted_constant, flow_time
from tsallis_rl.runs.json_files import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Drawn(NamedTuple):
    """A figure that was written.

    Attributes:
      name: a key of FIGURES.
      setting: the task and start of its runs; empty if all runs share them.
      file: the PNG.
      title: one line, the same for every setting.
      caption: explains what the figure shows, and how.
    """

    name: str
    setting: str
    file: Path
    title: str
    caption: str


_RATIO = "/norm_ratio"
_AT_ONCE = 0.5  # updates, on a logarithmic axis, of a run that needed none


def draw(runs: Sequence[Run], folder: Path, names: Sequence[str] | None = None) -> list[Drawn]:
    """Draws NAME.png for every figure, or those in `names`, for which the runs have numbers.

    If there are several tasks or starts, each gets its own figures: NAME-1.png, NAME-2.png, … in the order of
    `settings`.
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
                    drawn.append(Drawn(name, setting if len(found) > 1 else "", file, title, caption))
                plt.close(figure)
    return drawn


def _advantage(runs: Sequence[Run], figure: "Figure") -> str | None:
    metrics = {f"train/{step_part(runs)}max_advantage": r"max $c_m / M^q$"}
    if not (lines := draw_panels(figure, by_q(runs), metrics, draw_smoothed)):
        return None
    for axis in figure.axes:
        if axis.axison:
            axis.axhline(1.0, **THEORY | {"linestyle": "--"})
            axis.axhline(ESCAPED, **THEORY | {"linestyle": ":"})
    figure.axes[0].annotate(
        "bound", (1.0, 1.0), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom"
    )
    figure.axes[0].set_ylim(-0.04, 1.12)
    seeds = "" if lines.startswith("One seed") else " over the seeds"
    without = " Methods without q have none." if any(run.q is None for run in runs) else ""
    return (
        "The largest of a step's c_m/M^q, with c_m = w_m/w̄^q − w̄_¬m^(1−q) (figure 3 of the paper). It is near 0 while "
        "no rollout has much more weight than the others, and 1, its bound (dashed), where one has w = 1 and the "
        f"others none. Thick: the mean{seeds}, smoothed over a twentieth of the steps; faint: each seed's values. "
        f"Dotted: {ESCAPED}; the tables name the first step whose value is above it.{without}"
    )


def _success(runs: Sequence[Run], figure: "Figure") -> str | None:
    part, n = runs[0].part if runs else "", runs[0].samples if runs else 0
    metrics = {
        f"train/{step_part(runs)}log_p_hat_mean": "mean log P̂, training",
        f"eval/validation/{part}pass@1": "p@1, validation",
        f"eval/validation/{part}maj@{n}": f"m@{n}, validation",
    }
    if not (lines := draw_panels(figure, by_estimator(runs), metrics)):
        return None
    half = f" {'Both are those' if step_part(runs) else 'Accuracy is that'} of the cold half." if part else ""
    return f"log P̂ in nats (P̂: the mean weight of a prompt's rollouts), and accuracy of sampled answers.{half} {lines}"


def _escape(runs: Sequence[Run], figure: "Figure") -> str | None:
    plain_runs = [run for run in runs if run.q is not None and run.q_is_constant and not run.variant]
    trained = [run for run in plain_runs if len(run.log_p_hat[0])]
    if len({run.q for run in trained}) < 2:
        return None
    log_p0 = float(np.mean([run.log_p_hat[1][0] for run in trained]))
    last = max(int(run.log_p_hat[0][-1]) for run in trained)
    axis = grid_of(figure, 1, 1)[0, 0]
    hollow = False
    names = list(dict.fromkeys(run.label for run in trained))
    for i, name in enumerate(names):
        style = {"linestyle": "none", "marker": "osD^v"[i % 5]}
        axis.plot([], [], color="0.3", label=printable(name), **style)
        for run in (run for run in trained if run.label == name):
            step, color = run.escape_step, color_of_q(run.q)
            face = {"markerfacecolor": "none"} if step is None else {}
            hollow |= step is None
            at = run.updates if step is None else step
            axis.plot([run.q + 0.012 * i], [max(at, _AT_ONCE)], color=color, **style, **face)
    if hollow:
        axis.plot([], [], "o", color="0.3", markerfacecolor="none", label="not by its last update so far")
    prediction = _prediction(axis, [run for run in trained if run.escape_step], log_p0)
    half = "the cold half" if step_part(trained) else "both halves of the batch"
    halves = f" P̂ is that of {half}." if trained[0].part else ""
    axis.set(xlabel="commitment q", ylabel="updates until escape", yscale="log", ylim=(0.3, 30 * (last + 1)))
    axis.legend(fontsize=7)
    return (
        f"Updates until P̂ (geometric mean over a step's prompts) is {ESCAPED} or more; a marker a run, hollow where it "
        "was not by the run's last update so far (drawn there; the true value is above). A run that began there is "
        f"drawn at {_AT_ONCE}.{halves} {prediction}"
    )


def _prediction(axis: "Axes", free: Sequence[Run], log_p0: float) -> str:
    """Draws the gradient flow's time, fitted to the runs that escaped, and describes the fit."""
    log_p1 = np.log(ESCAPED)
    if not free or log_p0 >= log_p1:
        return "No gradient flow is drawn: no run escaped from below."
    of_q = {q: np.mean([run.escape_step for run in free if run.q == q]) for q in sorted({run.q for run in free})}
    times = dict(zip(of_q, flow_time(log_p0, log_p1, np.array(list(of_q))), strict=True))
    updates = np.array([run.escape_step for run in free])
    constant = fitted_constant(updates, np.array([times[run.q] for run in free]))
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
        if run.estimator in ("garl", "paft") and run.q is not None and not run.variant:
            by_q.setdefault(run.q, {}).setdefault(run.estimator, []).append(run)
    both = {q: pair for q, pair in sorted(by_q.items()) if len(pair) == 2}
    if not both:
        return None
    n, part = runs[0].samples, runs[0].part
    grid = grid_of(figure, 1, len(both), sharey=True)
    for axis, (q, pair) in zip(grid[0], both.items(), strict=True):
        for name, some in sorted(pair.items()):
            draw_line(axis, Line(some, name.upper(), style_of_run(some[0])), f"eval/validation/{part}maj@{n}")
        axis.set(title=f"q = {q:g}", xlabel="step", ylim=(-0.04, 1.04))
        axis.legend()
    grid[0, 0].set_ylabel(f"m@{n}, validation")
    drawn = [run for pair in both.values() for some in pair.values() for run in some]
    return f"GARL and PAFT at the same q: a collapse is a curve that falls after its best. {sentence_on_seeds(drawn)}"


def _sample_size(runs: Sequence[Run], figure: "Figure") -> str | None:
    metrics = {"train/effective_sample_size": "effective sample size", "train/unique_draws": "unique draws expected"}
    if not (lines := draw_panels(figure, by_estimator(runs), metrics)):
        return None
    m = runs[0].config.get("rollouts.num_rollouts")
    return (
        f"(Σw)²/Σw²: how many rollouts of a group of M = {m} carry its weight. Below it: how many different rollouts "
        f"are expected among M independent draws in proportion to w, as PAFT makes by default. {lines}"
    )


def _rationales(runs: Sequence[Run], figure: "Figure") -> str | None:
    metrics = {
        "train/rationale_length": "rationale length, tokens",
        "train/closed_sampled": "closed by itself",
        "train/closed_forced": "closed by the budget",
        "train/unclosed": "ended without closing",
    }
    if not (lines := draw_panels(figure, by_estimator(runs), metrics)):
        return None
    return f"Mean length of rationales, and shares of rollouts by how the rationale closed. {lines}"


def _gain(runs: Sequence[Run], figure: "Figure") -> str | None:
    part = runs[0].part if runs else ""
    metrics = {
        f"eval/validation/{part}rationale_gain": "gain by a rationale, nats",
        f"eval/validation/{part}unique_rationales": "unique rationales",
        f"eval/validation/{part}rationale_length": "rationale length, tokens",
    }
    if not (lines := draw_panels(figure, by_estimator(runs), metrics)):
        return None
    return (
        "Validation: log P̂ − log p(gold with thinking closed at once), the mean over prompts; the share of a prompt's "
        f"samples whose rationale no earlier one has; and the mean length of rationales. {lines}"
    )


def _optimizer(runs: Sequence[Run], figure: "Figure") -> str | None:
    metrics = {"train/below_eps": "share of parameters below eps"}
    if not (lines := draw_panels(figure, by_estimator(runs), metrics)):
        return None
    return (
        "Share of parameters whose √v̂ in Adam is below eps. Near 0, Adam divides a gradient by its usual size, and "
        "what q changes in that size cancels. Near 1 it divides by eps: updates are small, and proportional to "
        f"gradients. {lines}"
    )


def _gradient_comparison(runs: Sequence[Run], figure: "Figure") -> str | None:
    watched = [(method, some) for method, some in methods(runs).items() if _compared(some[0])]
    if not watched:
        return None
    compared = [run for _, some in watched for run in some]
    measures = {"cosine": "cosine to reference", "norm_ratio": "norm ratio", "noise_scale": "noise scale, prompts"}
    grid = grid_of(figure, len(watched), 3, sharex=True)
    for row, (method, some) in zip(grid, watched, strict=True):
        for axis, (measure, label) in zip(row, measures.items(), strict=True):
            for name in _compared(some[0]):
                draw_line(axis, Line(some, name, _style_of_compared(name)), f"shadow/{name}/{measure}")
            axis.set(
                title=f"trained by {printable(method)}" if measure == "cosine" else "", ylabel=label, xlabel="step"
            )
            if measure != "cosine":
                axis.set_yscale("log")
        row[0].set_ylim(top=1.05)
        row[-1].legend(fontsize=6.5, ncols=2)
    return (
        "Which q now? What other estimators would have made of the same rollouts: the cosine of their gradient to a "
        "reference for ∇ℓ_q from many more rollouts, the ratio of the norms, and the gradient noise scale: of so many "
        f"prompts the mean gradient is half noise (missing where the batch is too small to tell). "
        f"{sentence_on_seeds(compared)}"
    )


def _style_of_compared(name: str) -> dict[str, Any]:
    """Looks up the line style of NAME@Q."""
    estimator, _, q = name.partition("@")
    try:
        return style_of(estimator, plain(float(q)))
    except ValueError:
        return style_of(estimator)


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
