"""Means of weights w, computed from their logarithms (docs/method.md §5)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import logsumexp
from jax.typing import ArrayLike


def as_float(x: ArrayLike) -> Array:
    """Converts to float32, bfloat16 and integers included; float64 stays."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def mask_unusable(log_w: ArrayLike) -> Array:
    """Replaces NaN and +inf by −inf, w = 0: log_w [..., M] → [..., M].

    Raises:
      ValueError: log_w has no axis of rollouts, or is not of floating point, as rewards or counts are.
    """
    log_w = jnp.asarray(log_w)
    if log_w.ndim == 0 or not jnp.issubdtype(log_w.dtype, jnp.floating):
        raise ValueError(
            f"log_w has shape {log_w.shape} and dtype {log_w.dtype}: expected floats [..., M], a "
            "log-likelihood for each rollout"
        )
    log_w = as_float(log_w)
    return jnp.where(log_w < jnp.inf, log_w, -jnp.inf)


def log_mean(log_w: Array) -> Array:
    """Computes log w̄: log_w [..., M], masked → [...]; −inf for a group without weight."""
    return logsumexp(log_w, axis=-1) - jnp.log(jnp.asarray(log_w.shape[-1], log_w.dtype))


def log_loo_mean(log_w: Array) -> Array:
    """Computes log w̄_¬m, of the other M − 1 rollouts: log_w [..., M] → [..., M]; −inf where none of them has weight.

    From sums over the rollouts before and after m: w̄ − w_m/M would lose every digit where rollout m dominates.
    """
    m, last = log_w.shape[-1], log_w.ndim - 1
    nothing = jnp.full_like(log_w[..., :1], -jnp.inf)
    before = jnp.concatenate([nothing, jax.lax.cumlogsumexp(log_w, axis=last)[..., :-1]], axis=-1)
    after = jnp.concatenate([jax.lax.cumlogsumexp(log_w, axis=last, reverse=True)[..., 1:], nothing], axis=-1)
    return jnp.logaddexp(before, after) - jnp.log(jnp.asarray(m - 1, log_w.dtype))


class Scaled(NamedTuple):
    """Log-weights relative to the group's largest, and the share of that largest in w/w̄^q and w̄^(1−q).

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


def scale_by_largest(log_w: ArrayLike, q: ArrayLike, *, normalize: bool) -> Scaled:
    """Divides weights by their group's largest: log_w [..., M], q a scalar or broadcastable to log_w.shape[:-1].

    Raises:
      ValueError: q has more axes than groups have; its numbers would be taken for further groups.
    """
    log_w = mask_unusable(log_w)
    q, groups = jnp.asarray(q, log_w.dtype), log_w.shape[:-1]
    if q.ndim > len(groups) or any(a not in (1, b) for a, b in zip(q.shape[::-1], groups[::-1], strict=False)):
        raise ValueError(
            f"q has shape {q.shape}: expected a scalar, or a shape broadcastable to {groups}, one q a group"
        )
    q = q[..., None]
    top = log_w.max(-1, keepdims=True)
    alive = top > -jnp.inf
    top = jnp.where(alive, top, 0.0)
    log_factor = (1.0 - q) * top - (q * jnp.log(jnp.asarray(log_w.shape[-1], log_w.dtype)) if normalize else 0.0)
    return Scaled(jnp.where(alive, log_w - top, 0.0), q, jnp.where(alive, jnp.exp(log_factor), 0.0))


def power(log_x: Array, a: Array) -> Array:
    """Computes x^a from log x, for a ≥ 0 and log x ≥ −∞, with 0^0 = 1."""
    return jnp.exp(jnp.where(a == 0, 0.0, a * jnp.where(a == 0, 0.0, log_x)))
