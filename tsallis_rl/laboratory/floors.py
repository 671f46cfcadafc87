"""Studies of the floor f(P) = max(P, τ) and the mixture f(P) = P + τ beside the powers (docs/method.md §8)."""

import functools
from collections.abc import Callable
from math import erfc, exp, pi

import jax
import jax.numpy as jnp
import numpy as np

from tsallis_rl.laboratory.commitments import (
    Commitment,
    escape_time,
    fastest,
    floor,
    floor_escape_time,
    floor_rest,
    least_escape_time,
    mixture,
    mixture_escape_time,
    mixture_rest,
    power,
    power_rest,
    rest,
    rest_points,
    schedule_time,
    steps,
)
from tsallis_rl.laboratory.flows import escape_times, minimiser
from tsallis_rl.laboratory.gradients import PLUG_IN, plug_in_bias, two_rationales
from tsallis_rl.laboratory.policy import (
    exact_gradient,
    from_probabilities,
    gold_atoms,
    leading_bias,
    success_probability,
    unlikely,
)
from tsallis_rl.laboratory.pools import moments
from tsallis_rl.laboratory.study import QS, Study
from tsallis_rl.objectives import ESTIMATORS, floor_loss, mixture_loss, tsallis_loss

TAUS = {"e^−3": exp(-3), "e^−5": exp(-5)}
SPREAD = ("contamination_of_100_labels", "contamination_at_a_quarter")
NATS = (41.0, 30.0, 18.0, 12.0, 8.0, 6.0, 4.0, 2.302585)  # −ln p0
FAMILIES: dict[str, tuple[Callable, Callable[[float], Commitment], Callable, Callable]] = {
    "floor": (floor_loss, floor, floor_escape_time, floor_rest),
    "mixture": (mixture_loss, mixture, mixture_escape_time, mixture_rest),
}
# Each program is compiled for a single run: not worth optimising.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def commitments() -> Study:
    """Studies f(P) of powers, floors and mixtures, and −dℓ/d log P of the losses as implemented."""
    curves = [(f"q = {q:g}", tsallis_loss, q, power(q)) for q in QS[1:]]
    for name, (loss, family, *_) in FAMILIES.items():
        curves += [(f"{name} {label}", loss, tau, family(tau)) for label, tau in TAUS.items()]
    log_p = np.linspace(-12, 0, 97)
    rows = []
    for name, loss, number, f in curves:
        value, slopes = _value_and_slope(loss)(log_p, number)
        rows += [
            {"commitment": name, "P": p, "f": f.of(p), "loss": x, "minus_slope": -float(y)}
            for p, x, y in zip(np.exp(log_p), np.asarray(value), slopes, strict=True)
        ]
    study = Study(
        name="commitments",
        title="How much of ∇ log P each commitment follows",
        claim="Every member has `∇ℓ = −f(P) ∇ log P`: `f = P^(1−q)` of the continuum, `max(P, τ)` of the floor, `P + "
        "τ` of the mixture (the last two ours).",
        measured="",
        rows=rows,
    )
    off = abs(study.column("minus_slope") / study.column("f") - 1).max()
    small = {name: study.column("f", commitment=name)[0] for name, *_ in curves}
    return study._replace(
        measured=f"−dℓ/d log P of the losses over f: within {off:.1e} of 1. f at P = e^−12: "
        + ", ".join(f"{value:.2g} ({name})" for name, value in small.items())
        + "."
    )


def floor_escape() -> Study:
    """Studies how long P = σ(θ) takes to climb from p0 to 1/2 under floor and mixture."""
    rows, starts = [], np.exp(-np.array(NATS))
    for name, (loss, family, order, _) in FAMILIES.items():
        taus = [exp(-nats) for nats in (2, 3, 5)]
        times = np.asarray(escape_times(*np.meshgrid(taus, starts, indexing="ij"), 0.5, loss_of=loss, steps=1000))
        rows += [
            {
                "commitment": name, "tau": tau, "p0": p0, "simulated": times[i, j],
                "integral": escape_time(family(tau), p0), "order": order(tau, p0),
            }
            for i, tau in enumerate(taus)
            for j, p0 in enumerate(starts)
        ]  # fmt: skip
    study = Study(
        name="floor_escape",
        title="Escape under a floor and under a mixture",
        claim="Ours. From p0 below τ the floor takes `(1 + ln(τ/p0))/τ`, the mixture `ln(1 + τ/p0)/τ`, both up to "
        "`2 ln(1/τ) + 1` more: logarithmic in 1/p0 for every τ.",
        measured="",
        rows=rows,
    )
    off = abs(study.column("simulated") / study.column("integral") - 1).max()
    below = study.column("p0") < study.column("tau")
    late = ((study.column("integral") - study.column("order")) / (2 * np.log(1 / study.column("tau")) + 1))[below]
    texts = []
    for name in FAMILIES:
        ratio = study.column("integral", commitment=name) / study.column("order", commitment=name)
        p0, tau = (study.column(x, commitment=name) for x in ("p0", "tau"))
        far = p0 <= tau * exp(-9)
        texts.append(f"{name} {ratio[far].min():.3f}–{ratio[far].max():.3f}, nearer up to {ratio[p0 < tau].max():.2f}")
    return study._replace(
        measured=f"Flow of the losses as implemented, against the integral: within {off:.1e}. Integral less its "
        f"leading order, as a share of 2 ln(1/τ) + 1: {late.min():.2f} to {late.max():.2f}. Integral over its leading "
        f"order where p0 is nine nats or more below τ: {'; '.join(texts)}."
    )


def floor_noise() -> Study:
    """Studies where contamination rests under floor and mixture, for one wrong label and for many."""
    cells = [(rate, tau, 1) for rate in (0.01, 0.1, 0.2, 0.3, 0.45) for tau in (0.002, 0.01, 0.05, 0.2, 0.6, 1.0)]
    cells += [(0.2, 0.05, labels) for labels in (2, 5, 10, 100, 1000, 10000)]
    rows = []
    for rate, tau, labels in cells:
        for name, (loss, family, _, formula) in FAMILIES.items():
            found = rest_points(family(tau), rate, labels)
            alpha = np.array([1 - rate] + [rate / labels] * labels) if labels in (1, 5) else None
            rows.append(
                {
                    "commitment": name, "tau": tau, "q": np.nan, "wrong_share": rate, "wrong_labels": labels,
                    "rest_points": len(found), "rest": found[-1],
                    "formula": formula(tau, rate, labels) if name == "mixture" else formula(tau, rate),
                    "minimised": np.nan if alpha is None else 1 - float(_minimise(loss)(alpha, tau)[0]),
                }
            )  # fmt: skip
    for q in QS[1:]:
        for labels in (1, 2, 5, 10, 100, 1000, 10000):
            rows.append(
                {
                    "commitment": "power", "tau": np.nan, "q": q, "wrong_share": 0.2, "wrong_labels": labels,
                    "rest_points": len(rest_points(power(q), 0.2, labels)), "rest": rest(power(q), 0.2, labels),
                    "formula": power_rest(q, 0.2, labels), "minimised": np.nan,
                }
            )  # fmt: skip
    study = Study(
        name="floor_noise",
        title="Wrong labels under a floor and under a mixture",
        claim="Ours. With a wrong share `ε < 1/2` the floor's contamination rests at `τ ε/(1−ε)` (at ε where `τ > "
        "1−ε`) however many wrong labels share ε; the mixture's between that and `τ ε/(1−2ε)`; a power's falls with "
        "the number K of wrong labels, as `K^(1−1/q)` while it is small. There is no other rest point.",
        measured="",
        rows=rows,
    )
    off = abs(study.column("rest") / study.column("formula") - 1).max()
    minimised = study.column("minimised") / study.column("formula")
    many = {
        name: study.column("rest", commitment=name, tau=0.05, wrong_share=0.2)[[0, -1]] for name in FAMILIES
    } | {f"q = {q:g}": study.column("rest", commitment="power", q=q)[[0, -1]] for q in QS[1:]}  # fmt: skip
    return study._replace(
        measured=f"Roots over all of (0, 1), against the formulas: within {off:.1e}; rest points found: "
        f"{int(study.column('rest_points').max())} each; minimum of the losses as implemented: within "
        f"{np.nanmax(abs(minimised - 1)):.1e}. At ε = 0.2, τ = 0.05, of one wrong label and of 10,000: "
        + ", ".join(f"{name} {a:.3g} and {b:.3g}" for name, (a, b) in many.items())
        + "."
    )


def floor_minimiser() -> Study:
    """Studies the minimiser of Σ_j α_j ℓ(θ_j) under floor and mixture."""
    alpha, rows = np.array([0.45, 0.3, 0.15, 0.1]), []
    taus = np.array([0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.45, 0.6, 0.8, 1.0])
    for name, (loss, *_) in FAMILIES.items():
        found = np.asarray(_jit(jax.vmap(lambda tau, loss=loss: minimiser(jnp.array(alpha), tau, loss)))(taus))
        rows += [
            {
                "commitment": name, "tau": tau, "label": j, "data_frequency": alpha[j], "optimised": found[i, j],
                "formula": minimum(name, alpha, tau)[j],
            }
            for i, tau in enumerate(taus)
            for j in range(len(alpha))
        ]  # fmt: skip
    study = Study(
        name="floor_minimiser",
        title="Under a floor the minimiser lies between the data and their mode",
        claim="Ours. Where the escort distribution of the continuum bends the data, the floor's minimiser is "
        "`(τ/α_max) α + (1 − τ/α_max) mode` for `τ ≤ α_max`, and α itself above: rare labels keep their proportions. "
        "The mixture's is `θ_j = τ α_j/(λ − α_j)`, with the λ above α_max at which these sum to 1.",
        measured="",
        rows=rows,
    )
    off = abs(study.column("optimised") - study.column("formula")).max()
    mode = {name: study.column("optimised", commitment=name, label=0, tau=0.05)[0] for name in FAMILIES}
    return study._replace(
        measured=f"Largest difference between Newton's minimiser and the formulas, eleven values of τ: {off:.1e}. Mass "
        f"on the mode at τ = 0.05: {', '.join(f'{value:.3f} ({name})' for name, value in mode.items())}."
    )


def minimum(name: str, alpha: np.ndarray, tau: float) -> np.ndarray:
    """Computes the minimiser of Σ_j α_j ℓ(θ_j) on the simplex for "floor" or "mixture"; α [labels] has one mode."""
    top = alpha.max()
    if name == "floor":
        share = min(tau / top, 1.0)
        return share * alpha + (1 - share) * (alpha == top)
    low, high = top, top + tau  # at λ = α_max + τ no θ_j exceeds α_j
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (tau * alpha / (middle - alpha)).sum() > 1 else (low, middle)
    return tau * alpha / (high - alpha)


@functools.cache
def _value_and_slope(loss: Callable) -> Callable:
    return _jit(jax.vmap(jax.value_and_grad(loss), (0, None)))


@functools.cache
def _minimise(loss: Callable) -> Callable:
    return _jit(functools.partial(minimiser, loss_of=loss))


def trade_off() -> Study:
    """Studies escape time against contamination: powers, floors, mixtures, the bound, and a search for better f."""
    rate, p0, here = 0.2, exp(-41), 0.0125  # wrong share, start, contamination at which f are compared
    rows = []

    def add(curve: str, number: float, f: Commitment) -> None:
        c = rest(f, rate)
        rows.append(
            {
                "curve": curve, "number": number, "contamination": c, "escape_time": f.of(1.0) * escape_time(f, p0),
                "bound": least_escape_time(c, rate, p0), "contamination_of_100_labels": rest(f, rate, 100),
                "contamination_at_a_quarter": rest(f, 0.25),
            }
        )  # fmt: skip

    for q in (*np.linspace(0.2, 1.0, 17), power_at(here, rate)):
        add("power", q, power(q))
    for tau in (*np.exp(-np.linspace(7, 0.25, 28)), here * (1 - rate) / rate):
        add("floor", tau, floor(tau))
        add("mixture", tau, mixture(tau))
    for c in (*np.geomspace(0.0005, 0.15, 20), here):
        add("fastest", c, fastest(c, rate))
    for kind, monotone in (("found, nondecreasing", True), ("found, any f", False)):
        for c in (0.002, here, 0.05):
            add(kind, c, search(c, rate, p0, monotone=monotone))
    for c in np.geomspace(0.0005, 0.15, 20):
        rows.append(rows[0] | {"curve": "schedule", "number": c, "contamination": c} | dict.fromkeys(SPREAD, np.nan))
        rows[-1]["escape_time"], rows[-1]["bound"] = schedule_time(c, rate, p0), least_escape_time(c, rate, p0)
    study = Study(
        name="trade_off",
        title="How fast an example escapes, and how much of the wrong labels is learnt",
        claim="Ours. No nondecreasing `f ≤ f(1) = 1` with contamination c at a wrong share ε escapes sooner than "
        "`(1−c) ln(c/p0)/τ(c)`, `τ(c) = c (1−ε)/ε`, in any model with `‖∇ log P‖ ≤ 1`. The floor attains this bound up "
        "to about `c + (1 + ln((1−ε)/ε))/ln(c/p0)`; a power misses it by a power of 1/p0.",
        measured="",
        rows=rows,
    )
    escape, bound = study.column("escape_time"), study.column("bound")
    allowed = ~np.isin(study.column("curve"), ("found, any f", "schedule"))
    times = {curve: study.column("escape_time", curve=curve)[-1] for curve in ("power", "floor", "fastest")}
    found = {
        monotone: study.column("escape_time", curve=kind, number=here)[0]
        for kind, monotone in (("found, nondecreasing", True), ("found, any f", False))
    }
    spread = {curve: study.column("contamination_of_100_labels", curve=curve)[-1] for curve in ("power", "floor")}
    loose = study.column("contamination_of_100_labels", curve="found, any f", number=here)[0]
    brittle = study.column("contamination_at_a_quarter", curve="fastest")[-1]
    return study._replace(
        measured=f"ε = {rate:g}, p0 = e^−41. Escape time over the bound, least of all nondecreasing f: "
        f"{(escape / bound)[allowed].min():.3f}. At contamination {here:g}: q = {power_at(here, rate):.3f} takes "
        f"{times['power']:.2g}, the floor τ = 0.05 {times['floor']:.0f}, the bound is "
        f"{least_escape_time(here, rate, p0):.0f}, the fastest nondecreasing f {times['fastest']:.0f} (search: "
        f"{found[True]:.0f}); that one knows ε: at a wrong share of 0.25 its contamination is {brittle:.2f}, the "
        f"floor's {floor_rest(0.05, 0.25):.3f}. An f that may fall takes {found[False]:.0f}, but with 100 wrong labels "
        f"its contamination is {loose:.2f}, the floor's {spread['floor']:.4f}, the power's {spread['power']:.1e}. The "
        f"floor is faster than that power below p0 = {level_start(here, rate):.4f}. The bound is on an f of P alone: "
        f"q = 1 until P = 1/2 and q = 0 from then on takes {schedule_time(here, rate, p0):.0f}, if switched in time."
    )


def power_at(contamination: float, rate: float) -> float:
    """Computes the q at which a single wrong label has the given contamination."""
    return float(np.log(rate / (1 - rate)) / np.log(contamination / (1 - contamination)))


def level_start(contamination: float, rate: float) -> float:
    """Finds the p0 from which the floor and the power of this contamination take the same time to escape."""
    f, g = floor(contamination * (1 - rate) / rate), power(power_at(contamination, rate))
    low, high = 1e-15, contamination
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if escape_time(f, middle) < escape_time(g, middle) else (low, middle)
    return high


def search(contamination: float, rate: float, p0: float, *, monotone: bool, proposals: int = 12000) -> Commitment:
    """Searches step functions f ≤ 1 of at most this contamination (two labels) for the shortest escape from p0.

    Climbs from the floor: shifts log f on one random interval at a time, and keeps what is allowed and faster.
    """
    half = np.concatenate([np.geomspace(p0, contamination, 17), np.geomspace(contamination, 0.5, 41)[1:]])
    edges, n = np.concatenate([half, 1 - half[-2::-1]]), len(half) - 1
    odds = half / (1 - half)
    slowness = np.diff(np.log(odds) + 1 / (1 - half))  # ∫ du / (u (1−u)²) over each step below 1/2
    # Above c contamination must fall at the left end of every step, where it falls slowest.
    most = np.where(half[:-1] < contamination, np.inf, np.log(odds[:-1] * (1 - rate) / rate)) - 1e-6
    log_f = np.log(np.maximum(edges[:-1], 0.98 * contamination * (1 - rate) / rate))
    log_f -= log_f[-1]
    rng, best = np.random.default_rng(0), np.inf
    for _ in range(proposals):
        start, stop = np.sort(rng.integers(0, 2 * n + 1, 2))
        tried = log_f.copy()
        tried[start:stop] += rng.normal() * rng.choice([0.001, 0.01, 0.1, 1.0])
        tried = np.maximum.accumulate(np.minimum(tried, 0.0)) if monotone else np.minimum(tried, 0.0)
        if (tried[:n] <= tried[::-1][:n] + most).all() and (time := slowness @ np.exp(-tried[:n])) < best:
            log_f, best = tried, time
    return steps(edges, np.exp(log_f))


def floor_bias() -> Study:
    """Studies the plug-in's bias under floor and mixture, and how much of f a group of M rollouts follows."""
    tau, rows = 0.05, []
    curves = {"floor": floor(tau), "mixture": mixture(tau), "q = 0.75": power(0.75), "q = 1": power(1.0)}
    ps = np.geomspace(1e-8, 0.4, 36)
    rows = [_bias_row("one rare rationale", name, f, p, 32, tau) for name, f in curves.items() for p in ps]
    rows += [_bias_row("unlikely everywhere", name, f, p, 32, tau) for name, f in curves.items() for p in ps[ps < 0.3]]
    for m in (400, 10000):
        width = 3 * (tau * 0.8 / m) ** 0.5 / 0.85
        near = np.linspace(max(tau / 0.847 - width, 0.01), tau / 0.847 + width, 25)
        rows += [_bias_row("one rare rationale", "floor", curves["floor"], p, m, tau) for p in near]
    study = Study(
        name="floor_bias",
        title="Bias of the plug-in under a floor and under a mixture",
        claim="Ours. M times the bias tends to `h′(P) Cov(g, w) + h″(P)/2 Var(w) ∇ℓ_0`, `h = f/P`. So the mixture's "
        "bias is τ times that of q = 1, at every M; the floor's is that below τ and vanishes above; within `O(1/√M)` "
        "of τ it is `(σ_w/(τ √M)) (φ(x) − |x| Φ(−|x|)) ∇ℓ_0`, `x = (P − τ) √M/σ_w`. Leave-one-out has the plug-in's "
        "expectation.",
        measured="",
        rows=rows,
    )
    gap, ratio = _identities(tau)
    kink = study.column("relative_bias", commitment="floor", M=10000) / study.column(
        "kink", commitment="floor", M=10000
    )
    middle = abs(study.column("x", commitment="floor", M=10000)) < 1
    starved = {
        policy: study.column("followed", policy=policy, commitment="floor", M=32)[0] / tau
        for policy in ("one rare rationale", "unlikely everywhere")
    }
    return study._replace(
        measured=f"Enumerated at M = 6, rollouts of weight 0 among them: leave-one-out and plug-in differ by at most "
        f"{gap:.1e} of |∇ℓ|; the mixture's bias over τ times that of q = 1 is within {ratio:.1e} of 1. Near τ at "
        f"M = 10000 the bias over its formula is {kink[middle].min():.3f} to {kink[middle].max():.3f}. At P = 1e-8 and "
        f"M = 32 the floor's expected gradient is {starved['unlikely everywhere']:.2f} of what f(P) asks where the "
        f"answer is unlikely everywhere, and {starved['one rare rationale']:.2f} where one rare rationale succeeds: a "
        "group that misses it follows the others, whatever f."
    )


def _bias_row(policy_name: str, name: str, f: Commitment, p: float, m: int, tau: float) -> dict[str, str | float]:
    rare = policy_name == "one rare rationale"
    policy = two_rationales(p) if rare else unlikely(p)
    truth, likelihood = exact_gradient(policy, f), exact_gradient(policy, 1.0)
    if rare:
        bias = plug_in_bias(policy, f, m)
    else:
        options = PLUG_IN | ({"commitment": name, "tau": tau} if name in FAMILIES else {})
        q = float(name.removeprefix("q = ")) if name not in FAMILIES else 0.0
        bias = moments(policy, ESTIMATORS["garl"], options, q=q, m=m, target=f).mean - truth
    atoms, chance, size = gold_atoms(policy), success_probability(policy), float(np.linalg.norm(truth))
    deviation = float(atoms.probability @ (np.exp(atoms.log_w) - chance) ** 2) ** 0.5
    x = (chance - tau) * m**0.5 / deviation
    normal = exp(-x * x / 2) / (2 * pi) ** 0.5 - abs(x) * erfc(abs(x) / 2**0.5) / 2
    return {
        "policy": policy_name, "commitment": name, "M": m, "P": chance, "f": float(f.of(chance)),
        "followed": float((truth + bias) @ likelihood / (likelihood @ likelihood)),
        "relative_bias": float(np.linalg.norm(bias)) / size,
        "relative_leading": float(np.linalg.norm(leading_bias(policy, f))) / m / size,
        "x": x, "kink": deviation / (tau * m**0.5) * normal * min(1.0, chance / tau),
    }  # fmt: skip


def _identities(tau: float) -> tuple[float, float]:
    """Compares by enumeration leave-one-out with plug-in, and the mixture's bias with τ times that of q = 1."""
    with np.errstate(divide="ignore"):
        policy, garl = from_probabilities([0.1, 0.5, 0.4], [0.6, 0.02, 0.0]), ESTIMATORS["garl"]
    gaps, biases = [], []
    for name, (_, family, *_) in FAMILIES.items():
        truth = exact_gradient(policy, family(tau))
        followed = {"commitment": name, "tau": tau}
        plug, loo = (
            moments(policy, garl, followed | {"baseline": b}, q=0.0, m=6, target=family(tau)).mean
            for b in ("none", "loo")
        )
        gaps.append(np.linalg.norm(plug - loo) / np.linalg.norm(truth))
        biases.append(plug - truth)
    iwae = moments(policy, garl, PLUG_IN, q=1.0, m=6, target=1.0).mean - exact_gradient(policy, 1.0)
    return max(gaps), float(np.linalg.norm(biases[1] - tau * iwae) / np.linalg.norm(tau * iwae))


FLOOR_STUDIES = (commitments, floor_escape, floor_noise, trade_off, floor_minimiser, floor_bias)
