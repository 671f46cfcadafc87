"""Makes up the quantities of groups of rollouts that estimators need, from log-weights and rewards."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

LENGTH = 3  # tokens of the gold answer


def group_of(log_w: ArrayLike, rewards: ArrayLike, **more: ArrayLike) -> dict[str, Array]:
    """Makes a group with every quantity that an estimator may need, as arrays of log_w's shape, and `more`."""
    log_w = jnp.asarray(log_w)
    each = jnp.arange(log_w.shape[-1]) + jnp.zeros(log_w.shape)
    return {
        "log_w": log_w,
        "rewards": jnp.asarray(rewards),
        "lengths": 5 + each,
        "gold_length": jnp.full(log_w.shape, LENGTH),
        "rationale_length": (1 + each).astype(int),
        "gold_prob": jnp.exp(log_w / LENGTH),
        "gold_prob_without": jnp.full(log_w.shape, 0.05),
        "log_ratio": 0.3 * jnp.cos(each),
        "usual_std": jnp.full(log_w.shape, 0.01),
        "rank_weight": jnp.full(log_w.shape, 0.7),
    } | more
