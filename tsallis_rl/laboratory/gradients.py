"""Studies of the estimators: bias, variance and the identities of docs/method.md §3."""

import jax
import numpy as np

from tsallis_rl.laboratory.commitments import Commitment, power
from tsallis_rl.laboratory.policy import (
    Policy,
    exact_gradient,
    from_probabilities,
    gold_atoms,
    leading_bias,
    log_softmax,
    rare,
    success_probability,
    unlikely,
)
from tsallis_rl.laboratory.pools import compiled_coefficients, make_pools, moments
from tsallis_rl.laboratory.study import QS, Study, slope
from tsallis_rl.laboratory.targets import TARGETS
from tsallis_rl.objectives import ESTIMATORS, RESAMPLING, garl

# The factor 1/M^q is a learning rate (docs/method.md §3): without it these estimate ∇ℓ_q itself.
PLUG_IN = {"normalize": False, "baseline": "none"}
LOO = {"normalize": False, "baseline": "loo"}
JACKKNIFE = {"normalize": False, "baseline": "none", "correction": "jackknife"}
VARIANTS = {
    "GARL plug-in": ("garl", PLUG_IN),
    "GARL leave-one-out": ("garl", LOO),
    "GARL jackknife": ("garl", JACKKNIFE),
    "PAFT": ("paft", {"normalize": False}),
}


def two_rationales(p: float) -> Policy:
    """Makes a policy of one rare rationale that succeeds and one other: one number counts a pool, so M can be large."""
    return from_probabilities([p, 1 - p], [0.8, 0.05 * p])


def bias_variance() -> Study:
    """Studies bias, variance and mean squared error as functions of M, P and q."""
    cells = [(m, 0.1, q) for m in (2, 4, 8, 16, 32, 128) for q in QS]
    cells += [(16, p, q) for p in (0.003, 0.01, 0.03, 0.3) for q in QS]
    rows = []
    for m, p, q in cells:
        policy = rare(p)
        size = float(np.linalg.norm(exact_gradient(policy, q)))
        for label, (name, options) in VARIANTS.items():
            got = moments(policy, ESTIMATORS[name], options, q=q, m=m, target=q, draws=1000 if m > 32 else 3000)
            rows.append(
                {
                    "estimator": label, "M": m, "p_rare": p, "P": success_probability(policy), "q": q,
                    "exact": got.exact, "relative_bias": got.bias / size, "relative_bias_error": got.bias_error / size,
                    "relative_variance": got.variance / size**2, "relative_mse": got.mse / size**2,
                }
            )  # fmt: skip
    study = Study(
        name="bias_variance",
        title="Bias, variance and mean squared error of one prompt's gradient",
        claim="GARL's plug-in bias is `O(q/M)` at fixed P and zero at q = 0; PAFT has the same bias and more variance; "
        "the leave-one-out baseline changes the variance alone.",
        measured="",
        rows=rows,
    )
    both = [
        study.column("relative_bias", estimator=f"GARL {kind}", exact=True) for kind in ("plug-in", "leave-one-out")
    ]
    at_zero = study.column("relative_bias", estimator="GARL plug-in", q=0.0, exact=True)
    here = {"M": 16, "p_rare": 0.1, "q": 0.75}
    mse = {label: study.column("relative_mse", estimator=label, **here)[0] for label in VARIANTS}
    share = {label: study.column("relative_bias", estimator=label, **here)[0] ** 2 / mse[label] for label in VARIANTS}
    return study._replace(
        measured=f"Enumerated: the biases of plug-in and leave-one-out differ by at most "
        f"{abs(both[0] - both[1]).max():.1e} "
        f"of |∇ℓ_q|, and at q = 0 are at most {at_zero.max():.1e}. At M = 16, P = "
        f"{success_probability(rare(0.1)):.3f}, "
        "q = 0.75 the relative mean squared error, and the part of it that is bias, are: "
        + ", ".join(f"{label} {mse[label]:.2f} ({share[label]:.1%})" for label in VARIANTS)
        + ". At this M P of 1.6 the jackknife pays for the smaller bias with variance."
    )


def every_estimator() -> Study:
    """Studies every estimator on one policy, against the gradient of its own objective."""
    policy, m, rows = rare(0.1), 8, []
    to_log_p = exact_gradient(policy, 1.0)
    for name, row in ESTIMATORS.items():
        if not row.rationale:
            continue  # trains a model without rationales
        q, target = 0.75 if row.q is None else row.q, TARGETS[name]
        truth = target.gradient(policy, m, q)
        size = float(np.linalg.norm(truth))
        got = moments(policy, row, {"normalize": False}, q=q, m=m, target=truth, draws=20000)
        rows.append(
            {
                "estimator": name, "target": target.name, "unbiased": target.unbiased, "exact": got.exact,
                "cosine": _cosine(got.mean, truth), "cosine_to_log_p": _cosine(got.mean, to_log_p),
                "relative_bias": got.bias / size, "relative_bias_error": got.bias_error / size,
                "relative_deviation": got.variance**0.5 / size,
            }
        )  # fmt: skip
    unbiased = [row["estimator"] for row in rows if row["exact"] and row["relative_bias"] < 1e-12]
    return Study(
        name="every_estimator",
        title="Every estimator against its own objective, M = 8",
        claim="Each estimator follows the gradient of an objective that can be written down, exactly or up to its "
        "bias; summing the answer out lowers the variance.",
        measured=f"Unbiased to rounding by enumeration: {', '.join(unbiased)}. Relative deviation of RLOO on hard "
        f"rewards {_deviation(rows, 'rloo'):.2f}, with the answer summed out {_deviation(rows, 'rb_rloo'):.2f}. "
        "RLPR and NOVER standardise a reward in its group, so the size of their gradient differs from that of the "
        "expected reward's, and their bias does not vanish with M.",
        rows=rows,
    )


def resampling_expectation() -> Study:
    """Studies E[PAFT | pool] = GARL plug-in of that pool."""
    log_w = np.array([-0.3, -1.1, -2.0, -2.2, -3.5, -5.0, -9.0, -np.inf])
    q, keys = 0.5, jax.random.split(jax.random.key(0), 10000)
    want = np.asarray(garl(log_w, q, **PLUG_IN).path)
    pools = np.broadcast_to(log_w, (len(keys), len(log_w)))
    rows = []
    for scheme in RESAMPLING:
        for draws in (3, 8, 32):
            options = (("num_draws", draws), ("resampling", scheme), ("normalize", False))
            group = {"key": keys, "log_w": pools, "q": q}
            got = np.asarray(compiled_coefficients(ESTIMATORS["paft"], options, group).score)
            error = got.std(0) / len(keys) ** 0.5
            rows += [
                {
                    "resampling": scheme, "K": draws, "rollout": m, "log_w": log_w[m], "plug_in": want[m],
                    "mean": got[:, m].mean(), "error": error[m], "deviation": got[:, m].std(),
                }
                for m in range(len(log_w))
            ]  # fmt: skip
    z = [abs(row["mean"] - row["plug_in"]) / row["error"] for row in rows if row["error"] > 0]
    spread = {
        scheme: sum(r["deviation"] ** 2 for r in rows if r["resampling"] == scheme and r["K"] == 8)
        for scheme in RESAMPLING
    }
    return Study(
        name="resampling_expectation",
        title="PAFT averaged over its draws is GARL's plug-in",
        claim="Given the pool, the expectation of PAFT is GARL plug-in, for any M, K and q.",
        measured=f"Largest deviation over {len(z)} rollouts, schemes and K, with {len(keys)} keys each: {max(z):.1f} "
        f"standard errors. "
        "Variance added by the draws at K = 8, relative to categorical: "
        + ", ".join(f"{scheme} {spread[scheme] / spread['categorical']:.2f}" for scheme in RESAMPLING)
        + ".",
        rows=rows,
    )


def variance_ordering() -> Study:
    """Studies the variance of plug-in, leave-one-out and PAFT with each resampling."""
    policy, m, rows = rare(0.1), 16, []
    for q in QS:
        size = float(exact_gradient(policy, q) @ exact_gradient(policy, q))
        base = {"q": q, "draws_alone": _added_by_draws(policy, q, m) / size}
        for label, options in (("GARL plug-in", PLUG_IN), ("GARL leave-one-out", LOO)):
            got = moments(policy, ESTIMATORS["garl"], options, q=q, m=m, target=q)
            rows.append(base | {"estimator": label, "relative_variance": got.variance / size, "error": 0.0})
        for scheme in RESAMPLING:
            options = {"normalize": False, "resampling": scheme}
            got = moments(policy, ESTIMATORS["paft"], options, q=q, m=m, target=q, draws=20000)
            rows.append(
                base
                | {
                    "estimator": f"PAFT {scheme}", "relative_variance": got.variance / size,
                    "error": got.variance_error / size,
                }
            )  # fmt: skip
    study = Study(
        name="variance_ordering",
        title="The order of the variances, M = K = 16",
        claim="Var(PAFT) ≥ Var(GARL plug-in): resampling adds noise to the pool's own.",
        measured="",
        rows=rows,
    )
    plug, loo, drawn = (
        study.column("relative_variance", estimator=label)
        for label in ("GARL plug-in", "GARL leave-one-out", "PAFT categorical")
    )
    error = study.column("error", estimator="PAFT categorical")
    theory = plug + study.column("draws_alone", estimator="GARL plug-in")
    others = {s: study.column("relative_variance", estimator=f"PAFT {s}") for s in RESAMPLING}
    return study._replace(
        measured=f"PAFT over plug-in, q = 0 to 1: {_ratios(drawn, plug)}; plug-in plus the draws' own variance, "
        f"enumerated, "
        f"is met within {np.max(abs(drawn - theory) / error):.1f} standard errors. Systematic draws: "
        f"{_ratios(others['systematic'], plug)}; residual: {_ratios(others['residual'], plug)}. Leave-one-out over "
        f"plug-in: "
        f"{_ratios(loo, plug)}."
    )


def bias_order() -> Study:
    """Studies which published order describes the plug-in's bias, over six decades of P."""
    rows = [_bias_at(p, q) for p in np.logspace(-6, -0.7, 14) for q in QS[1:]]
    study = Study(
        name="bias_order",
        title="Which order describes the bias: O(q/(M P^(q+1))) or O(q/(M P^q))",
        claim="v1 of the paper gives the plug-in's bias as `O(q/(M P^(q+1)))`, v2 as `O(q/(M P^q))`.",
        measured="",
        rows=rows,
    )
    slopes = {
        family: [_tail_slope(study, f"{family}_measured", q, "P" if family == "rare" else "unlikely_P") for q in QS[1:]]
        for family in ("rare", "unlikely")
    }
    off = max(abs(row["rare_measured"] / row["rare_formula"] - 1) for row in rows)
    listed = {family: ", ".join(f"{s:+.3f}" for s in values) for family, values in slopes.items()}
    at_32 = study.column("rare_relative_bias_M32", q=0.75)[0]
    return study._replace(
        measured="Power of P in M × bias at q = 0.25, 0.5, 0.75, 1. Success by one rare rationale, the worst case: "
        f"{listed['rare']}, which is −q: v2's order is the tight one, v1's is an upper bound a factor 1/P too large. A "
        f"gold answer unlikely after every rationale, as in a cold start: {listed['unlikely']}, which is 1 − q: "
        f"smaller than both. Either is the limit of large M only (reached within {off:.1%} at M P = 1000): at M = 32 "
        f"and P = 1e-6 the relative bias at q = 0.75 is {at_32:.3f}, since almost every pool misses the rationale, and "
        "1/M orders say nothing."
    )


def _bias_at(p: float, q: float) -> dict[str, float]:
    """Measures the plug-in's bias where one rationale of probability p succeeds, and where all are unlikely to."""
    policy, m = two_rationales(p), round(1000 / p)
    size = float(np.linalg.norm(exact_gradient(policy, q)))
    leading = float(np.linalg.norm(leading_bias(policy, q)))
    cold = unlikely(p)
    half, whole = (moments(cold, ESTIMATORS["garl"], PLUG_IN, q=q, m=m, target=q).bias * m for m in (16, 32))
    return {
        "p": p, "q": q, "P": success_probability(policy),
        "rare_measured": m * float(np.linalg.norm(plug_in_bias(policy, power(q), m))), "rare_M": m,
        "rare_formula": leading,
        "rare_relative_bias_M32": moments(policy, ESTIMATORS["garl"], PLUG_IN, q=q, m=32, target=q).bias / size,
        "rare_relative_leading_M32": leading / 32 / size,
        "unlikely_P": success_probability(cold),
        # Twice the value at M = 32 minus that at 16: the limit of M times the bias, up to O(1/M²).
        "unlikely_measured": 2 * whole - half,
        "unlikely_formula": float(np.linalg.norm(leading_bias(cold, q))),
    }  # fmt: skip


def jackknife() -> Study:
    """Studies bias and variance of the jackknifed plug-in, enumerated."""
    policy, rows = two_rationales(0.3), []
    for q in QS[1:]:
        size = float(np.linalg.norm(exact_gradient(policy, q)))
        for m in (4, 8, 16, 32, 64, 128):
            for label, options in (("plug-in", PLUG_IN), ("jackknife", JACKKNIFE)):
                got = moments(policy, ESTIMATORS["garl"], options, q=q, m=m, target=q)
                rows.append(
                    {
                        "estimator": label, "q": q, "M": m, "relative_bias": got.bias / size,
                        "relative_variance": got.variance / size**2, "relative_mse": got.mse / size**2,
                    }
                )  # fmt: skip
    study = Study(
        name="jackknife",
        title="The jackknife takes the 1/M term out of the bias",
        claim="Left open by the paper: bias-corrected weights. Expected: bias `O(1/M²)` instead of `O(1/M)`.",
        measured="",
        rows=rows,
    )
    fits = {}
    for label in ("plug-in", "jackknife"):
        m, bias = (study.column(name, estimator=label, q=0.75) for name in ("M", "relative_bias"))
        fits[label] = slope(m[-2:], bias[-2:])
    ratio = {
        m: study.column("relative_variance", estimator="jackknife", q=0.75, M=m)[0]
        / study.column("relative_variance", estimator="plug-in", q=0.75, M=m)[0]
        for m in (4, 16, 128)
    }
    return study._replace(
        measured=f"q = 0.75, P = {success_probability(policy):.2f}, enumerated: from M = 64 to 128 the bias falls as "
        f"M^{fits['plug-in']:.2f} (plug-in) and M^{fits['jackknife']:.2f} (jackknife). Variance, jackknife over "
        f"plug-in: " + ", ".join(f"{value:.2f} at M = {m}" for m, value in ratio.items()) + "."
    )


def plug_in_bias(policy: Policy, f: Commitment, m: int) -> np.ndarray:
    """Sums the bias of −ḡ f(w̄)/w̄ for a policy of two rationales over how often the first was drawn → [F].

    Written in numpy, so that M can be larger than any pool.
    """
    atoms = gold_atoms(policy)
    p, w = atoms.probability[0], np.exp(atoms.log_w)
    centre, width = round(m * p), int(14 * (m * p * (1 - p)) ** 0.5) + 40
    k = np.arange(max(centre - width, 0), min(centre + width, m) + 1)
    steps = np.log((m - k[:-1]) / (k[:-1] + 1) * p / (1 - p))
    log_pmf = np.concatenate([[0.0], np.cumsum(steps)])
    pmf = np.exp(log_pmf - log_pmf.max())
    pmf /= pmf.sum()
    share = np.stack([k / m, 1 - k / m], axis=-1) * w
    estimate = -(share @ (atoms.score + atoms.path)) * f.amplification(share.sum(-1, keepdims=True))
    return pmf @ estimate - exact_gradient(policy, f)


def _added_by_draws(policy: Policy, q: float, m: int) -> float:
    """Averages over pools the variance that K = M categorical draws add, in closed form for each pool."""
    atoms = gold_atoms(policy)
    pools = make_pools(atoms, m, draws=1, rng=np.random.default_rng(0))
    log_w = atoms.log_w[pools.index]
    w, p = np.exp(log_w), np.exp(log_softmax(log_w))
    g = (atoms.score + atoms.path)[pools.index]
    centred = g - np.einsum("nm,nmd->nd", p, g)[:, None]
    within = np.einsum("nm,nmd->n", p, centred**2)
    return float(pools.probability @ (w.mean(-1) ** (2 - 2 * q) * within / m))


def _tail_slope(study: Study, column: str, q: float, p_column: str) -> float:
    p, y = study.column(p_column, q=q), study.column(column, q=q)
    return slope(p[p < 1e-3], y[p < 1e-3])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _deviation(rows: list[dict], name: str) -> float:
    return next(row["relative_deviation"] for row in rows if row["estimator"] == name)


def _ratios(a: np.ndarray, b: np.ndarray) -> str:
    return ", ".join(f"{x:.2f}" for x in a / b)


GRADIENT_STUDIES = (bias_variance, every_estimator, resampling_expectation, variance_ordering, bias_order, jackknife)
