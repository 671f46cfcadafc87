"""Attention of decoding: writes a token into its rollout's cache, then attends to prompt and cache."""

from collections.abc import Sequence

import jax
from jax import Array

from tsallis_rl.models.attention import library_kernels
from tsallis_rl.models.attention.parts import KeyValues, Part, RowCache, WriteAt
from tsallis_rl.models.attention.softmax import attend
from tsallis_rl.models.attention.triton_programs import DTYPES, HEAD_DIMS
from tsallis_rl.models.sizes import Architecture


def uses_kernel(arch: Architecture) -> bool:
    """Returns whether decoding attends by `decode_kernel`, which reads only the filled part of a cache."""
    return (
        jax.default_backend() == "gpu"
        and library_kernels.is_chosen(arch.attention)
        and arch.dtype in DTYPES
        and arch.head_dim in HEAD_DIMS
    )


def write_and_attend(
    query: Array, new: KeyValues, parts: Sequence[Part], at: WriteAt, scale: float
) -> tuple[Array, KeyValues | RowCache]:
    """Writes tokens into caches, and attends with their queries [P, M, 1, K, G, h] to all parts → the same shape.

    Args:
      query: one per row.
      new: the tokens' keys and values.
      parts: the prompt's, and last the rollouts' own, whose mask already shows the tokens.
      at: where the tokens are written.
      scale: multiplies the scores.

    Returns:
      [P, M, 1, K, G, h], and the last part's cache with the tokens in it.
    """
    *context, own = parts
    cache = own.kv.write(new, at)  # before it is read: a later read would make XLA copy the cache
    return attend(query, [*context, own._replace(kv=cache.key_values)], scale), cache
