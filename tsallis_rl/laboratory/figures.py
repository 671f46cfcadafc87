"""Draws one figure per study. Each q has its colour from `colors`; STYLES tells other lines apart, in print too."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsallis_rl.laboratory.colors import color_of_q, style_of_q
from tsallis_rl.laboratory.study import Study, slope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, in an order in which neighbours differ in lightness too.
STYLES: list[dict[str, Any]] = [
    {"color": color, "marker": marker, "linestyle": dash}
    for color, marker, dash in (
        ("#000000", "o", "-"), ("#D55E00", "s", "--"), ("#0072B2", "^", "-."), ("#CC79A7", "D", ":"),
        ("#009E73", "v", (0, (5, 1, 1, 1, 1, 1))), ("#E69F00", "P", (0, (1, 1))),
    )
]  # fmt: skip
SETTINGS = {
    "font.size": 9,  "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "lines.markersize": 4,
    "lines.linewidth": 1.3, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "figure.constrained_layout.use": True, "savefig.dpi": 160,
}  # fmt: skip
THEORY = {"color": "0.45", "linestyle": "-", "linewidth": 0.9, "zorder": 0}


def draw(study: Study, drawing: Callable[[Study, "Figure"], None], folder: Path) -> None:
    """Draws a study with `drawing` into NAME.png, for the page, and NAME.pdf, for print."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context(SETTINGS):
        figure = plt.figure(figsize=(9, 3.1))
        drawing(study, figure)
        for suffix in ("png", "pdf"):
            figure.savefig(folder / f"{study.name}.{suffix}")
        plt.close(figure)


def _bias_variance(study: Study, figure: "Figure") -> None:
    figure.set_size_inches(9, 8)
    axes = figure.subplots(3, 3, sharey="col")
    along = [
        ("M", "rollouts M", {"p_rare": 0.1, "q": 0.75}, "P = 0.098, q = 0.75 (M = 128 drawn)", "log"),
        ("P", "success probability P", {"M": 16, "q": 0.75}, "M = 16, q = 0.75", "log"),
        ("q", "commitment q", {"M": 16, "p_rare": 0.1}, "M = 16, P = 0.098", "linear"),
    ]
    for row, (x, label, where, fixed, scale) in zip(axes, along, strict=True):
        for axis, y in zip(row, ("bias", "variance", "mse"), strict=True):
            for style, name in zip(STYLES, dict.fromkeys(study.column("estimator")), strict=False):
                order = np.argsort(study.column(x, estimator=name, **where))
                xs, ys = (study.column(c, estimator=name, **where)[order] for c in (x, f"relative_{y}"))
                error = study.column("relative_bias_error", estimator=name, **where)[order] if y == "bias" else 0 * xs
                # Unbiased up to rounding: not drawn.
                ys = np.where(ys > 1e-6, ys, np.nan)
                # A ring, since most of the others lie on the plug-in's points.
                ring = {"markersize": 8, "markerfacecolor": "none"} if name == "GARL plug-in" else {}
                axis.errorbar(xs, ys, np.minimum(error, 0.9 * ys), label=name, capsize=2, **style | ring)
            axis.set(xlabel=label, xscale=scale, yscale="log", ylabel=f"{y} / |∇ℓ|" + ("" if y == "bias" else "²"))
            if x == "q":
                axis.set_xlim(-0.05, 1.05)
            if x == "M":
                axis.set_xticks(xs, [f"{m:g}" for m in xs])
                axis.minorticks_off()
            axis.set_title(f"{fixed}; 0 at q = 0" if (x, y) == ("q", "bias") else fixed)
    axes[0, 0].legend()
    loo, plug = (_at(study, f"GARL {kind}", "relative_variance") for kind in ("leave-one-out", "plug-in"))
    figure.suptitle(
        f"At M = 16, P = 0.098, q = 0.75 the jackknife divides the bias by "
        f"{_at(study, 'GARL plug-in') / _at(study, 'GARL jackknife'):.1f}, "
        f"the baseline the variance by {plug / loo:.2f}"
    )


def _at(study: Study, estimator: str, column: str = "relative_bias") -> float:
    return study.column(column, estimator=estimator, M=16, p_rare=0.1, q=0.75)[0]


def _every_estimator(study: Study, figure: "Figure") -> None:
    figure.set_size_inches(9, 5.6)
    axes = figure.subplots(1, 3, sharey=True)
    names = [f"{row['estimator']}  ({row['target']})" for row in study.rows]
    height = np.arange(len(names))
    bias, error = study.column("relative_bias"), study.column("relative_bias_error")
    exact = bias < 1e-9
    axes[0].barh(height, np.where(exact, 0, bias), xerr=error, color="#0072B2", height=0.6)
    for y in height[exact]:
        axes[0].text(0.01, y, "0 (unbiased)", va="center")
    axes[1].barh(height, study.column("relative_deviation"), color="#E69F00", height=0.6)
    for offset, column, color in ((-0.15, "cosine", "#009E73"), (0.15, "cosine_to_log_p", "0.7")):
        axes[2].barh(height + offset, study.column(column), color=color, height=0.3)
    axes[0].set_yticks(height, names)
    axes[0].invert_yaxis()
    for axis, label in zip(
        axes, ("bias / |∇J|", "standard deviation / |∇J|", "cosine of mean, ∇J (grey: ∇ log P)"), strict=True
    ):
        axis.set_xlabel(label)
        axis.grid(axis="y", visible=False)
    summed, hard = (study.column("relative_deviation", estimator=name)[0] for name in ("rb_rloo", "rloo"))
    figure.suptitle(f"M = 8, P = 0.098: summing the answer out takes RLOO's deviation from {hard:.2f} to {summed:.2f}")


def _resampling_expectation(study: Study, figure: "Figure") -> None:
    axes = figure.subplots(1, 2)
    worst = 0.0
    for i, (style, scheme) in enumerate(zip(STYLES, dict.fromkeys(study.column("resampling")), strict=False)):
        rows = [row for row in study.rows if row["resampling"] == scheme and row["K"] == 8]
        z = [(r["mean"] - r["plug_in"]) / r["error"] if r["error"] else 0.0 for r in rows]
        axes[0].plot([r["rollout"] + 0.15 * (i - 1) for r in rows], z, **style | {"linestyle": "none"}, label=scheme)
        ks = sorted({row["K"] for row in study.rows})
        total = [np.sqrt((study.column("deviation", resampling=scheme, K=k) ** 2).sum()) for k in ks]
        axes[1].plot(ks, total, **style, label=scheme)
        worst = max([worst, *(abs(x) for x in z)])
    axes[0].axhspan(-2, 2, color="0.9", zorder=0)
    axes[0].set(xlabel="rollout, by falling weight", ylabel="(mean − plug-in) / standard error", ylim=(-4, 4))
    axes[0].set_title(f"No bias: at K = 8 at most {worst:.1f} standard errors")
    axes[1].set(xlabel="draws K", ylabel="deviation added by the draws", xscale="log", ylim=(0, None))
    axes[1].set_xticks(ks, [str(k) for k in ks])
    axes[1].minorticks_off()
    axes[1].set_title("Systematic draws add least")
    axes[1].legend()


def _variance_ordering(study: Study, figure: "Figure") -> None:
    figure.set_size_inches(6, 3.4)
    axis = figure.subplots()
    plug = study.column("relative_variance", estimator="GARL plug-in")
    names = list(dict.fromkeys(study.column("estimator")))
    for style, name in zip(STYLES, names, strict=False):
        y, error = (study.column(c, estimator=name) for c in ("relative_variance", "error"))
        axis.errorbar(study.column("q", estimator=name), y / plug, error / plug, capsize=2, label=name, **style)
    theory = 1 + study.column("draws_alone", estimator="GARL plug-in") / plug
    axis.plot(study.column("q", estimator="GARL plug-in"), theory, **THEORY, label="PAFT categorical, enumerated")
    axis.set(xlabel="commitment q", ylabel="variance / variance of plug-in")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    drawn = (study.column("relative_variance", estimator="PAFT categorical") / plug).max()
    axis.set_title(f"M = K = 16: PAFT up to {drawn:.2f} of the plug-in's variance")


def _bias_order(study: Study, figure: "Figure") -> None:
    figure.set_size_inches(9, 3.7)
    axes = figure.subplots(1, 3)
    for q in dict.fromkeys(study.column("q")):
        style = style_of_q(q)
        for axis, family, p_name in ((axes[0], "rare", "P"), (axes[1], "unlikely", "unlikely_P")):
            p = study.column(p_name, q=q)
            axis.plot(p, study.column(f"{family}_formula", q=q), **THEORY)
            axis.plot(p, study.column(f"{family}_measured", q=q), **style | {"linestyle": "none"}, label=f"q = {q:g}")
        p = study.column("P", q=q)
        axes[2].plot(p, study.column("rare_relative_bias_M32", q=q), **style)
        axes[2].plot(p, study.column("rare_relative_leading_M32", q=q), **THEORY)
    p = study.column("P", q=0.75)
    first = study.column("rare_formula", q=0.75)[-1] * (p / p[-1]) ** -1.75
    axes[0].plot(p, first, color=color_of_q(0.75), linestyle=":")
    axes[0].annotate("v1's order, q = 0.75", (p[4], first[4]), (6, 2), textcoords="offset points")
    axes[0].set(title="one rare rationale: slope −q (v2)", ylabel="M × |bias|", ylim=(1e-2, 1e10))
    axes[1].set(title="unlikely everywhere: slope 1 − q", ylabel="M × |bias|")
    axes[2].set(title="one rare rationale, M = 32", ylabel="|bias| / |∇ℓ|", ylim=(5e-3, 30))
    axes[2].axvline(1 / 32, color="0.6", linewidth=0.8, linestyle=":")
    axes[2].annotate("M P = 1", (1 / 32, 15), (-42, 0), textcoords="offset points")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="success probability P")
    axes[1].legend(loc="lower right")
    p, y = study.column("P", q=0.75), study.column("rare_measured", q=0.75)
    fitted = slope(p[p < 1e-3], y[p < 1e-3])
    figure.suptitle(
        f"Measured power of P at q = 0.75: {fitted:.3f}, so O(q/(M P^q)); markers measured, grey the "
        "formula's leading term"
    )


def _jackknife(study: Study, figure: "Figure") -> None:
    axes = figure.subplots(1, 3)
    for style, name in zip(STYLES, ("plug-in", "jackknife"), strict=False):
        for axis, y in zip(axes, ("bias", "variance", "mse"), strict=True):
            m, value = (study.column(c, estimator=name, q=0.75) for c in ("M", f"relative_{y}"))
            axis.plot(m, value, label=name, **style)
            axis.set(
                xscale="log", yscale="log", xlabel="rollouts M", ylabel=f"{y} / |∇ℓ|" + ("" if y == "bias" else "²")
            )
            axis.set_xticks(m, [str(x) for x in m])
            axis.minorticks_off()
    m = study.column("M", estimator="plug-in", q=0.75)
    for name, power, dash, label in (("plug-in", -1, "-", "∝ 1/M"), ("jackknife", -2, ":", "∝ 1/M²")):
        last = study.column("relative_bias", estimator=name, q=0.75)[-1]
        axes[0].plot(m, last * (m / m[-1]) ** power, **THEORY | {"linestyle": dash}, label=label)
    axes[0].legend()
    last = [study.column("relative_bias", estimator=name, q=0.75)[-1] for name in ("plug-in", "jackknife")]
    figure.suptitle(
        f"q = 0.75, P = 0.25, enumerated: at M = {m[-1]} the jackknife divides the bias by {last[0] / last[1]:.0f}"
    )


def _escort(study: Study, figure: "Figure") -> None:
    figure.set_size_inches(5, 3.3)
    axis = figure.subplots()
    for style, label in zip(STYLES, dict.fromkeys(study.column("label")), strict=False):
        q, got, want = (study.column(c, label=label) for c in ("q", "optimised", "escort"))
        axis.plot(q, want, **THEORY)
        axis.plot(
            q, got, **style | {"linestyle": "none"}, label=f"α = {study.column('data_frequency', label=label)[0]:g}"
        )
    axis.set(xlabel="commitment q", ylabel="probability at the minimum")
    axis.legend()
    off = abs(study.column("optimised") - study.column("escort")).max()
    axis.set_title(f"Minimised (markers) and escort formula (grey): {off:.0e} apart at most")


def _dispersion(study: Study, figure: "Figure") -> None:
    figure.set_size_inches(7.5, 3.1)
    axes = figure.subplots(1, 2)
    for q in (0.25, 0.5, 0.75, 1.0):
        style = style_of_q(q)
        spread, excess, second = (study.column(c, q=q) for c in ("relative_spread", "excess", "second_order"))
        axes[0].plot(spread, second, **THEORY)
        axes[0].plot(spread, excess, **style | {"linestyle": "none"}, label=f"q = {q:g}")
        axes[1].plot(spread, excess / second, **style)
    axes[0].set(yscale="log", ylabel="J_Q + log_q(mean P)", title="measured (markers), second order (grey)")
    axes[1].set(ylabel="excess / second order", title=f"up to {(excess / second).max():.2f} at 95% spread")
    for axis in axes:
        axis.set(xscale="log", xlabel="half-width of P's spread / mean P")
    axes[0].legend()


def _escape(study: Study, figure: "Figure") -> None:
    axes = figure.subplots(1, 2)
    for q in dict.fromkeys(study.column("q")):
        style = style_of_q(q)
        p0, time, integral, order = (study.column(c, q=q) for c in ("p0", "simulated", "integral", "order"))
        axes[0].plot(p0, integral, **THEORY)
        axes[0].plot(p0, time, **style | {"linestyle": "none"}, label=f"q = {q:g}")
        axes[1].plot(p0, time / order, **style)
    axes[0].set(yscale="log", ylabel="time to P = 1/2", title="simulated (markers), exact integral (grey)")
    axes[1].set(ylabel="time / Theorem 5.2's order", ylim=(0, 1.6), title="bounded above and below: the order holds")
    for axis in axes:
        axis.set(xscale="log", xlabel="P at the start")
    axes[0].legend()
    slow, fast = (study.column("simulated", q=q)[0] for q in (0.0, 1.0))
    figure.suptitle(f"From P = 1e-6: time {slow:.2g} at q = 0, {fast:.1f} at q = 1")


def _near_optimum(study: Study, figure: "Figure") -> None:
    axes = figure.subplots(1, 3)
    for q in dict.fromkeys(study.column("q")):
        style = style_of_q(q)
        for axis, name in zip(axes, ("sigmoid", "exp(−θ²/2)"), strict=False):
            miss, time = (study.column(c, parametrisation=name, q=q) for c in ("miss", "time"))
            axis.plot(time, miss, label=f"q = {q:g}", markevery=15, **style)
        miss, rate = (study.column(c, parametrisation="sigmoid", q=q) for c in ("miss", "rate_over_limit"))
        axes[2].plot(miss[1:-1], rate[1:-1], markevery=15, **style)
    axes[0].set(xscale="log", yscale="log", xlabel="time", ylabel="1 − P", title="P = σ(θ): all join 1/t")
    axes[1].set(yscale="log", xlabel="time", ylabel="1 − P", xlim=(0, None), title="P = exp(−θ²/2): parallel")
    axes[2].set(xscale="log", xlabel="1 − P", ylabel="d(1/(1−P))/dt", title="P = σ(θ): the rate of every q goes to 1")
    axes[2].invert_xaxis()
    axes[0].legend()


def _noise(study: Study, figure: "Figure") -> None:
    axes = figure.subplots(1, 2)
    for q in dict.fromkeys(study.column("q")):
        style = style_of_q(q)
        rate, end, claimed = (
            study.column(c, q=q, share_of_stable=0.1) for c in ("flip_rate", "stable_flow", "stable_order")
        )
        axes[0].plot(rate, claimed, **THEORY)
        axes[0].plot(rate, end, **style | {"linestyle": "none"}, label=f"q = {q:g}")
        share, time, order = (study.column(c, q=q, flip_rate=0.1) for c in ("share_of_stable", "time", "time_order"))
        axes[1].plot(share, time / order, **style)
    axes[0].set(xscale="log", yscale="log", xlabel="flip rate ε", ylabel="contamination at rest")
    axes[0].set_title("flow (markers), (ε/(1−ε))^(1/q) (grey)")
    axes[1].set(xscale="log", yscale="log", xlabel="η / contamination at rest", ylabel="time to η / claimed order")
    axes[1].axhline(1.0, **THEORY)
    ratio = study.column("time", q=1.0, flip_rate=0.1) / study.column("time_order", q=1.0, flip_rate=0.1)
    axes[1].set_title(f"ε = 0.1: {ratio[0]:.2f} of the order at 1% and q = 1")
    axes[0].legend()


def _softmax_noise(study: Study, figure: "Figure") -> None:
    axes = figure.subplots(1, 2)
    for q in dict.fromkeys(study.column("q")):
        style = style_of_q(q)
        start, eta, time, order = (study.column(c, q=q) for c in ("start", "eta", "time", "time_order"))
        axes[0].plot(eta / start, order, **THEORY)
        axes[0].plot(eta / start, time, **style, label=f"q = {q:g}")
        axes[1].plot(eta / start, time / order, **style)
    axes[0].set(xscale="log", yscale="log", xlabel="η / contamination at the start", ylabel="time to η")
    axes[0].set_title("flow on the logit (markers), claimed order (grey)")
    axes[0].legend()
    axes[1].set(xscale="log", xlabel="η / contamination at the start", ylabel="time to η / claimed order")
    axes[1].axhline(1.0, **THEORY)
    axes[1].set_title("the order is reached as the start goes to 0")


def _proposals(study: Study, figure: "Figure") -> None:
    axes = figure.subplots(1, 3)
    shown = ("prior", "share 0.1", "share 0.5", "restating", "mixture, share 0.5", "mixture, restating")
    for style, name in zip(STYLES, shown, strict=True):
        p = study.column("P", proposal=name)
        for axis, column in zip(axes, ("p_hat_deviation", "relative_bias", "relative_deviation"), strict=True):
            axis.plot(p, study.column(column, proposal=name), **style, label=name)
    for axis, label in zip(axes, ("deviation of P̂ / P", "bias / |∇ℓ|", "deviation / |∇ℓ|"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="success probability P", ylabel=label)
    axes[0].set_title("P̂ is unbiased for all")
    axes[1].set_title("the plug-in gradient's bias")
    axes[2].set_title("and its deviation")
    axes[1].legend()


DRAWINGS: dict[str, Callable[[Study, "Figure"], None]] = {
    "bias_variance": _bias_variance,
    "every_estimator": _every_estimator,
    "resampling_expectation": _resampling_expectation,
    "variance_ordering": _variance_ordering,
    "bias_order": _bias_order,
    "jackknife": _jackknife,
    "proposals": _proposals,
    "escort": _escort,
    "dispersion": _dispersion,
    "escape": _escape,
    "near_optimum": _near_optimum,
    "noise": _noise,
    "softmax_noise": _softmax_noise,
}
