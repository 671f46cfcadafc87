"""Means of weights that are held as logarithms (METHOD §5)."""

from typing import NamedTuple

import jax
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

    From sums over the rollouts before and after m: w̄ − w_m/M would lose every digit where rollout m dominates.
    """
    m, last = log_w.shape[-1], log_w.ndim - 1
    nothing = jnp.full_like(log_w[..., :1], -jnp.inf)
    before = jnp.concatenate([nothing, jax.lax.cumlogsumexp(log_w, axis=last)[..., :-1]], axis=-1)
    after = jnp.concatenate([jax.lax.cumlogsumexp(log_w, axis=last, reverse=True)[..., 1:], nothing], axis=-1)
    return jnp.logaddexp(before, after) - jnp.log(jnp.asarray(m - 1, log_w.dtype))


class Scaled(NamedTuple):
    """Log-weights relative to the group's largest, and what that largest contributes to w/w̄^q and w̄^(1−q).

    The difference of two log-weights near −10⁴ is exact in float32 where their exponentials' arguments, summed, are
    not; and a group without weight becomes one of equal weights with factor 0, so that nothing divides by zero.

    Attributes:
      log_w: [..., M], at most 0, and 0 at the largest.
      q: [..., 1].
      factor: [..., 1]; w_max^(1−q), times 1/M^q if normalised; 0 for a group without weight.
    """

    log_w: Array
    q: Array
    factor: Array


def scaled(log_w: ArrayLike, q: ArrayLike, *, normalize: bool) -> Scaled:
    """Takes out the largest of log_w [..., M]; q is a scalar or broadcastable to log_w.shape[:-1]."""
    log_w = usable(log_w)
    q = jnp.asarray(q, log_w.dtype)[..., None]
    top = log_w.max(-1, keepdims=True)
    alive = top > -jnp.inf
    top = jnp.where(alive, top, 0.0)
    log_factor = (1.0 - q) * top - (q * jnp.log(jnp.asarray(log_w.shape[-1], log_w.dtype)) if normalize else 0.0)
    return Scaled(jnp.where(alive, log_w - top, 0.0), q, jnp.where(alive, jnp.exp(log_factor), 0.0))


def power(log_x: Array, a: Array) -> Array:
    """x^a for a ≥ 0 and log x ≥ −∞, with 0^0 = 1."""
    return jnp.exp(jnp.where(a == 0, 0.0, a * jnp.where(a == 0, 0.0, log_x)))
