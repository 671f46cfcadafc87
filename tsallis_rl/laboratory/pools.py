"""Bias and variance of an estimator over pools of M rollouts of a policy."""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.laboratory.commitments import Commitment
from tsallis_rl.laboratory.policy import Atoms, Policy, exact_gradient, gold_atoms, sampled_atoms
from tsallis_rl.objectives import Coefficients, Estimator, coefficients

MOST_POOLS = 1300  # beyond this many different pools, draw instead of enumerating


class Pools(NamedTuple):
    """W pools of M rollouts.

    Attributes:
      index: [W, M] which atom each rollout is.
      probability: [W]; of each pool if enumerated, 1/W if drawn.
      exact: whether these are all pools.
    """

    index: np.ndarray
    probability: np.ndarray
    exact: bool


class Moments(NamedTuple):
    """Moments of an estimator, against the gradient that it estimates.

    Attributes:
      mean: [F] expectation.
      bias: |mean − truth|; where pools are drawn, less what noise adds to its square.
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
    """Enumerates the multisets of M atoms with their probabilities, or draws `draws` pools where those are too many."""
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
    score, path = compiled_coefficients(
        row, tuple(options.items()), jax.random.key(seed), atoms.log_w[pools.index], atoms.reward[pools.index], q
    )
    # Rollouts of one atom share a gradient: add their coefficients before multiplying.
    onto = pools.index[:, :, None] == np.arange(len(atoms.probability))
    totals = [np.einsum("nm,nma->na", np.asarray(x), onto) for x in (score, path)]
    return -(totals[0] @ atoms.score + totals[1] @ atoms.path)


def moments(
    policy: Policy,
    row: Estimator,
    options: Mapping[str, Any],
    *,
    q: float,
    m: int,
    target: float | Commitment,
    draws: int = 4000,
    seed: int = 0,
) -> Moments:
    """Measures mean, bias, variance and mean squared error of one prompt's estimate.

    The bias is against ∇ℓ of the target, a commitment or the power's q.
    Estimators that draw (those that need a key) are averaged over drawn pools, all others over every pool while there
    are few enough.
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
    squared = max(float(((mean - exact_gradient(policy, target)) ** 2).sum()) - noise, 0.0)
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
    row: Estimator, options: tuple[tuple[str, Any], ...], key: Array, log_w: ArrayLike, rewards: ArrayLike, q: ArrayLike
) -> Coefficients:
    """Computes the coefficients of pools [W, M]; compiled once per estimator, options and shape, q being traced."""
    return coefficients(row, dict(options), key=key, log_w=log_w, rewards=rewards, q=q)
