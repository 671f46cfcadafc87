"""Counts the bytes that rollouts must read and the FLOPs that an update must compute on one device, by any program."""

import jax.numpy as jnp
import numpy as np

from benchmarks.estimate import layer_parameters, position
from tsallis_rl.models import Architecture


def parameters(arch: Architecture) -> int:
    """Counts the entries of all matrices; the head, tied to the embedding, counts once."""
    return layer_parameters(arch) + arch.vocab_size * arch.width


def decode_bytes(arch: Architecture, prompt: int, lengths: np.ndarray) -> float:
    """Counts bytes read while rollouts of these lengths [P, M] are decoded after prompts of `prompt` tokens.

    Each token reads the parameters, a prompt's keys and values once for a group that still runs, and those of the
    tokens so far of each rollout that still runs.
    """
    lengths = lengths.astype(np.float64)
    read = jnp.dtype(arch.dtype).itemsize * parameters(arch) * lengths.max(initial=0)
    shared = prompt * lengths.max(1, initial=0).sum()
    own = (lengths * (lengths - 1) / 2).sum()
    return float(read + position(arch) * (shared + own))


def update_flops(arch: Architecture, prompt: int, lengths: np.ndarray) -> float:
    """Counts the FLOPs of an update: forward and backward, without recomputation, each prompt processed once.

    Args:
      arch: of the model.
      prompt: tokens of a prompt.
      lengths: [P, M] tokens of each rollout that have a coefficient; 0 for a rollout without one.
    """
    lengths = lengths.astype(np.float64)
    groups = np.count_nonzero(lengths.any(1))
    own, read = lengths.sum(), groups * prompt
    pairs = (lengths * (prompt + lengths / 2)).sum() + read * prompt / 2
    products = layer_parameters(arch) * (own + read) + arch.vocab_size * arch.width * own
    return float(6 * products + 12 * arch.layers * arch.heads * arch.head_dim * pairs)
