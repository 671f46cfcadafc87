"""Studies of the loss itself: its minimiser, its dispersion, and its gradient flow (docs/method.md §2)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tsallis_rl.laboratory import commitments
from tsallis_rl.laboratory.study import QS, Study, slope
from tsallis_rl.objectives import log_q, tsallis_loss

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def escort() -> Study:
    """Studies the minimiser of Σ_j α_j ℓ_q(θ_j) by Newton's method, against θ_j ∝ α_j^(1/q)."""
    alpha = np.array([0.45, 0.3, 0.15, 0.1])
    qs = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    found = np.asarray(jax.jit(jax.vmap(minimiser, (None, 0)))(alpha, qs))
    want = escort_distribution(alpha, qs[:, None])
    rows = [
        {"q": q, "label": j, "data_frequency": alpha[j], "optimised": found[i, j], "escort": want[i, j]}
        for i, q in enumerate(qs)
        for j in range(len(alpha))
    ]
    return Study(
        name="escort",
        title="The minimiser is the escort distribution",
        claim="For `0 < q ≤ 1` the unique minimiser over a categorical model is `θ_j ∝ α_j^(1/q)`: the data at q = 1, "
        "the mode as `q → 0`.",
        measured=f"Largest difference between Newton's minimiser and the formula, ten values of q: "
        f"{abs(found - want).max():.1e}. Mass on "
        f"the mode, of which the data have {alpha[0]:.2f}: {want[0, 0]:.3f} at q = 0.1, {want[4, 0]:.3f} at q = 0.5, "
        f"{want[-1, 0]:.3f} at q = 1.",
        rows=rows,
    )


def dispersion() -> Study:
    """Studies J_Q − (−log_q(mean P)) against its second order (q/2) P̄^(−q−1) Var(P)."""
    mean, pattern, rows = 0.2, np.linspace(-1, 1, 11), []
    for q in QS:
        for spread in np.logspace(-2, -0.02, 12):
            p = mean * (1 + spread * pattern)
            excess = float(-np.mean(log_q(p, q)) + log_q(np.float64(mean), q))
            second = q / 2 * mean ** (-q - 1) * p.var()
            rows.append({"q": q, "relative_spread": spread, "excess": excess, "second_order": second})
    study = Study(
        name="dispersion",
        title="Dispersion of P over examples costs loss",
        claim="`J_Q ≥ −log_q(mean P)`, with equality iff P is equal on all examples; to second order the excess is "
        "`(q/2) P̄^(−q−1) Var(P)`.",
        measured="",
        rows=rows,
    )
    excess, second = study.column("excess"), study.column("second_order")
    some = study.column("q") > 0
    near, far = (
        (excess[some] / second[some])[study.column("relative_spread")[some] == edge]
        for edge in (rows[0]["relative_spread"], rows[-1]["relative_spread"])
    )
    return study._replace(
        measured=f"Smallest excess for q > 0: {excess[some].min():.1e}; largest at q = 0: "
        f"{abs(excess[~some]).max():.1e}. Excess over "
        f"its second order: within {abs(near - 1).max():.1e} of 1 at a spread of 1%, and {far.min():.2f} to "
        f"{far.max():.2f} at 95%."
    )


def escape() -> Study:
    """Studies how long the gradient flow of one example, P = σ(θ), takes to climb from p0 to 1/2."""
    target, starts = 0.5, np.logspace(-6, -1, 11)
    times = np.asarray(escape_times(*np.meshgrid(QS, starts, indexing="ij"), target))
    rows = []
    for q, row in zip(QS, times, strict=True):
        for p0, time in zip(starts, row, strict=True):
            rows.append(
                {
                    "q": q, "p0": p0, "simulated": time,
                    "integral": commitments.escape_time(commitments.power(q), p0, target),
                    "order": p0 ** (q - 1) / (1 - q) if q < 1 else np.log(1 / p0),
                }
            )  # fmt: skip
    study = Study(
        name="escape",
        title="Escape from a cold start by gradient flow",
        claim="Theorem 5.2: `T_q = Θ(p0^(−(1−q))/(1−q))` for q < 1 and `Θ(log 1/p0)` at q = 1; for `P = σ(θ), T_q = ∫ "
        "du/(u^(2−q)(1−u)²)`.",
        measured="",
        rows=rows,
    )
    off = abs(study.column("simulated") / study.column("integral") - 1).max()
    slopes = []
    for q in QS[:-1]:
        p0, time = study.column("p0", q=q), study.column("simulated", q=q)
        slopes.append(slope(p0[:5], time[:5]))
    p0, time = study.column("p0", q=1.0), study.column("simulated", q=1.0)
    per_nat = float(np.polyfit(np.log(1 / p0[:5]), time[:5], 1)[0])
    first = {q: study.column("simulated", q=q)[0] for q in QS}
    return study._replace(
        measured=f"Flow of the loss as implemented, against the integral: within {off:.1e}. Power of p0 for q = 0 "
        f"to 0.75, below "
        f"p0 = 1e-4: {', '.join(f'{s:.3f}' for s in slopes)} (claimed q − 1); at q = 1, {per_nat:.3f} per nat of "
        f"1/p0. From "
        f"p0 = 1e-6: {', '.join(f'{first[q]:.3g} at q = {q:g}' for q in QS)}."
    )


def noise() -> Study:
    """Studies contamination p̃ by labels flipped at rate ε: where its gradient flow rests, and how soon."""
    rows = []
    for q in QS[1:]:
        for rate in (0.001, 0.01, 0.05, 0.1, 0.2, 0.3):
            stable = (rate / (1 - rate)) ** (1 / q)
            settled = resting_point(q, rate)
            shares = np.array([0.01, 0.03, 0.1, 0.3, 0.6, 0.9])
            times = fitting_times(q, rate, shares * settled)
            rows += [
                {
                    "q": q, "flip_rate": rate, "stable_flow": settled, "stable_order": stable,
                    "stable_exact": stable / (1 + stable), "share_of_stable": share, "eta": share * settled,
                    "time": time, "time_order": (share * settled) ** (q + 1) / ((q + 1) * rate),
                }
                for share, time in zip(shares, times, strict=True)
            ]  # fmt: skip
    study = Study(
        name="noise",
        title="Fitting of wrong labels",
        claim="Gradient flow on the contamination p̃ is stable at `(ε/(1−ε))^(1/q) (1 + o(1))`; it reaches η far below "
        "that in time `Θ(η^(q+1)/((q+1) ε))`; at q = 0 never.",
        measured="",
        rows=rows,
    )
    exact = abs(study.column("stable_flow") / study.column("stable_exact") - 1).max()
    order = {rate: study.column("stable_flow", q=1.0, flip_rate=rate)[0] / (rate / (1 - rate)) for rate in (0.001, 0.3)}
    ratio = {
        share: study.column("time", share_of_stable=share) / study.column("time_order", share_of_stable=share)
        for share in (0.01, 0.9)
    }
    twenty = {q: study.column("stable_flow", q=q, flip_rate=0.2)[0] for q in QS[1:]}
    falls = contamination_rate(0.1, 0.0, 0.2)
    return study._replace(
        measured=f"The flow comes to rest at r/(1+r), r = (ε/(1−ε))^(1/q), within {exact:.1e}; over the claimed r "
        f"that is, at q = 1, "
        f"{order[0.001]:.3f} for ε = 0.001 but {order[0.3]:.2f} for ε = 0.3. Time over η^(q+1)/((q+1) ε): "
        f"{ratio[0.01].min():.3f} to "
        f"{ratio[0.01].max():.3f} at 1% of the way, {ratio[0.9].min():.1f} to {ratio[0.9].max():.1f} at 90%: the "
        f"power that must be small is (η/rest)^q. With 20% of labels wrong "
        f"p̃ ends at {', '.join(f'{twenty[q]:.3g} (q = {q:g})' for q in QS[1:])}; at q = 0 dp̃/dt = {falls:.1f}, "
        f"whatever p̃."
    )


def softmax_noise() -> Study:
    """Studies the time to contamination η where the parameter is the logit of p̃, as in a softmax, and not p̃ itself."""
    rate, below = 0.1, 0.1  # share of labels that are flipped; η over the resting point
    rows = []
    for q in QS[1:]:
        eta = below * resting_point(q, rate)
        for start in eta * np.logspace(-1, -8, 8):
            rows.append(
                {
                    "q": q, "start": start, "eta": eta, "time": softmax_fitting_time(q, rate, start, eta),
                    "time_order": softmax_order(q, rate, start, eta),
                    "time_with_p_as_parameter": fitting_times(q, rate, np.array([eta]))[0],
                }
            )  # fmt: skip
    study = Study(
        name="softmax_noise",
        title="Fitting of wrong labels by a softmax",
        claim="The bound of the paper's noise proposition takes p̃ itself for the parameter. With `p̃ = σ(θ)` the "
        "score vanishes with p̃: the time to η tends to `p̃0^−(1−q)/((1−q) ε)` for q < 1 and to `ln(η/p̃0)/ε` at q = "
        "1, and grows without bound as `p̃0 → 0`, as an escape does (ours).",
        measured="",
        rows=rows,
    )
    ratio = {
        q: study.column("time", q=q)[[0, -1]] / study.column("time_order", q=q)[[0, -1]] for q in dict.fromkeys(QS[1:])
    }
    longer = study.column("time", q=0.75)[[0, -1]] / study.column("time_with_p_as_parameter", q=0.75)[0]
    return study._replace(
        measured=f"ε = {rate:g}, η a tenth of the resting point. Time over the claimed order, from η/10 and from "
        f"η/10⁸: {', '.join(f'{a:.2f} and {b:.3f} (q = {q:g})' for q, (a, b) in ratio.items())}. At q = 0.75 that is "
        f"{longer[0]:.3g} and {longer[1]:.3g} times as long as with p̃ as the parameter, which needs no start above 0."
    )


class Approach(NamedTuple):
    """How a parametrisation approaches P = 1.

    Attributes:
      score: ‖∇ log P‖² as a function of 1 − P.
      power: the power of 1 − P to which the score is proportional as P → 1.
      limit: factor of that power; also the limiting growth rate of 1/(1−P) (power 2) or of ln 1/(1−P) (power 1).
    """

    score: Callable[[np.ndarray], np.ndarray]
    power: int
    limit: float


LABELS = 5
APPROACHES = {
    "sigmoid": Approach(lambda miss: miss**2, 2, 1.0),
    f"softmax of {LABELS}": Approach(lambda miss: miss**2 * LABELS / (LABELS - 1), 2, LABELS / (LABELS - 1)),
    "exp(−θ²/2)": Approach(lambda miss: -2 * np.log1p(-miss), 1, 2.0),
}


def near_optimum() -> Study:
    """Studies how 1 − P vanishes under gradient flow, for scores of order 1 − P and of order √(1 − P)."""
    start, misses = 0.01, np.logspace(0, -6, 121)[1:]
    rows = []
    for name, (score, power, limit) in APPROACHES.items():
        grown = 1 / misses if power == 2 else np.log(1 / misses)
        for q in QS:
            times = times_to_optimum(q, score, start, misses)
            rates = np.gradient(grown, times) / limit
            rows += [
                {"parametrisation": name, "q": q, "miss": miss, "time": time, "rate_over_limit": rate}
                for miss, time, rate in zip(misses, times, rates, strict=True)
            ]
    study = Study(
        name="near_optimum",
        title="Near the optimum every commitment is as fast",
        claim="Proposition C.1: the rate at which P approaches 1 does not depend on q. An example's flow takes the "
        "same path for every q, at speeds that differ by powers of P, and P → 1 (ours from here): where 1−P is at "
        "most u, q takes `P^−(1−q)`, at most `(1−u)^−(1−q)`, times as long as q = 1, whatever the model. With P = "
        "σ(θ), `1/(1−P)` grows by 1 a unit of time; with a softmax of K labels, the wrong ones equal, by `K/(K−1)`; "
        "where P has its maximum at finite parameters, `P = exp(−θ²/2)`, 1−P decays as `e^(−2t)`.",
        measured="",
        rows=rows,
    )
    texts = []
    for name in APPROACHES:
        rates = [study.column("rate_over_limit", parametrisation=name, miss=miss) for miss in misses[[19, 59, -2]]]
        ratios = [f"{x.min():.4f}–{x.max():.4f}" for x in rates]
        times = study.column("time", parametrisation=name, miss=misses[-1])
        texts.append(
            f"{name}: {', '.join(ratios)}, time to 1−P = 1e-6 {times[0]:.8g} at q = 0, {times[-1]:.8g} at q = 1"
        )
    return study._replace(
        measured=f"From P = {start:g}. Rate over its limit, least and most over q, at 1−P = {misses[19]:.2g}, "
        f"{misses[59]:.2g} and {misses[-2]:.2g}: {'; '.join(texts)}. The times differ by that of the escape, and where "
        "1/(1−P) grows linearly by one logarithm more, ln 1/(1−P) for each unit of q."
    )


def times_to_optimum(
    q: float, score: Callable[[np.ndarray], np.ndarray], start: float, misses: np.ndarray
) -> np.ndarray:
    """Integrates the times that dP/dt = P^(2−q) ‖∇ log P‖² takes to bring 1 − P down to each of `misses`.

    Uses Gauss–Legendre quadrature in the logit of P, where the integrand is smooth at both ends.

    Args:
      q: commitment.
      score: ‖∇ log P‖² as a function of 1 − P.
      start: P at time 0.
      misses: falling values of 1 − P.

    Returns:
      One time for each of `misses`.
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(40)
    edges = np.log((1 - misses) / misses, dtype=np.float64)
    edges = np.concatenate([[np.log(start / (1 - start))], edges])
    half = np.diff(edges)[:, None] / 2
    theta = edges[:-1, None] + half * (nodes + 1)
    p, miss = 1 / (1 + np.exp(-theta)), 1 / (1 + np.exp(theta))
    return np.cumsum((half * node_weights * miss * p ** (q - 1) / score(miss)).sum(-1))


def minimiser(alpha: jax.Array, number: jax.Array, loss_of: Loss = tsallis_loss) -> jax.Array:
    """Minimises Σ_j α_j ℓ(softmax(logits)_j) by Newton steps of at most one unit, from the uniform distribution.

    Args:
      alpha: [labels] frequencies.
      number: q, or another parameter of the loss.
      loss_of: ℓ of log P and that number.
    """

    def loss(logits: jax.Array) -> jax.Array:
        return alpha @ loss_of(jax.nn.log_softmax(logits), number)

    def newton(logits: jax.Array, searching: jax.Array) -> tuple[jax.Array, None]:
        value, vector = jnp.linalg.eigh(jax.hessian(loss)(logits))
        # Curvature is 0 along a shift of all logits, which changes nothing, and at an inflection of the loss.
        step = -vector @ ((vector.T @ jax.grad(loss)(logits)) / jnp.maximum(jnp.abs(value), 1e-12))
        step = step / jnp.maximum(1.0, jnp.linalg.norm(step))
        tried = logits + 0.5 ** jnp.arange(12)[:, None] * step
        return tried[jnp.where(searching, jnp.argmin(jax.vmap(loss)(tried)), 0)], None

    # 90 steps are shortened where that helps, as across a kink; the last are whole: exact beyond the loss's rounding.
    logits, _ = jax.lax.scan(newton, jnp.zeros_like(alpha), jnp.arange(100) < 90)
    return jax.nn.softmax(logits)


def escort_distribution(alpha: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Computes α_j^(1/q), normalised over the last axis."""
    power = np.asarray(alpha) ** (1 / np.asarray(q))
    return power / power.sum(-1, keepdims=True)


# A small program that runs once: not worth optimising.
@functools.partial(
    jax.jit, static_argnames=("loss_of", "steps"), compiler_options={"xla_backend_optimization_level": 0}
)
def escape_times(
    number: ArrayLike,
    start: ArrayLike,
    target: float,
    *,
    loss_of: Loss = tsallis_loss,
    step: float = 0.05,
    steps: int = 600,
) -> jax.Array:
    """Simulates the times that dθ/dt = −∂ℓ(σ(θ))/∂θ takes to move P = σ(θ) to the target; the loss is ours.

    Uses fourth-order Runge–Kutta. A step moves θ by about `step`, and the last one ends at the target. A time is NaN if
    `steps` are too few.

    Args:
      number: any shape; q, or another parameter of the loss.
      start: P at time 0, shaped like `number`.
      target: P at the end.
      loss_of: ℓ of log P and that number.
      step: change of θ in a step.
      steps: number of steps, at most.
    """
    loss_slope = jnp.vectorize(jax.grad(lambda theta, number: loss_of(jax.nn.log_sigmoid(theta), number)))
    goal = jnp.log(target / (1 - target))

    def velocity(theta: jax.Array) -> jax.Array:
        return -loss_slope(theta, number)

    def runge_kutta(x: jax.Array, dt: jax.Array) -> jax.Array:
        k1 = velocity(x)
        k2 = velocity(x + dt / 2 * k1)
        k3 = velocity(x + dt / 2 * k2)
        k4 = velocity(x + dt * k3)
        return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def advance(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        theta, time = carry
        speed = velocity(theta)
        dt = jnp.minimum(step, goal - theta) / speed  # negative if the last step overshot
        return runge_kutta(theta, dt), time + dt

    theta = jnp.log(start / (1 - start))
    theta, time = jax.lax.fori_loop(0, steps, advance, (theta, jnp.zeros_like(theta)))
    return jnp.where(jnp.abs(theta - goal) < 1e-9, time, jnp.nan)


def contamination_rate(p: float | np.ndarray, q: float, rate: float) -> float | np.ndarray:
    """Computes dp̃/dt of gradient flow on p̃ itself: ε p̃^(−q) − (1−ε) (1−p̃)^(−q)."""
    return rate * p**-q - (1 - rate) * (1 - p) ** -q


def resting_point(q: float, rate: float) -> float:
    """Finds where the flow on p̃ rests, by bisection: its velocity falls as p̃ rises."""
    low, high = 1e-12, 1 - 1e-12
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if contamination_rate(middle, q, rate) > 0 else (low, middle)
    return high


def fitting_times(q: float, rate: float, etas: np.ndarray) -> np.ndarray:
    """Computes the times that p̃ takes to rise from 0 to each η below the stable point, by Runge–Kutta in log p̃."""
    start = etas.min() * 1e-3
    time = start ** (q + 1) / ((q + 1) * rate)  # exact as p̃ → 0
    times, log_p = [], np.log(start)
    for goal in np.log(np.sort(etas)):
        steps = max(int((goal - log_p) / 0.002), 50)
        grid = np.linspace(log_p, goal, 2 * steps + 1)
        slowness = np.exp(grid) / contamination_rate(np.exp(grid), q, rate)
        # dt/d log p̃ does not depend on t, so a Runge–Kutta step is Simpson's rule.
        time += (
            (grid[-1] - grid[0])
            / (6 * steps)
            * (slowness[0] + 4 * slowness[1::2].sum() + 2 * slowness[2:-1:2].sum() + slowness[-1])
        )
        times.append(time)
        log_p = goal
    return np.array(times)


def softmax_fitting_time(q: float, rate: float, start: float, eta: float) -> float:
    """Integrates the time that gradient flow on the logit of p̃ takes from `start` to `eta` below the resting point.

    The flow is dp̃/dt = (p̃ (1−p̃))² (ε p̃^(−q) − (1−ε) (1−p̃)^(−q)); the rule is Simpson's, in log p̃.
    """
    steps = 4000
    p = np.exp(np.linspace(np.log(start), np.log(eta), 2 * steps + 1))
    slowness = p / ((p * (1 - p)) ** 2 * contamination_rate(p, q, rate))  # dt / d log p̃
    inside = 4 * slowness[1::2].sum() + 2 * slowness[2:-1:2].sum()
    return float(np.log(eta / start) / (6 * steps) * (slowness[0] + inside + slowness[-1]))


def softmax_order(q: float, rate: float, start: float, eta: float) -> float:
    """Computes the order of `softmax_fitting_time` as the start goes to 0."""
    return float(np.log(eta / start) / rate if q == 1 else start ** -(1 - q) / ((1 - q) * rate))


FLOW_STUDIES = (escort, dispersion, escape, near_optimum, noise, softmax_noise)
