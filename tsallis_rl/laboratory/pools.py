"""Bias and variance of an estimator over pools of M rollouts of a policy."""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from tsallis_rl.laboratory.commitments import Commitment
from tsallis_rl.laboratory.policy import Atoms, Policy, exact_gradient, gold_atoms, sampled_atoms
from tsallis_rl.objectives import Coefficients, Estimator, coefficients
from tsallis_rl.objectives.histories import rank_weight

MOST_POOLS = 1300  # beyond this many different pools, draw instead of enumerating
LENGTH, WITHOUT = 2, 0.2  # tokens of a gold answer; their mean probability without a rationale
EARLIER = {4: [[0, 3, 2, 1, 0]], 8: [[0, 5, 3, 2, 2, 1, 0, 1, 0], [0, 1, 4, 2, 0, 1, 1, 2, 0]]}  # M → histograms


class Pools(NamedTuple):
    """W pools of M rollouts.

    Attributes:
      index: [W, M] atom of each rollout.
      probability: [W] probability of each pool if they are enumerated, 1/W if they are drawn.
      exact: whether all pools are enumerated.
    """

    index: np.ndarray
    probability: np.ndarray
    exact: bool


class Moments(NamedTuple):
    """Moments of an estimator, with its bias from the gradient that it estimates.

    Attributes:
      mean: [F] expectation.
      bias: |mean − truth|; for drawn pools, what noise adds to its square is subtracted first.
      bias_error: standard error of the bias; 0 if enumerated.
      variance: trace of the covariance of one pool's estimate.
      variance_error: standard error of the variance; 0 if enumerated.
      mse: bias² + variance.
      exact: whether pools were enumerated.
    """

    mean: np.ndarray
    bias: float
    bias_error: float
    variance: float
    variance_error: float
    mse: float
    exact: bool


def make_pools(atoms: Atoms, m: int, *, draws: int, rng: np.random.Generator) -> Pools:
    """Enumerates the multisets of M atoms with their probabilities, or draws `draws` pools if those are too many."""
    a = len(atoms.probability)
    if math.comb(m + a - 1, m) > MOST_POOLS:
        return Pools(
            index=rng.choice(a, p=atoms.probability, size=(draws, m)),
            probability=np.full(draws, 1 / draws),
            exact=False,
        )
    index = np.array(list(itertools.combinations_with_replacement(range(a), m)))
    counts = (index[:, :, None] == np.arange(a)).sum(1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, m + 1)))])
    log_p = log_factorial[m] - log_factorial[counts].sum(-1) + counts @ np.log(atoms.probability)
    return Pools(index=index, probability=np.exp(log_p), exact=True)


def estimates(
    atoms: Atoms, pools: Pools, row: Estimator, options: Mapping[str, Any], q: float, seed: int = 0
) -> np.ndarray:
    """Computes the estimator's gradient for each pool → [W, F]."""
    group = {name: x for name, x in quantities(atoms, pools).items() if name in (*row.needs, "log_w")}
    group |= {"key": jax.random.key(seed), "q": q}
    score, path = compiled_coefficients(row, tuple(options.items()), group)
    # Rollouts of one atom share a gradient: add their coefficients before multiplying.
    onto = pools.index[:, :, None] == np.arange(len(atoms.probability))
    totals = [np.einsum("nm,nma->na", np.asarray(x), onto) for x in (score, path)]
    return -(totals[0] @ atoms.score + totals[1] @ atoms.path)


def quantities(atoms: Atoms, pools: Pools) -> dict[str, np.ndarray]:
    """Computes the quantities that estimators need, by name: [W, M] each.

    Gold answers have LENGTH tokens of equal probability. `log_ratio` is relative to equally likely rationales. The pass
    rates of earlier batches are those of EARLIER.
    """
    log_w, shape = atoms.log_w[pools.index], pools.index.shape
    made = {
        "log_w": log_w,
        "rewards": atoms.reward[pools.index],
        "gold_length": np.full(shape, float(LENGTH)),
        "gold_prob": np.exp(log_w / LENGTH),
        "gold_prob_without": np.full(shape, WITHOUT),
        "usual_std": np.zeros(shape),
        "rationale_length": np.ones(shape),
        "log_ratio": np.log(atoms.probability * len(atoms.probability))[pools.index],
    }
    return made | {"rank_weight": rank_weight(EARLIER.get(shape[1], ()), made)}


def moments(
    policy: Policy,
    row: Estimator,
    options: Mapping[str, Any],
    *,
    q: float,
    m: int,
    target: float | Commitment | np.ndarray,
    draws: int = 4000,
    seed: int = 0,
) -> Moments:
    """Measures mean, bias, variance and mean squared error of one prompt's estimate.

    The bias is the distance from ∇ℓ of the target (a commitment, or a power's q), or from a given gradient [F].
    Estimators that sample (those that need a key) are averaged over drawn pools, all others over every pool unless
    there are too many.
    """
    atoms = sampled_atoms(policy) if row.answer == "sampled" else gold_atoms(policy)
    rng = np.random.default_rng(seed)
    pools = make_pools(atoms, m, draws=draws, rng=rng)
    if "key" in row.needs and pools.exact:
        drawn = rng.choice(len(pools.index), p=pools.probability / pools.probability.sum(), size=draws)
        pools = Pools(index=pools.index[drawn], probability=np.full(draws, 1 / draws), exact=False)
    values = estimates(atoms, pools, row, options, q, seed)
    mean = pools.probability @ values
    squares = ((values - mean) ** 2).sum(-1)
    variance = float(pools.probability @ squares)
    noise, error = (0.0, 0.0) if pools.exact else (variance / len(values), squares.std() / len(values) ** 0.5)
    truth = target if isinstance(target, np.ndarray) else exact_gradient(policy, target)
    squared = max(float(((mean - truth) ** 2).sum()) - noise, 0.0)
    return Moments(
        mean=mean,
        bias=squared**0.5,
        bias_error=noise**0.5,
        variance=variance,
        variance_error=error,
        mse=squared + variance,
        exact=pools.exact,
    )


# Most of the time goes into compiling small programs for many shapes.
@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 0})
def compiled_coefficients(
    row: Estimator, options: tuple[tuple[str, Any], ...], group: Mapping[str, ArrayLike]
) -> Coefficients:
    """Computes the coefficients of pools [W, M]; compiled once per estimator, options and shape, since q is traced."""
    return coefficients(row, dict(options), group)
