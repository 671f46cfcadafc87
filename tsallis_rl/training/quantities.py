"""Computes the quantities of rollouts that estimators declare beside log_w: one function a name, [P, M] each."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from jax import Array

from tsallis_rl.sampler.record import Rollouts

# What a quantity is called in a run's saved rollouts, where that is not its name.
COLUMNS = {"rewards": "reward", "lengths": "length"}


class Sources(NamedTuple):
    """Rollouts, and what else quantities are computed from.

    Attributes:
      rollouts: [P, M, …].
      reward: grades the sampled answers of rollouts → [P, M].
    """

    rollouts: Rollouts
    reward: Callable[[Rollouts], Array]


QUANTITIES: dict[str, Callable[[Sources], Array]] = {
    "rewards": lambda sources: sources.reward(sources.rollouts),
    "lengths": lambda sources: _scored_lengths(sources.rollouts),
}


def collect(names: Collection[str], sources: Sources) -> dict[str, Array]:
    """Computes the quantities of these names → name: [P, M]."""
    return {name: QUANTITIES[name](sources) for name in names}


def _scored_lengths(rollouts: Rollouts) -> Array:
    """Counts the tokens that score and path coefficients multiply: rollouts [P, M, T] → [P, M]."""
    return (rollouts.score_mask | rollouts.path_mask).sum(-1)
