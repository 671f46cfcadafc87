"""Programs for keys: gradients to keys and values, of rollouts and of their prompts. See `group_kernel`."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from tsallis_rl.models.attention.group_tiles import (
    How,
    Kept,
    Tile,
    clipped,
    triton_call,
    whole,
)
from tsallis_rl.models.attention.parts import KeyValues


class _Queries(NamedTuple):
    """What programs for keys read of queries: of one row, or of all M of a prompt.

    Attributes:
      query: [M, T, G, h].
      d_out: [M, T, G, h].
      lse: [M, G, T].
      delta: [M, G, T].
      start: [M, T] or None.
    """

    query: Any
    d_out: Any
    lse: Any
    delta: Any
    start: Any | None


def _d_keys(
    keys: Any,
    values: Any,
    queries: _Queries,
    total: tuple[Array, Array],
    blocks: tuple[Array | int, Array | int],
    mask: Callable[[Array, Any], Array] | None,
    *,
    scale: float,
    size: int,
    tokens: int,
) -> tuple[Array, Array]:
    """Adds what blocks of queries [from, to) of all rows and heads give to the gradients of one block of keys.

    Scores are transposed, [keys, queries], so that probabilities are the first factor, which stays in registers.
    """
    rollouts, _, group, _ = queries.query.shape
    factor = scale * math.log2(math.e)
    begin, end = blocks
    each = rollouts * group

    def body(n: Array, total: tuple[Array, Array]) -> tuple[Array, Array]:
        d_keys, d_values = total
        div, rem = jax.lax.div, jax.lax.rem  # n is not negative
        at, m, g = (begin + div(n, each)) * size, div(rem(n, each), group), rem(n, group)
        inside = at + jnp.arange(size) < tokens
        partial = tokens % size > 0

        def load(ref: Any, *, matrix: bool = False) -> Array:
            if not partial:
                return ref[...]
            return plgpu.load(ref, mask=inside[:, None] if matrix else inside, other=0)

        here = pl.ds(at, size)
        q, dy = (load(x.at[m, here, g], matrix=True) for x in (queries.query, queries.d_out))
        lse, delta = (load(x.at[m, g, here]) for x in (queries.lse, queries.delta))
        probs = jnp.exp2(plgpu.dot(keys, q.T) * factor - lse[None, :])
        if mask is not None:
            start = 0 if queries.start is None else load(queries.start.at[m, here])[None, :]
            probs = jnp.where(mask(at + jnp.arange(size)[None, :], start), probs, 0)
        d_values += plgpu.dot(probs.astype(dy.dtype), dy)
        d_scores = probs * (plgpu.dot(values, dy.T) - delta[None, :])
        return d_keys + plgpu.dot(d_scores.astype(q.dtype), q), d_values

    return jax.lax.fori_loop(0, jnp.maximum(end - begin, 0) * each, body, total)


def _d_own_kernel(
    own: KeyValues, queries: _Queries, window: Any | None, ends: Any | None, d_keys: Any, d_values: Any, *,
    scale: float, tile: Tile, tokens: int,
) -> None:  # fmt: skip
    """Differentiates one block of a rollout's keys and values [s, h]."""
    first, size = pl.program_id(0) * tile.keys, tile.queries
    key = first + jnp.arange(tile.keys)
    inside = (key < tokens)[:, None]
    keys, values = (plgpu.load(x, mask=inside, other=0) for x in own)
    window = None if window is None else window[0]

    def mask(index: Array, start: Any) -> Array:
        shown = key[:, None] <= index
        if queries.start is not None:
            shown &= key[:, None] >= start
        return shown if window is None else shown & (index - key[:, None] < window)

    add = functools.partial(_d_keys, keys, values, queries, scale=scale, size=size, tokens=tokens)
    total = (jnp.zeros(keys.shape, jnp.float32),) * 2
    begin, end = first // size, pl.cdiv(tokens, size)
    if window is None and ends is None:
        whole = jnp.minimum(pl.cdiv(first + tile.keys - 1, size), end)
        total = add(total, (begin, whole), mask)
        total = add(total, (whole, end), None)
    else:
        last = tokens if ends is None else ends[0]
        if window is not None:
            last = jnp.minimum(last, first + tile.keys - 1 + window)
        total = add(total, (begin, pl.cdiv(last, size)), mask)
    plgpu.store(d_keys, (total[0] * scale).astype(d_keys.dtype), mask=inside)
    plgpu.store(d_values, total[1].astype(d_values.dtype), mask=inside)


def differentiate_own(kept: Kept, d_out: Array, delta: Array, how: How) -> KeyValues:
    """Computes the gradients of own keys and values."""
    query, own, _, limits, _, lse = kept
    rows, tokens, heads, head_dim = query.shape
    kv_heads = own.keys.shape[2]
    group = heads // kv_heads
    tile = clipped(how.tiles.d_own, tokens, None)
    size, blocks = whole(tokens, tile.queries), pl.cdiv(tokens, tile.keys)
    of_keys = pl.BlockSpec((None, tile.keys, None, head_dim), lambda j, r, k: (r, j, k, 0))
    of_queries = pl.BlockSpec((1, size, group, head_dim), lambda j, r, k: (r, 0, k, 0))
    numbers = pl.BlockSpec((1, group, size), lambda j, r, k: (r, k, 0))
    ends = specs_ends = starts = None
    if limits.start is not None:  # after the last query that sees a block of keys
        index, last = jnp.arange(tokens), jnp.arange(blocks)[:, None] * tile.keys + tile.keys - 1
        ends = jnp.where(limits.start[:, None] <= last, index + 1, 0).max(-1)
        specs_ends = pl.BlockSpec((None, 1), lambda j, r, k: (r, j))
        starts = pl.BlockSpec((1, size), lambda j, r, k: (r, 0))
    kv = KeyValues(of_keys, of_keys)
    return triton_call(
        functools.partial(_d_own_kernel, scale=how.scale, tile=tile, tokens=tokens),
        "group_attention_d_own", tile, how, grid=(blocks, rows, kv_heads),
        in_specs=(
            kv, _Queries(of_queries, of_queries, numbers, numbers, starts),
            None if limits.window is None else pl.BlockSpec((1,), lambda j, r, k: (0,)), specs_ends,
        ),
        out_specs=kv,
        out_shape=KeyValues(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in own)),
    )(own, _Queries(query, d_out, lse, delta, limits.start), limits.window, ends)  # fmt: skip


def _d_prompt_kernel(
    prompt: KeyValues, queries: _Queries, lengths: Any, window: Any | None, d_keys: Any, d_values: Any, *,
    scale: float, tile: Tile, tokens: int, width: int,
) -> None:  # fmt: skip
    """Differentiates one block of a prompt's keys and values [s, h]."""
    first, size = pl.program_id(0) * tile.keys, tile.queries
    key = first + jnp.arange(tile.keys)
    inside = (key < width)[:, None]
    keys, values = (plgpu.load(x, mask=inside, other=0) for x in prompt)
    length, window = lengths[0], None if window is None else window[0]
    last = tokens * (first < length).astype(jnp.int32)
    if window is not None and queries.start is None:  # after the last query that sees this block
        last = jnp.clip(window - length + first + tile.keys - 1, 0, last)

    def mask(index: Array, start: Any) -> Array:
        return length + index - start - key[:, None] < window

    total = _d_keys(
        keys, values, queries, (jnp.zeros(keys.shape, jnp.float32),) * 2, (0, pl.cdiv(last, size)),
        None if window is None else mask, scale=scale, size=size, tokens=tokens,
    )  # fmt: skip
    total = [jnp.where((key < length)[:, None], x, 0) for x in total]  # nothing sees keys after the end
    plgpu.store(d_keys, (total[0] * scale).astype(d_keys.dtype), mask=inside)
    plgpu.store(d_values, total[1].astype(d_values.dtype), mask=inside)


def differentiate_prompt(kept: Kept, d_out: Array, delta: Array, how: How) -> KeyValues:
    """Computes the gradients of the prompts' keys and values."""
    query, _, prompt, limits, _, lse = kept
    _, tokens, heads, head_dim = query.shape
    prompts, width, kv_heads, _ = prompt.keys.shape
    group = heads // kv_heads
    tile = clipped(how.tiles.d_prompt, tokens, prompt)
    size = whole(tokens, tile.queries)
    queries = _Queries(query, d_out, lse, delta, limits.start if limits.window is not None else None)
    queries = jax.tree.map(lambda x: x.reshape(prompts, -1, *x.shape[1:]), queries)
    rollouts = queries.query.shape[1]
    of_keys = pl.BlockSpec((None, tile.keys, None, head_dim), lambda j, p, k: (p, j, k, 0))
    of_queries = pl.BlockSpec((None, rollouts, size, group, head_dim), lambda j, p, k: (p, 0, 0, k, 0))
    numbers = pl.BlockSpec((None, rollouts, group, size), lambda j, p, k: (p, 0, k, 0))
    starts = None if queries.start is None else pl.BlockSpec((None, rollouts, size), lambda j, p, k: (p, 0, 0))
    kv = KeyValues(of_keys, of_keys)
    return triton_call(
        functools.partial(_d_prompt_kernel, scale=how.scale, tile=tile, tokens=tokens, width=width),
        "group_attention_d_prompt", tile, how, grid=(pl.cdiv(width, tile.keys), prompts, kv_heads),
        in_specs=(
            kv, _Queries(of_queries, of_queries, numbers, numbers, starts), pl.BlockSpec((1,), lambda j, p, k: (p,)),
            None if limits.window is None else pl.BlockSpec((1,), lambda j, p, k: (0,)),
        ),
        out_specs=kv,
        out_shape=KeyValues(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in prompt)),
    )(prompt, queries, limits.lengths, limits.window)  # fmt: skip
