"""What several tests compare with."""

import jax.numpy as jnp
from jax import Array

from tsallis_rl.models import Architecture, token_log_probs
from tsallis_rl.objectives import Coefficients
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.training.learner import read_prompts, row_states
from tsallis_rl.training.packing import one_row_each


def learner_log_probs(params: dict, rollouts: Rollouts, arch: Architecture) -> Array:
    """Log-probabilities [P, M, T] of every target, as the learner's forward pass gives them."""
    ones = jnp.ones(rollouts.log_w.shape)
    rows = one_row_each(rollouts, Coefficients(score=ones, path=ones))
    hidden, head = row_states(params, read_prompts(params, rows, arch), rows, arch)
    return token_log_probs(hidden, head, rollouts.targets, arch.logit_cap)
