"""What several tests compare with."""

from jax import Array

from tsallis_rl.models import Architecture, token_log_probs
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.training.learner import read_prompts, stream_states
from tsallis_rl.training.packing import Streams


def stream_log_probs(params: dict, rollouts: Rollouts, arch: Architecture) -> Array:
    """Log-probabilities [P, M, T] of every target, as the learner's forward pass gives them."""
    rows = Streams(*rollouts[:2], rollouts.inputs, rollouts.targets, rollouts.score_mask, rollouts.log_prob)
    hidden, head = stream_states(params, read_prompts(params, rows, arch), rows, arch)
    return token_log_probs(hidden, head, rollouts.targets, arch.logit_cap)
