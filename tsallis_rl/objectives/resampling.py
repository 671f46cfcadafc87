"""Draws rollouts in proportion to their weights, with E[n_m] = num_draws · w_m / Σ w (PAFT, docs/method.md §3).

Each function places num_draws points in [0, 1), which the rollouts divide among themselves in proportion to their
weights.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def categorical(key: Array, p: Array, num_draws: int) -> Array:
    """Draws num_draws times independently: p [M], which sums to 1 → counts n_m [M]."""
    return _count(jax.random.uniform(key, (num_draws,), p.dtype), p)


def systematic(key: Array, p: Array, num_draws: int) -> Array:
    """Places equally spaced points with one random offset (Carpenter et al. 1999): |n_m − num_draws · p_m| < 1."""
    return _count((jnp.arange(num_draws) + jax.random.uniform(key, dtype=p.dtype)) / num_draws, p)


def residual(key: Array, p: Array, num_draws: int) -> Array:
    """Gives each rollout the whole part of num_draws · p_m and draws the rest independently (Liu & Chen 1998)."""
    expected = num_draws * p
    # Rounding must not turn a sure draw into a random one: with nearly equal weights and M draws, nothing is random.
    # All together get less than one draw too many if there are fewer than half a million.
    certain = jnp.floor(expected * (1 + 16 * jnp.finfo(p.dtype).eps))
    points = jax.random.uniform(key, (num_draws,), p.dtype)
    # A point beyond all edges is not counted.
    points = jnp.where(jnp.arange(num_draws) < num_draws - certain.sum(), points, jnp.inf)
    return certain + _count(points, jnp.maximum(expected - certain, 0.0))


def _count(points: Array, size: Array) -> Array:
    """Counts the points [num_draws] in [0, 1) that fall into each of M adjacent intervals, of lengths ∝ size [M]."""
    # Each prefix sum is a masked row sum. All rows add in the same order, so edges are monotone and a rollout without
    # weight has an empty interval; a parallel scan does not guarantee that.
    edges = jnp.where(jnp.tri(size.shape[-1], dtype=bool), size, 0.0).sum(-1)
    edges = edges / jnp.where(edges[-1] > 0, edges[-1], 1.0)
    below_one = 1.0 - jnp.finfo(points.dtype).epsneg
    points = jnp.where(points < jnp.inf, jnp.minimum(points, below_one), points)
    return jnp.diff((points[:, None] < edges).sum(0).astype(size.dtype), prepend=0.0)


RESAMPLING: dict[str, Callable[[Array, Array, int], Array]] = {
    "categorical": categorical,
    "systematic": systematic,
    "residual": residual,
}
