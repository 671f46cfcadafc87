"""Attention over a whole group at once, for training: one function, its kernel chosen by the backend.

A group is laid out as one sequence, the prompt and then its M rollouts. A rollout sees the prompt and itself:

              prompt   rollout 1   rollout 2
    prompt    causal
    rollout 1 all      causal
    rollout 2 all                  causal

On a TPU that is a mask of the splash kernel, which skips blocks in which nothing is seen and has a gradient of its own.
(A merge of two parts by their log-sum-exp is not: the kernel has no gradient once it returns log-sum-exps.) Elsewhere
it is the two parts of `decoder.attend`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as Spec

from tsallis_rl.mesh import RULES
from tsallis_rl.models.decoder import KeyValues, Part, attend

LANES = 128  # of a TPU's registers: heads and blocks are multiples of it
BLOCK = 512  # queries, and keys, that the kernel treats together


class Layout(NamedTuple):
    """S prompt tokens, then M rollouts of T tokens."""

    prompt: int
    rollouts: int
    tokens: int

    @property
    def length(self) -> int:
        """N = S + M T."""
        return self.prompt + self.rollouts * self.tokens


def attend_group(
    query: Array, key: Array, value: Array, valid: Array, layout: Layout, scale: float, *, backend: str | None = None
) -> Array:
    """Softmax attention of a group's tokens, each to the valid tokens that it may see.

    Args:
      query: [P, N, K, G, h], G query heads to a key-value head.
      key: [P, N, K, h].
      value: [P, N, K, h].
      valid: [P, N], False at padding, whose own rows mean nothing.
      layout: what N is made of.
      scale: multiplies the scores.
      backend: "tpu", "interpret" (the TPU's kernel, interpreted) or another; by default that of jax.

    Returns:
      [P, N, K, G, h].
    """
    backend = backend or jax.default_backend()
    if backend in ("tpu", "interpret") and query.shape[-1] % LANES == 0:
        return _splash(query * scale, key, value, valid, layout, interpret=backend == "interpret")
    return _two_parts(query, key, value, valid, layout, scale)


def _two_parts(query: Array, key: Array, value: Array, valid: Array, layout: Layout, scale: float) -> Array:
    size, streams = layout.prompt, (len(query), layout.rollouts, layout.tokens)

    def part(key: Array, value: Array, mask: Array) -> Part:
        return Part(KeyValues(jnp.moveaxis(key, -3, -1), value.swapaxes(-3, -2)), mask)

    def own(tokens: slice, shape: tuple[int, ...]) -> tuple[Array, Part]:
        queries, keys, values, seen = (x[:, tokens].reshape(*shape, *x.shape[2:]) for x in (query, key, value, valid))
        index = jnp.arange(shape[-1])
        return queries, part(keys, values, seen[..., None, :] & (index[:, None] >= index))

    prompt_query, of_prompt = own(slice(size), (len(query), 1, size))
    stream_query, of_stream = own(slice(size, None), streams)
    shared = part(key[:, :size], value[:, :size], valid[:, None, None, :size])
    outputs = attend(prompt_query, [of_prompt], scale), attend(stream_query, [shared, of_stream], scale)
    return jnp.concatenate([x.reshape(len(query), -1, *query.shape[2:]) for x in outputs], axis=1)


def _splash(query: Array, key: Array, value: Array, valid: Array, layout: Layout, *, interpret: bool) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block = min(BLOCK, -(-layout.length // LANES) * LANES)
    padding = -layout.length % block
    query, key, value, valid = (
        jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2))) for x in (query, key, value, valid)
    )
    mask = splash.MultiHeadMask([_mask(layout, layout.length + padding)] * query.shape[3])
    names = [
        f"block_{name}" for name in ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    ]
    sizes = splash.BlockSizes(**dict.fromkeys(names, block))
    kernel = splash.make_splash_mqa_single_device(mask, block_sizes=sizes, interpret=interpret)

    def of_groups(query: Array, key: Array, value: Array, segments: Array) -> Array:
        def of_group(query: Array, key: Array, value: Array, segments: Array) -> Array:
            ids = splash.SegmentIds(segments, segments)  # tokens of unlike segments do not see each other
            return jax.vmap(functools.partial(kernel, segment_ids=ids))(query, key, value)

        return jax.vmap(of_group)(query, key, value, segments)

    mesh = jax.typeof(query).sharding.mesh
    if mesh.size > 1:  # the compiler cannot split a kernel
        groups = Spec(RULES["prompts"], RULES["kv_heads"])
        of_groups = jax.shard_map(
            of_groups, mesh=mesh, in_specs=(*(groups,) * 3, Spec(RULES["prompts"])), out_specs=groups, check_vma=False
        )
    heads_first = jnp.moveaxis(query, 1, 3), key.swapaxes(1, 2), value.swapaxes(1, 2)
    out = of_groups(*heads_first, valid.astype(jnp.int32))
    return jnp.moveaxis(out, 3, 1)[:, : layout.length]


@functools.cache
def _mask(layout: Layout, padded: int):
    """The picture above, looked up block by block: whole it would have N² entries."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    class GroupMask(splash_attention_mask.Mask):
        @property
        def shape(self) -> tuple[int, int]:
            return padded, padded

        def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
            rows, columns = (np.arange(padded)[part] for part in block)
            row_of, column_of = ((x - layout.prompt) // layout.tokens for x in (rows, columns))  # negative: the prompt
            behind = columns[0] > rows[-1]
            if behind or (column_of[0] >= 0 and column_of[-1] < row_of[0]):  # most blocks of a large group: not seen
                return np.broadcast_to(False, (rows.size, columns.size))
            rows, columns = rows[:, None], columns[None]
            return (columns <= rows) & ((columns < layout.prompt) | (row_of[:, None] == column_of))

    return GroupMask()
