"""Estimators from the reward of the answer that a rollout sampled itself.

All take rewards [..., M], 1 for a correct answer and 0 for another, and return Coefficients [..., M] in which the
rationale and the sampled answer share one number. None divides by the length of the rollout. All raise ValueError for
rewards without an axis of rollouts.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.form import Coefficients, require_two_rollouts
from tsallis_rl.objectives.log_weights import as_float


def grpo(rewards: ArrayLike, *, epsilon: ArrayLike = 1e-4) -> Coefficients:
    """Computes group-relative advantages (r − mean)/(std + ε), std over the M rollouts (arXiv 2402.03300)."""
    rewards = _as_rewards(rewards)
    return _mean(_centred(rewards) / (rewards.std(-1, keepdims=True) + epsilon))


def dr_grpo(rewards: ArrayLike) -> Coefficients:
    """Computes GRPO without the division by the standard deviation (Dr. GRPO, arXiv 2503.20783)."""
    return _mean(_centred(_as_rewards(rewards)))


def rloo(rewards: ArrayLike) -> Coefficients:
    """Computes REINFORCE with the mean of the other rewards as baseline (arXiv 2402.14740); M/(M−1) times dr_grpo.

    Raises:
      UserError: M = 1.
    """
    rewards = _as_rewards(rewards)
    m = rewards.shape[-1]
    require_two_rollouts("baseline='loo' (rloo has no other)", m)
    return _mean(_centred(rewards) * m / (m - 1))


def maxrl(rewards: ArrayLike) -> Coefficients:
    """Computes maximum likelihood RL (arXiv 2602.02710): advantages (r − mean)/mean, 0 where no answer was correct.

    In expectation this is the gradient of log P's series in powers of 1 − P, cut after M − 1 terms.
    """
    rewards = _as_rewards(rewards)
    mean = rewards.mean(-1, keepdims=True)
    return _mean(_centred(rewards) / jnp.where(mean > 0, mean, 1.0))


def raft(rewards: ArrayLike) -> Coefficients:
    """Computes fine-tuning on the correct rollouts alone (RAFT, arXiv 2304.06767; STaR's filter, arXiv 2203.14465)."""
    return _mean(_as_rewards(rewards))


def _as_rewards(rewards: ArrayLike) -> Array:
    """Converts rewards [..., M] to float32, booleans and integers included.

    Raises:
      ValueError: they have no axis of rollouts, or are no real numbers.
    """
    rewards = jnp.asarray(rewards)
    if rewards.ndim == 0 or jnp.issubdtype(rewards.dtype, jnp.complexfloating):
        raise ValueError(
            f"rewards have shape {rewards.shape} and dtype {rewards.dtype}: expected numbers [..., M], one for each "
            "rollout"
        )
    return as_float(rewards)


def _centred(rewards: Array) -> Array:
    return rewards - rewards.mean(-1, keepdims=True)


def _mean(advantage: Array) -> Coefficients:
    both = jax.lax.stop_gradient(advantage / advantage.shape[-1])
    return Coefficients(both, both)
