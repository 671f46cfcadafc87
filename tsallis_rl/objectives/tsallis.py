"""The Tsallis logarithm and its loss (docs/method.md §2)."""

import math

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.log_weights import as_float

_SERIES = [1.0 / math.factorial(n + 1) for n in range(20)]  # of expm1(x)/x; 1/20! is below float64's resolution


def log_q(u: ArrayLike, q: ArrayLike) -> Array:
    """Computes the Tsallis logarithm (u^(1−q) − 1)/(1−q), which at q = 1 is ln u.

    Args:
      u: any shape, u > 0. For probabilities that may underflow, use tsallis_loss.
      q: broadcastable to u; may be traced.
    """
    return -tsallis_loss(jnp.log(as_float(u)), q)


def tsallis_loss(log_p: ArrayLike, q: ArrayLike) -> Array:
    """Computes the loss −log_q(P) of a log-probability, smooth in log_p and in q, also at q = 1 (docs/method.md §2).

    Args:
      log_p: any shape; log P. −inf gives the limit 1/(1−q), and infinity at q = 1.
      q: broadcastable to log_p; may be traced.

    Returns:
      −expm1((1−q) log_p)/(1−q), in float32 (float64 for a float64 log_p).
    """
    log_p = as_float(log_p)
    a = 1.0 - jnp.asarray(q, log_p.dtype)
    impossible = log_p == -jnp.inf
    finite = jnp.where(impossible, 0.0, log_p)
    x = a * finite
    # Near x = 0 the closed form loses its digits, and its derivative in q is 0/0, so a polynomial replaces it there.
    near = jnp.abs(x) < 1.0
    polynomial = finite * jnp.polyval(jnp.asarray(_SERIES[::-1], log_p.dtype), jnp.where(near, x, 0.0))
    # Not expm1, whose derivative is computed as expm1(x) + 1 and vanishes below x = −17 in float32.
    closed = (jnp.exp(jnp.where(near, -1.0, x)) - 1.0) / jnp.where(near, 1.0, a)
    limit = -1.0 / jnp.where(a == 0, 1.0, a)
    return -jnp.where(impossible, jnp.where(a == 0, -jnp.inf, limit), jnp.where(near, polynomial, closed))
