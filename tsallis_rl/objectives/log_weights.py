"""Means of weights w, computed from their logarithms (docs/method.md §5)."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import logsumexp
from jax.typing import ArrayLike


def as_float(x: ArrayLike) -> Array:
    """Converts numbers of any dtype to float32, except float64, which is kept."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def mask_unusable(log_w: ArrayLike) -> Array:
    """Replaces NaN and +inf by −inf, w = 0: log_w [..., M] → [..., M].

    Raises:
      ValueError: log_w has no axis of rollouts, or is not floating point (rewards or counts passed by mistake).
    """
    log_w = jnp.asarray(log_w)
    if log_w.ndim == 0 or not jnp.issubdtype(log_w.dtype, jnp.floating):
        raise ValueError(
            f"log_w has shape {log_w.shape} and dtype {log_w.dtype}: expected floats [..., M], a "
            "log-likelihood for each rollout"
        )
    log_w = as_float(log_w)
    return jnp.where(log_w < jnp.inf, log_w, -jnp.inf)


def lowest_for_unusable(log_w: Array) -> Array:
    """Replaces −inf by the group's lowest other log-weight, or 0 if there is none: log_w [..., M] → [..., M]."""
    has_weight = log_w > -jnp.inf
    lowest = jnp.where(has_weight, log_w, jnp.inf).min(-1, keepdims=True)
    return jnp.where(has_weight, log_w, jnp.where(lowest < jnp.inf, lowest, 0.0))


def log_mean(log_w: Array) -> Array:
    """Computes log w̄: masked log_w [..., M] → [...]; −inf for a group without weight."""
    return logsumexp(log_w, axis=-1) - jnp.log(jnp.asarray(log_w.shape[-1], log_w.dtype))


def log_loo_mean(log_w: Array) -> Array:
    """Computes log w̄_¬m, of the other M − 1 rollouts: log_w [..., M] → [..., M]; −inf where none of them has weight.

    It adds the sums over the rollouts before and after m: w̄ − w_m/M would lose every digit where rollout m dominates.
    """
    m, last = log_w.shape[-1], log_w.ndim - 1
    nothing = jnp.full_like(log_w[..., :1], -jnp.inf)
    before = jnp.concatenate([nothing, jax.lax.cumlogsumexp(log_w, axis=last)[..., :-1]], axis=-1)
    after = jnp.concatenate([jax.lax.cumlogsumexp(log_w, axis=last, reverse=True)[..., 1:], nothing], axis=-1)
    return jnp.logaddexp(before, after) - jnp.log(jnp.asarray(m - 1, log_w.dtype))
