"""Estimators from the reward of the answer that a rollout sampled itself.

All take rewards [..., M], 1 for a correct answer and 0 for another, and return Coefficients [..., M] in which the
rationale and the sampled answer share one number. Lengths count for GRPO alone, where it is asked for. All raise
ValueError for rewards without an axis of rollouts.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.form import Coefficients, require_choice, require_two_rollouts
from tsallis_rl.objectives.log_weights import as_float


def grpo(
    rewards: ArrayLike,
    lengths: ArrayLike | None = None,
    *,
    epsilon: ArrayLike = 1e-4,
    scale_rewards: str = "std",
    length_norm: str = "none",
) -> Coefficients:
    """Computes group-relative advantages (r − mean)/(std + ε), std over the M rollouts (arXiv 2402.03300).

    Args:
      rewards: [..., M].
      lengths: [..., M] tokens of rationale and answer that the coefficients multiply; read by length_norm.
      epsilon: added to the standard deviation.
      scale_rewards: "std" divides by the standard deviation; with "none" advantages are r − mean, those of dr_grpo.
      length_norm: "rollout" divides a rollout's advantage by its own length, as GRPO was published; "group" by the mean
        length of the group, as DAPO's token-level loss does (arXiv 2503.14476); "none" does not divide.

    Raises:
      UserError: an unknown scale_rewards or length_norm.
      ValueError: length_norm asks for lengths, and there are none of the rewards' shape.
    """
    require_choice("scale_rewards", scale_rewards, ("std", "none"))
    require_choice("length_norm", length_norm, ("none", "rollout", "group"))
    rewards = _as_rewards(rewards)
    advantage = _centred(rewards)
    if scale_rewards == "std":
        advantage /= rewards.std(-1, keepdims=True) + epsilon
    if length_norm != "none":
        if lengths is None or jnp.shape(lengths) != rewards.shape:
            found = None if lengths is None else jnp.shape(lengths)
            raise ValueError(f"lengths have shape {found}: length_norm={length_norm!r} needs {rewards.shape}")
        lengths = jnp.maximum(jnp.asarray(lengths, rewards.dtype), 1.0)
        advantage /= lengths.mean(-1, keepdims=True) if length_norm == "group" else lengths
    return _mean(advantage)


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
