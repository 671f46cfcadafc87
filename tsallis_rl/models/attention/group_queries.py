"""Programs for queries: attention, and its gradient to the queries. See `group_kernel`."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from tsallis_rl.models.attention.group_tiles import (
    How,
    Kept,
    Limits,
    Tile,
    clipped,
    load_rows,
    triton_call,
    whole,
    width_of,
)
from tsallis_rl.models.attention.parts import ATTENDED, MASKED, KeyValues


class _QuerySpecs(NamedTuple):
    """Blocks of the arrays that programs for queries take, over (blocks of queries, P · M, K · G)."""

    grid: tuple[int, ...]
    query: pl.BlockSpec
    numbers: pl.BlockSpec
    own: KeyValues
    prompt: KeyValues | None
    limits: Limits


def _query_specs(query: Array, own: KeyValues, prompt: KeyValues | None, limits: Limits, tile: Tile) -> _QuerySpecs:
    rows, tokens, heads, head_dim = query.shape
    group, rollouts = heads // own.keys.shape[2], rows // len(limits.lengths)
    of_row = pl.BlockSpec((None, whole(tokens, tile.keys), None, head_dim), lambda i, r, n: (r, 0, n // group, 0))
    if prompt is not None:
        size = whole(prompt.keys.shape[1], tile.keys)
        of_prompt = pl.BlockSpec((None, size, None, head_dim), lambda i, r, n: (r // rollouts, 0, n // group, 0))
    return _QuerySpecs(
        grid=(pl.cdiv(tokens, tile.queries), rows, heads),
        query=pl.BlockSpec((None, tile.queries, None, head_dim), lambda i, r, n: (r, i, n, 0)),
        numbers=pl.BlockSpec((None, None, tile.queries), lambda i, r, n: (r, n, i)),
        own=KeyValues(of_row, of_row),
        prompt=None if prompt is None else KeyValues(of_prompt, of_prompt),
        limits=Limits(
            lengths=pl.BlockSpec((1,), lambda i, r, n: (r // rollouts,)),
            start=None if limits.start is None else pl.BlockSpec((None, tile.queries), lambda i, r, n: (r, i)),
            window=None if limits.window is None else pl.BlockSpec((1,), lambda i, r, n: (0,)),
        ),
    )


def _over_keys(
    step: Callable[[Any, Array, Array, Array | None], Any],
    carry: Any,
    own: KeyValues,
    prompt: KeyValues | None,
    limits: Limits,
    *,
    tile: Tile,
    tokens: int,
    width: int,
) -> Any:
    """Calls step(carry, keys, values, mask or None) for every block of keys that a block of queries sees."""
    first, size = pl.program_id(0) * tile.queries, tile.keys
    index = first + jnp.arange(tile.queries)
    masked = limits.start is not None or limits.window is not None
    window = None if limits.window is None else limits.window[0]
    start = 0
    if limits.start is not None:  # of queries after the last token any number will do that is not far from the others
        start = jnp.maximum(plgpu.load(limits.start, mask=index < tokens, other=0), (index >= tokens) * first)

    def loop(begin: Array | int, end: Array, kv: KeyValues, axis: int, carry: Any, mask: Callable | None) -> Any:
        def body(j: Array, carry: Any) -> Any:
            at = j * size
            shown = None if mask is None else mask(at + jnp.arange(size)[None, :])
            return step(carry, *(load_rows(x, at, size, axis) for x in kv), shown)

        return jax.lax.fori_loop(begin, end, body, carry)

    if prompt is not None:
        length = limits.lengths[0]
        position = length + index - start  # of the queries
        nearest = 0 if window is None else jnp.maximum(jnp.min(position) - window + 1, 0) // size
        if window is None:
            nearest = length // size
            carry = loop(0, nearest, prompt, width, carry, None)

        def in_prompt(key: Array) -> Array:
            shown = jnp.broadcast_to(key < length, (tile.queries, size))
            return shown if window is None else shown & (position[:, None] - key < window)

        carry = loop(nearest, pl.cdiv(length, size), prompt, width, carry, in_prompt)

    oldest = 0 if limits.start is None else jnp.min(start)
    if window is not None:
        oldest = jnp.maximum(oldest, first - window + 1)
    whole = oldest // size if masked else (first + 1) // size
    if not masked:
        carry = loop(0, whole, own, tokens, carry, None)

    def in_order(key: Array) -> Array:
        shown = key <= index[:, None]
        if limits.start is not None:
            shown &= key >= start[:, None]
        return shown if window is None else shown & (index[:, None] - key < window)

    end = pl.cdiv(jnp.minimum(first + tile.queries, tokens), size)
    return loop(whole, end, own, tokens, carry, in_order)


def _forward_kernel(
    query: Any, own: KeyValues, prompt: KeyValues | None, limits: Limits, out: Any, lse: Any, *,
    scale: float, **sizes: Any,
) -> None:  # fmt: skip
    """Attends with one block of queries [t, h]."""
    tile, tokens = sizes["tile"], sizes["tokens"]
    inside = pl.program_id(0) * tile.queries + jnp.arange(tile.queries) < tokens
    q = plgpu.load(query, mask=inside[:, None], other=0)
    factor = scale * math.log2(math.e)

    def step(carry: Any, keys: Array, values: Array, mask: Array | None) -> Any:
        total, top, mass = carry
        scores = plgpu.dot(q, keys.T)
        if mask is not None:
            scores = jnp.where(mask, scores, MASKED)
        higher = jnp.maximum(top, scores.max(axis=1) * factor)
        probs = jnp.exp2(scores * factor - higher[:, None])
        shrink = jnp.exp2(top - higher)
        total = total * shrink[:, None] + plgpu.dot(probs.astype(values.dtype), values)
        return total, higher, mass * shrink + probs.sum(axis=1)

    nothing = jnp.zeros(q.shape, jnp.float32), jnp.full(len(q), MASKED, jnp.float32), jnp.zeros(len(q), jnp.float32)
    total, top, mass = _over_keys(step, nothing, own, prompt, limits, **sizes)
    plgpu.store(out, (total / mass[:, None]).astype(out.dtype), mask=inside[:, None])
    plgpu.store(lse, top + jnp.log2(mass), mask=inside)


def forward(query: Array, own: KeyValues, prompt: KeyValues | None, limits: Limits, how: How) -> tuple[Array, Kept]:
    """Attends with queries [P · M, T, K · G, h]; the same shape, and what the backward pass needs."""
    rows, tokens, heads, _ = query.shape
    tile = clipped(how.tiles.forward, tokens, prompt)
    specs = _query_specs(query, own, prompt, limits, tile)
    kernel = functools.partial(_forward_kernel, scale=how.scale, tile=tile, tokens=tokens, width=width_of(prompt))
    out, lse = triton_call(
        kernel, "group_attention", tile, how, grid=specs.grid,
        in_specs=(specs.query, specs.own, specs.prompt, specs.limits), out_specs=(specs.query, specs.numbers),
        out_shape=(
            jax.ShapeDtypeStruct(query.shape, query.dtype), jax.ShapeDtypeStruct((rows, heads, tokens), jnp.float32)
        ),
    )(query, own, prompt, limits)  # fmt: skip
    out, lse = (checkpoint_name(x, ATTENDED) for x in (out, lse))
    return out, Kept(query, own, prompt, limits, out, lse)


def _d_query_kernel(
    query: Any, own: KeyValues, prompt: KeyValues | None, limits: Limits, kept: tuple, d_query: Any, delta: Any, *,
    scale: float, **sizes: Any,
) -> None:  # fmt: skip
    """Differentiates one block of queries [t, h]: ds = p (dp − Σ p dp), where Σ p dp is Σ out · d_out."""
    tile, tokens = sizes["tile"], sizes["tokens"]
    inside = pl.program_id(0) * tile.queries + jnp.arange(tile.queries) < tokens
    out, lse, d_out = kept
    q, y, dy = (plgpu.load(x, mask=inside[:, None], other=0) for x in (query, out, d_out))
    log = plgpu.load(lse, mask=inside, other=0)[:, None]
    along = jnp.sum(y.astype(jnp.float32) * dy.astype(jnp.float32), axis=1)
    plgpu.store(delta, along, mask=inside)
    factor = scale * math.log2(math.e)

    def step(total: Array, keys: Array, values: Array, mask: Array | None) -> Array:
        probs = jnp.exp2(plgpu.dot(q, keys.T) * factor - log)
        if mask is not None:
            probs = jnp.where(mask, probs, 0)
        d_scores = probs * (plgpu.dot(dy, values.T) - along[:, None])
        return total + plgpu.dot(d_scores.astype(keys.dtype), keys)

    total = _over_keys(step, jnp.zeros(q.shape, jnp.float32), own, prompt, limits, **sizes)
    plgpu.store(d_query, (total * scale).astype(d_query.dtype), mask=inside[:, None])


def differentiate_queries(kept: Kept, d_out: Array, how: How) -> tuple[Array, Array]:
    """Computes the gradient of the queries, and Σ out · d_out [P · M, K · G, T]."""
    query, own, prompt, limits, out, lse = kept
    tokens = query.shape[1]
    tile = clipped(how.tiles.d_query, tokens, prompt)
    specs = _query_specs(query, own, prompt, limits, tile)
    kernel = functools.partial(_d_query_kernel, scale=how.scale, tile=tile, tokens=tokens, width=width_of(prompt))
    return triton_call(
        kernel, "group_attention_d_query", tile, how, grid=specs.grid,
        in_specs=(specs.query, specs.own, specs.prompt, specs.limits, (specs.query, specs.numbers, specs.query)),
        out_specs=(specs.query, specs.numbers),
        out_shape=(
            jax.ShapeDtypeStruct(query.shape, query.dtype), jax.ShapeDtypeStruct(lse.shape, jnp.float32)
        ),
    )(query, own, prompt, limits, (out, lse, d_out))  # fmt: skip
