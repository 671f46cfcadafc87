"""Draws the figures of the studies of `floors`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tsallis_rl.laboratory.colors import style_of_q, style_of_tau
from tsallis_rl.laboratory.figures import STYLES, THEORY
from tsallis_rl.laboratory.floors import FAMILIES, TAUS
from tsallis_rl.laboratory.study import QS, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _commitments(study: Study, figure: "Figure") -> None:
    axes = figure.subplots(1, 2)
    styles = [style_of_q(q) for q in QS[1:]]
    styles += [style_of_tau(family, tau) for family in FAMILIES for tau in TAUS.values()]
    for style, name in zip(styles, dict.fromkeys(study.column("commitment")), strict=True):
        p, f, loss = (study.column(c, commitment=name) for c in ("P", "f", "loss"))
        axes[0].plot(p, f, label=name, markevery=12, **style)
        axes[1].plot(p, loss, markevery=12, **style)
    axes[0].set(xscale="log", yscale="log", xlabel="success probability P", ylabel="f(P), the factor on ∇ log P")
    axes[1].set(xscale="log", xlabel="success probability P", ylabel="loss", ylim=(0, 4))
    axes[0].legend(ncols=2)
    axes[0].set_title("powers fall with P without end, floors do not")
    axes[1].set_title("the losses")


def _floor_escape(study: Study, figure: "Figure") -> None:
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name in zip(axes, ("floor", "mixture"), strict=True):
        for tau in dict.fromkeys(study.column("tau")):
            style = style_of_tau(name, tau)
            p0, time, order = (study.column(c, commitment=name, tau=tau) for c in ("p0", "simulated", "order"))
            axis.plot(p0, order, **THEORY)
            axis.plot(p0, time, **style | {"linestyle": "none"}, label=f"τ = e^−{-np.log(tau):.0f}")
        axis.set(xscale="log", yscale="log", xlabel="P at the start", title=f"{name}: flow (markers), formula (grey)")
    axes[0].set_ylabel("time to P = 1/2")
    axes[0].legend()


def _floor_noise(study: Study, figure: "Figure") -> None:
    axes = figure.subplots(1, 2)
    for style, rate in zip(STYLES, (0.01, 0.1, 0.2, 0.3, 0.45), strict=False):
        for name, filled in (("floor", style["color"]), ("mixture", "none")):
            tau, end, formula = (
                study.column(c, commitment=name, wrong_share=rate, wrong_labels=1) for c in ("tau", "rest", "formula")
            )
            axes[0].plot(tau, formula, **THEORY)
            axes[0].plot(
                tau, end, **style | {"linestyle": "none", "markerfacecolor": filled},
                label=f"ε = {rate:g}" if name == "floor" else None,
            )  # fmt: skip
    axes[0].set(xscale="log", yscale="log", xlabel="τ", ylabel="contamination at rest")
    axes[0].set_title("one wrong label: floor (filled), mixture (open), formulas")
    axes[0].legend()
    curves: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    for name in FAMILIES:
        where = {"commitment": name, "tau": 0.05, "wrong_share": 0.2}
        curves.append((f"{name}, τ = 0.05", where, style_of_tau(name, 0.05)))
    curves += [(f"q = {q:g}", {"commitment": "power", "q": q}, style_of_q(q)) for q in QS[1:]]
    for label, where, style in curves:
        axes[1].plot(study.column("wrong_labels", **where), study.column("rest", **where), label=label, **style)
    axes[1].set(xscale="log", yscale="log", xlabel="wrong labels that share ε = 0.2", ylabel="contamination at rest")
    axes[1].set(ylim=(1e-7, 0.6), title="the floor's does not fall with their number")
    axes[1].legend(loc="lower left")


CURVES = {  # how each curve of the trade-off is drawn
    "power": ("power P^(1−q)", {"color": "#a31f73", "marker": "^", "linestyle": "-"}),
    "floor": ("floor max(P, τ)", style_of_tau("floor", 0.05)),
    "mixture": ("mixture P + τ", style_of_tau("mixture", 0.05)),
}
FOUND = {
    "found, nondecreasing": ("search, nondecreasing f", {"color": "0.2", "marker": "D", "linestyle": "none"}),
    "found, any f": ("search, any f", {"color": "#CC79A7", "marker": "x", "linestyle": "none"}),
}


def _trade_off(study: Study, figure: "Figure") -> None:
    figure.set_size_inches(9, 3.9)
    axes = figure.subplots(1, 2, sharey=True)
    columns = ("contamination", "contamination_of_100_labels")
    for axis, column in zip(axes, columns, strict=True):
        for curve, (label, style) in CURVES.items():
            c, time = (study.column(x, curve=curve) for x in (column, "escape_time"))
            order = np.argsort(c)
            axis.plot(c[order], time[order], label=label, markevery=3, **style)
        for curve, (label, style) in FOUND.items():
            c, time = (study.column(x, curve=curve) for x in (column, "escape_time"))
            axis.plot(c, time, label=label, **style | {"markersize": 6})
        axis.set(xscale="log", yscale="log", xlim=(5e-4, 0.3), ylim=(20, 1e20))
    c, time = (study.column(x, curve="schedule") for x in ("contamination", "escape_time"))
    axes[0].plot(c, time, color="0.4", linestyle=(0, (4, 3)), label="q = 1, then 0 in time")
    c, bound = (study.column(x, curve="fastest") for x in ("contamination", "bound"))
    order = np.argsort(c)
    axes[0].fill_between(c[order], 1, bound[order], color="0.88", zorder=0, label="no nondecreasing f")
    power, floor = (study.column("escape_time", curve=name)[-1] for name in ("power", "floor"))
    at = study.column("contamination", curve="floor")[-1]
    axes[0].annotate("", (at, floor * 1.3), (at, power / 1.6), arrowprops={"arrowstyle": "->", "color": "0.3"})
    axes[0].annotate(
        f"{power / floor:.1g}".replace("e+0", " × 10^") + " times",
        (at, (power * floor) ** 0.5),
        (5, 0),
        textcoords="offset points",
        color="0.3",
    )
    axes[0].set(xlabel="contamination at rest, one wrong label", ylabel="time from P = e^−41 to 1/2")
    axes[1].set_xlabel("contamination at rest, 100 wrong labels")
    axes[0].set_title("one wrong label, ε = 0.2: the floor is almost at the bound")
    axes[1].set_title("the same f, 100 wrong labels share ε")
    axes[0].legend(loc="upper right", ncols=2)
    axes[1].annotate(
        "an f that may fall\nlearns them whole", (0.2, 400), (0.03, 1e12), color="#A0467F",
        arrowprops={"arrowstyle": "->", "color": "#CC79A7"},
    )  # fmt: skip


def _floor_minimiser(study: Study, figure: "Figure") -> None:
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name in zip(axes, ("floor", "mixture"), strict=True):
        for style, label in zip(STYLES, dict.fromkeys(study.column("label")), strict=False):
            tau, got, want = (study.column(c, commitment=name, label=label) for c in ("tau", "optimised", "formula"))
            axis.plot(tau, want, **THEORY)
            alpha = study.column("data_frequency", label=label)[0]
            axis.plot(tau, got, **style | {"linestyle": "none"}, label=f"α = {alpha:g}")
        axis.set(xscale="log", yscale="log", xlabel="τ", title=f"{name}: minimised (markers), formula (grey)")
    axes[0].set_ylabel("probability at the minimum")
    axes[0].legend()


def _floor_bias(study: Study, figure: "Figure") -> None:
    figure.set_size_inches(9, 3.4)
    axes = figure.subplots(1, 3)
    rare = {"policy": "one rare rationale", "M": 32}
    styles = {name: style_of_tau(name, 0.05) for name in FAMILIES}
    styles |= {f"q = {q:g}": style_of_q(q) for q in (0.75, 1.0)}
    for name, style in styles.items():
        p, bias = (study.column(c, commitment=name, **rare) for c in ("P", "relative_bias"))
        shown = p > 1e-4
        axes[0].plot(p[shown], bias[shown], markevery=3, label=name, **style)
        for axis, policy in ((axes[2], "one rare rationale"), (axes[2], "unlikely everywhere")):
            p, followed = (study.column(c, commitment=name, policy=policy, M=32) for c in ("P", "followed"))
            dash = "-" if policy == "unlikely everywhere" else ":"
            axis.plot(p, followed, markevery=4, **style | {"linestyle": dash})
    for style, m in zip(STYLES, (400, 10000), strict=False):
        where = {"commitment": "floor", "M": m}
        x, bias, kink = (study.column(c, **where) for c in ("x", "relative_bias", "kink"))
        axes[1].plot(x, bias * m**0.5, label=f"M = {m}", **style | {"linestyle": "none"})
        axes[1].plot(x, kink * m**0.5, **THEORY)
    axes[0].axvline(0.05, color="0.6", linewidth=0.8, linestyle=":")
    axes[0].set(xscale="log", yscale="log", ylim=(1e-3, 3), xlabel="success probability P", ylabel="bias / |∇ℓ|")
    axes[0].set_title("one rare rationale, M = 32, τ = 0.05")
    axes[0].legend()
    axes[1].set(
        xlabel="(P − τ) √M / σ_w", ylabel="√M × bias / |∇ℓ|", xlim=(-3.2, 3.2), ylim=(0, 2), title="floor, near τ"
    )
    axes[1].legend()
    axes[2].set(xscale="log", yscale="log", xlabel="success probability P", ylabel="share of ∇ log P in E[plug-in]")
    axes[2].set_title("M = 32; dotted: one rare rationale")


FLOOR_DRAWINGS: dict[str, Callable[[Study, "Figure"], None]] = {
    "commitments": _commitments,
    "floor_escape": _floor_escape,
    "floor_noise": _floor_noise,
    "trade_off": _trade_off,
    "floor_minimiser": _floor_minimiser,
    "floor_bias": _floor_bias,
}
