"""Coefficients, which every estimator returns, and checks of its options."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.runs.errors import UserError


class Coefficients(NamedTuple):
    """An estimator's result: gradient = −Σ_m [score_m ∇ log p(z_m|x) + path_m ∇ log p(y_m|x, z_m)].

    Attributes:
      score: [..., M] multiplies the rationale's log-probability; 1/M included.
      path: [..., M] multiplies the answer's log-probability; 1/M included.
    """

    score: Array
    path: Array


def constant(score: Array, path: ArrayLike) -> Coefficients:
    """Makes coefficients [..., M] that are constants to differentiation."""
    return Coefficients(jax.lax.stop_gradient(score), jax.lax.stop_gradient(jnp.asarray(path)))


def require_choice(option: str, value: str, accepted: Sequence[str]) -> str:
    """Returns the value of an option; raises a UserError that lists the accepted values if it is not one of them."""
    if value not in accepted:
        raise UserError(f"estimator option {option}={value!r}: choose from {', '.join(accepted)}")
    return value


def require_two_rollouts(option: str, num_rollouts: int) -> None:
    """Refuses an option that compares a rollout with the others of its group, if there are none."""
    if num_rollouts < 2:
        raise UserError(
            f"estimator option {option} needs at least 2 rollouts a prompt, found {num_rollouts}: raise num_rollouts"
        )


def centred(rewards: Array, option: str = "baseline (the group's mean)") -> Array:
    """Subtracts the group's mean from rewards [..., M]; equal rewards give exactly 0, however their mean is rounded.

    Args:
      rewards: [..., M].
      option: what has the mean as its baseline, for the message.

    Raises:
      UserError: M = 1.
    """
    require_two_rollouts(option, rewards.shape[-1])
    same = (rewards == rewards[..., :1]).all(-1, keepdims=True)
    return jnp.where(same, 0.0, rewards - rewards.mean(-1, keepdims=True))
