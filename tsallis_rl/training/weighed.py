"""Rollouts with the coefficients that an estimator gave them."""

from typing import NamedTuple

from jax import Array

from tsallis_rl.objectives import Coefficients
from tsallis_rl.sampler.record import Rollouts


class WeighedRollouts(NamedTuple):
    """The input of an update, a transcript or a gradient comparison.

    Attributes:
      rollouts: [P, M, …].
      coefficients: [P, M].
      measured: scalars to log, on the device.
      rewards: [P, M] of sampled answers, None where none were sampled.
    """

    rollouts: Rollouts
    coefficients: Coefficients
    measured: dict[str, Array] | None = None
    rewards: Array | None = None
