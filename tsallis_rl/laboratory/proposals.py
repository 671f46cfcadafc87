"""The study of proposals: P̂ and the gradient from rationales drawn knowing the answer, all pools enumerated."""

import numpy as np

from tsallis_rl.laboratory.policy import Atoms, Policy, exact_gradient, from_probabilities, gold_atoms
from tsallis_rl.laboratory.pools import Pools, estimates, make_pools
from tsallis_rl.laboratory.study import Study
from tsallis_rl.objectives import ESTIMATORS

PLUG_IN = {"baseline": "none", "normalize": False}
M, Q = 8, 0.75
SUCCESSES = (0.5, *(float(np.exp(-nats)) for nats in (2, 5, 10, 20, 40)))
RESTATING = 3  # the rationale of `reasoned` that merely restates the answer
# name -> share of the posterior in r, the rest being p; None: r mostly restates the answer.
PROPOSALS = {"prior": 0.0, "share 0.1": 0.1, "share 0.5": 0.5, "posterior": 1.0, "restating": None}


def reasoned(p: float) -> Policy:
    """Makes a policy with P = p, most of it from one rationale as rare as the answer, the rest from three others.

    The fourth rationale restates the answer: it makes the answer certain and is rarer than the answer.
    """
    rest = 1.0 - 1.02 * p
    gold = [0.78, 0.3 * p / rest, 0.05 * p / rest, 1.0 - 1e-15]
    return from_probabilities([p, 0.6 * rest, 0.4 * rest, 0.02 * p], gold)


def proposed(atoms: Atoms, share: float | None) -> np.ndarray:
    """Computes r [U]: `share` of the posterior, the rest of the prior; if None, 0.98 of r restates the answer."""
    mass = atoms.probability * np.exp(atoms.log_w)
    posterior = mass / mass.sum()
    if share is None:
        return 0.02 * posterior + 0.98 * (np.arange(len(posterior)) == RESTATING)
    return (1 - share) * atoms.probability + share * posterior


def weigh_by(atoms: Atoms, density: np.ndarray) -> Atoms:
    """Replaces log w by log w̃ = log w + log p − log density, density [U]."""
    return atoms._replace(log_w=atoms.log_w + np.log(atoms.probability) - np.log(density))


def halves(atoms: Atoms, r: np.ndarray, m: int) -> Pools:
    """Enumerates the pools of a mixture: m/2 rollouts from the prior, then m/2 from r [U]."""
    prior = atoms.probability
    first, second = (make_pools(atoms._replace(probability=x), m // 2, draws=1, rng=None) for x in (prior, r))
    i, j = (x.ravel() for x in np.indices((len(first.index), len(second.index))))
    index = np.concatenate([first.index[i], second.index[j]], axis=1)
    return Pools(index, first.probability[i] * second.probability[j], exact=True)


def pools_of(atoms: Atoms, r: np.ndarray, m: int, *, mixture: bool) -> tuple[Atoms, Pools]:
    """Makes the atoms, with log w̃ for log w, and their pools: all rationales from r [U], or half from the prior."""
    if mixture:
        return weigh_by(atoms, (atoms.probability + r) / 2), halves(atoms, r, m)
    return weigh_by(atoms, r), make_pools(atoms._replace(probability=r), m, draws=1, rng=None)


def with_baseline(atoms: Atoms, r: np.ndarray, m: int, q: float) -> np.ndarray:
    """Computes the estimate of each pool of r with the baseline ρ_m f(P̂_¬m), which adds no bias → [W, F].

    Under the prior ρ = 1, so that it is the leave-one-out baseline.
    """
    weighed, pools = pools_of(atoms, r, m, mixture=False)
    w = np.exp(weighed.log_w[pools.index])
    rho = np.exp((weighed.log_w - atoms.log_w)[pools.index])
    others = (w.sum(1, keepdims=True) - w) / (m - 1)
    baseline = np.einsum("wm,wmf->wf", rho * others ** (1 - q) / m, atoms.score[pools.index])
    return estimates(weighed, pools, ESTIMATORS["garl"], PLUG_IN, q) + baseline


def relative_row(p: float, name: str, *, mixture: bool) -> dict[str, float | str]:
    """Measures P̂ and the plug-in gradient of one proposal, relative to P and to |∇ℓ|."""
    policy = reasoned(p)
    atoms = gold_atoms(policy)
    success = float(atoms.probability @ np.exp(atoms.log_w))
    r = proposed(atoms, PROPOSALS[name])
    weighed, pools = pools_of(atoms, r, M, mixture=mixture)
    p_hat = np.exp(weighed.log_w)[pools.index].mean(1) / success
    want = exact_gradient(policy, Q)
    size = float(np.linalg.norm(want))
    values = estimates(weighed, pools, ESTIMATORS["garl"], PLUG_IN, Q) / size
    row = {
        "P": success,
        "proposal": f"mixture, {name}" if mixture else name,
        "p_hat_mean": float(pools.probability @ p_hat),
        "p_hat_deviation": float(pools.probability @ (p_hat - 1) ** 2) ** 0.5,
        "relative_bias": float(np.linalg.norm(pools.probability @ values - want / size)),
        "relative_deviation": _deviation(pools.probability, values),
        "with_baseline": np.nan,
    }
    if not mixture:
        row["with_baseline"] = _deviation(pools.probability, with_baseline(atoms, r, M, Q) / size)
    return row


def _deviation(probability: np.ndarray, values: np.ndarray) -> float:
    mean = probability @ values
    return float(probability @ ((values - mean) ** 2).sum(1)) ** 0.5


def proposals() -> Study:
    """Studies P̂ and the plug-in gradient under proposals of given quality, from P = 0.5 to e^−40."""
    rows = [relative_row(p, name, mixture=False) for p in SUCCESSES for name in PROPOSALS]
    rows += [relative_row(p, name, mixture=True) for p in SUCCESSES for name in ("share 0.5", "posterior", "restating")]
    study = Study(
        name="proposals",
        title=f"Rationales of a proposal that knows the answer, M = {M}, q = {Q}",
        claim="Ours: with importance weights P̂ stays unbiased under any proposal. Where the right rationale is as "
        "rare as the answer, a proposal that finds it yields gradients that rollouts from the prior do not.",
        measured="",
        rows=rows,
    )
    unbiased = np.abs(study.column("p_hat_mean") - 1).max()

    def at_last(column: str, name: str) -> float:
        return float(study.column(column, proposal=name)[-1])

    names = ("prior", "share 0.1", "share 0.5", "posterior", "restating", "mixture, share 0.5", "mixture, restating")
    listed = {
        column: ", ".join(f"{name} {at_last(column, name):.2g}" for name in names)
        for column in ("p_hat_deviation", "relative_bias", "relative_deviation")
    }
    ratios = {
        name: study.column("with_baseline", proposal=name) / study.column("relative_deviation", proposal=name)
        for name in PROPOSALS
    }
    baselines = ", ".join(f"{name} {x.min():.2f} to {x.max():.2f}" for name, x in ratios.items())
    return study._replace(
        measured=f"E[P̂]/P is 1 within {unbiased:.0e} for every proposal and P. At P = e^−40, deviation of P̂/P: "
        f"{listed['p_hat_deviation']}; bias of the gradient relative to its size: {listed['relative_bias']}; its "
        f"deviation: {listed['relative_deviation']}. Deviation with the exact baseline ρ_m f(P̂_¬m) over the deviation "
        f"without, for all P: {baselines}; so no baseline is offered."
    )


PROPOSAL_STUDIES = (proposals,)
