"""What every estimator returns, and the sentences for options that it does not accept."""

from collections.abc import Sequence
from typing import NamedTuple

from jax import Array

from tsallis_rl.runs.errors import UserError


class Coefficients(NamedTuple):
    """The only thing an estimator returns: gradient = −Σ_m [score_m ∇ log p(z_m|x) + path_m ∇ log p(y_m|x, z_m)].

    Attributes:
      score: [..., M] multiplies the rationale's log-probability; 1/M included.
      path: [..., M] multiplies the answer's log-probability; 1/M included.
    """

    score: Array
    path: Array


def choose(option: str, value: str, accepted: Sequence[str]) -> str:
    """The value, if it is among the accepted ones; else a UserError that lists them."""
    if value not in accepted:
        raise UserError(f"estimator option {option}={value!r}: choose from {', '.join(accepted)}")
    return value


def need_two(what: str, num_rollouts: int) -> None:
    """Refuses what compares a rollout with the others of its group when there are none."""
    if num_rollouts < 2:
        raise UserError(
            f"estimator option {what} needs at least 2 rollouts a prompt, found {num_rollouts}: raise num_rollouts"
        )
