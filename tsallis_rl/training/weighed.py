"""Rollouts with the coefficients that an estimator, and a regulariser, gave them."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl.objectives import Coefficients
from tsallis_rl.sampler.record import Rollouts


class WeighedRollouts(NamedTuple):
    """The input of an update, a transcript or a gradient comparison.

    Attributes:
      rollouts: [P, M, …].
      coefficients: [P, M], the estimator's.
      measured: scalars to log, on the device.
      group: name -> [P, M], the quantities besides log_w that the estimator needs, such as rewards.
      regularizer: [P, M], what config.regularizer adds to the coefficients; None where it is off.
      log_rho: [P, M], log importance weights of a proposal's rationales; None for the prior.
      positions: [P] of the groups' examples in their step, on the host; None if no step chose them.
    """

    rollouts: Rollouts
    coefficients: Coefficients
    measured: dict[str, Array] | None = None
    group: Mapping[str, Array] | None = None
    regularizer: Coefficients | None = None
    log_rho: Array | None = None
    positions: np.ndarray | None = None

    @property
    def log_w(self) -> Array:
        """[P, M] log-weights as the estimator took them: log w, or log w̃ = log w ρ of a proposal's rationales."""
        return self.rollouts.log_w if self.log_rho is None else self.rollouts.log_w + self.log_rho

    @property
    def total(self) -> Coefficients:
        """[P, M], what the update multiplies log-probabilities by."""
        if self.regularizer is None:
            return self.coefficients
        return jax.tree.map(jnp.add, self.coefficients, self.regularizer)
