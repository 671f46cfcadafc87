"""Means of weights that are held as logarithms (METHOD §5)."""

import jax.numpy as jnp
from jax import Array
from jax.nn import logsumexp
from jax.typing import ArrayLike


def as_float(x: ArrayLike) -> Array:
    """float64 stays; everything else, bfloat16 included, becomes float32."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def usable(log_w: ArrayLike) -> Array:
    """Log-weights [..., M] in which NaN and +inf count as w = 0."""
    log_w = as_float(log_w)
    return jnp.where(log_w < jnp.inf, log_w, -jnp.inf)


def log_mean(log_w: Array) -> Array:
    """log w̄ [...] of usable log-weights [..., M]; −inf for a group without weight."""
    return logsumexp(log_w, axis=-1) - jnp.log(jnp.asarray(log_w.shape[-1], log_w.dtype))


def log_loo_mean(log_w: Array) -> Array:
    """log w̄_¬m [..., M], the mean over the other M − 1 rollouts; −inf where none of them has weight.

    Summed anew for each m: w̄ − w_m/M would lose every digit where rollout m dominates.
    """
    m = log_w.shape[-1]
    others = jnp.where(jnp.eye(m, dtype=bool), -jnp.inf, log_w[..., None, :])
    return logsumexp(others, axis=-1) - jnp.log(jnp.asarray(m - 1, log_w.dtype))


def times_log(a: Array, log_x: Array) -> Array:
    """log(x^a), with 0^0 = 1."""
    return jnp.where(a == 0, 0.0, a * jnp.where(a == 0, 0.0, log_x))
