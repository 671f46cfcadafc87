"""Ways to draw K rollouts in proportion to their weights; each keeps E[n_m] = K w_m / Σ w (METHOD §3, PAFT)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def categorical(key: Array, log_p: Array, num_draws: int) -> Array:
    """K independent draws. log_p [M] normalised log-probabilities; returns the counts n_m [M]."""
    return _counts(jax.random.categorical(key, log_p, shape=(num_draws,)), jnp.ones(num_draws, bool), log_p)


def systematic(key: Array, log_p: Array, num_draws: int) -> Array:
    """K equally spaced points with one random offset (Carpenter et al. 1999): |n_m − K p_m| < 1."""
    m = log_p.shape[-1]
    # A prefix sum as a masked row sum: every row adds in the same order, so that it is monotone and a rollout without
    # weight has an empty interval, which a parallel scan does not promise.
    edges = jnp.where(jnp.tri(m, dtype=bool), jnp.exp(log_p), 0.0).sum(-1)
    edges = edges / edges[-1]
    below = jnp.ceil(num_draws * edges - jax.random.uniform(key, dtype=log_p.dtype))
    below = jnp.where(edges >= 1.0, num_draws, jnp.clip(below, 0, num_draws))
    return jnp.diff(below, prepend=0.0)


def residual(key: Array, log_p: Array, num_draws: int) -> Array:
    """The whole part of K p_m for certain, the rest by independent draws (Liu & Chen 1998): n_m ≥ ⌊K p_m⌋."""
    expected = num_draws * jnp.exp(log_p)
    # Rounding must not turn a sure draw into a random one: equal weights with K = M have no randomness left.
    certain = jnp.floor(expected + 64 * jnp.finfo(log_p.dtype).eps * num_draws)
    rest = jnp.log(jnp.maximum(expected - certain, 0.0))
    drawn = jax.random.categorical(key, rest, shape=(num_draws,))
    return certain + _counts(drawn, jnp.arange(num_draws) < num_draws - certain.sum(), log_p)


def _counts(drawn: Array, counted: Array, like: Array) -> Array:
    """How often each of M indices stands in drawn [K] where counted [K]."""
    return jnp.zeros_like(like).at[drawn].add(counted.astype(like.dtype))


RESAMPLING: dict[str, Callable[[Array, Array, int], Array]] = {
    "categorical": categorical,
    "systematic": systematic,
    "residual": residual,
}
