"""A reference that several tests compare with."""

from jax import Array

from tsallis_rl.models import Architecture, token_log_probs
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.training.learner import read_prompts, row_states
from tsallis_rl.training.packing import PackedRows, RowTokens


def learner_log_probs(params: dict, rollouts: Rollouts, arch: Architecture) -> Array:
    """Computes the log-probabilities [P, M, T] of every target by the learner's forward pass."""
    tokens = RowTokens(rollouts.inputs, rollouts.targets, coefficient=rollouts.log_prob, log_prob=rollouts.log_prob)
    rows = PackedRows(rollouts.prompt, rollouts.prompt_length, tokens)
    hidden, head = row_states(params, read_prompts(params, rows, arch), rows, arch)
    return token_log_probs(hidden, head, rollouts.targets, arch.logit_form)
