"""Programs for queries: attention, and its gradient to the queries. See `group_kernel`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl

from tsallis_rl.models.attention.group_tiles import (
    Given,
    How,
    Kept,
    Limits,
    Sizes,
    group_call,
    inside_rows,
    program_sizes,
    whole,
)
from tsallis_rl.models.attention.parts import ATTENDED, MASKED, KeyValues
from tsallis_rl.models.attention.triton_programs import LOG2_E, load, product, store


class _Blocks(NamedTuple):
    """The grid (blocks of queries, P · M, K · G) of programs for queries, and the block specs of their arrays.

    Attributes:
      grid: number of programs on each axis.
      given: specs of the arrays of the forward pass.
      query: spec of an array like the queries.
      numbers: spec of an array [P · M, K · G, T].
    """

    grid: tuple[int, ...]
    given: Given
    query: pl.BlockSpec
    numbers: pl.BlockSpec


def _blocks(given: Given, sizes: Sizes) -> _Blocks:
    rows, tokens, heads, head_dim = given.query.shape
    group, rollouts = heads // given.own.keys.shape[2], rows // len(given.limits.lengths)
    queries, keys = sizes.tile[:2]
    query = pl.BlockSpec((None, queries, None, head_dim), lambda i, r, n: (r, i, n, 0))
    own = pl.BlockSpec((None, whole(tokens, keys), None, head_dim), lambda i, r, n: (r, 0, n // group, 0))
    prompt = pl.BlockSpec(
        (None, whole(sizes.width, keys), None, head_dim), lambda i, r, n: (r // rollouts, 0, n // group, 0)
    )
    start = pl.BlockSpec((None, queries), lambda i, r, n: (r, i))
    limits = Limits(
        lengths=pl.BlockSpec((1,), lambda i, r, n: (r // rollouts,)),
        start=None if given.limits.start is None else start,
        window=None if given.limits.window is None else pl.BlockSpec((1,), lambda i, r, n: (0,)),
    )
    return _Blocks(
        grid=(pl.cdiv(tokens, queries), rows, heads),
        given=Given(query, KeyValues(own, own), None if given.prompt is None else KeyValues(prompt, prompt), limits),
        query=query,
        numbers=pl.BlockSpec((None, None, queries), lambda i, r, n: (r, n, i)),
    )


def _over_keys(step: Callable[[Any, Array, Array, Array | None], Any], carry: Any, given: Given, sizes: Sizes) -> Any:
    """Calls step(carry, keys, values, mask or None) for every block of keys that a block of queries sees."""
    (queries, size, *_), tokens, width, _ = sizes
    first = pl.program_id(0) * queries
    index, start = first + jnp.arange(queries), 0
    _, own, prompt, limits = given
    window = None if limits.window is None else limits.window[0]
    if limits.start is not None:  # queries of the padding get the block's first index, which skips and adds no key
        start = jnp.maximum(load(limits.start, index < tokens), (index >= tokens) * first)

    def loop(begin: Array | int, end: Array, kv: KeyValues, axis: int, carry: Any, mask: Callable | None) -> Any:
        def body(j: Array, carry: Any) -> Any:
            at = j * size
            shown = None if mask is None else mask(at + jnp.arange(size)[None, :])
            inside = inside_rows(at, size, axis)
            return step(carry, *(load(x.at[pl.ds(at, size)], inside) for x in kv), shown)

        return jax.lax.fori_loop(begin, end, body, carry)

    if prompt is not None:
        length = limits.lengths[0]
        position = length + index - start  # of the queries

        def in_prompt(key: Array) -> Array:
            shown = jnp.broadcast_to(key < length, (queries, size))
            return shown if window is None else shown & (position[:, None] - key < window)

        if window is None:
            begin = length // size
            carry = loop(0, begin, prompt, width, carry, None)
        else:
            begin = jnp.maximum(jnp.min(position) - window + 1, 0) // size
        carry = loop(begin, pl.cdiv(length, size), prompt, width, carry, in_prompt)

    def in_order(key: Array) -> Array:
        shown = key <= index[:, None]
        if limits.start is not None:
            shown &= key >= start[:, None]
        return shown if window is None else shown & (index[:, None] - key < window)

    if limits.start is None and window is None:
        begin = (first + 1) // size
        carry = loop(0, begin, own, tokens, carry, None)
    else:
        oldest = 0 if limits.start is None else jnp.min(start)
        begin = (oldest if window is None else jnp.maximum(oldest, first - window + 1)) // size
    end = pl.cdiv(jnp.minimum(first + queries, tokens), size)
    return loop(begin, end, own, tokens, carry, in_order)


def _forward_kernel(given: Given, out: Any, lse: Any, *, sizes: Sizes) -> None:
    """Attends with one block of queries [t, h]."""
    inside = pl.program_id(0) * sizes.tile.queries + jnp.arange(sizes.tile.queries) < sizes.tokens
    query = load(given.query, inside)
    factor = sizes.scale * LOG2_E

    def step(carry: Any, keys: Array, values: Array, mask: Array | None) -> Any:
        total, top, mass = carry
        scores = product(query, keys.T)
        if mask is not None:
            scores = jnp.where(mask, scores, MASKED)
        higher = jnp.maximum(top, scores.max(axis=1) * factor)
        probs = jnp.exp2(scores * factor - higher[:, None])
        shrink = jnp.exp2(top - higher)
        total = total * shrink[:, None] + product(probs.astype(values.dtype), values)
        return total, higher, mass * shrink + probs.sum(axis=1)

    numbers = len(query), jnp.float32
    nothing = jnp.zeros(query.shape, jnp.float32), jnp.full(numbers[0], MASKED, numbers[1]), jnp.zeros(*numbers)
    total, top, mass = _over_keys(step, nothing, given, sizes)
    store(out, total / mass[:, None], inside)
    store(lse, top + jnp.log2(mass), inside)


def forward(given: Given, how: How) -> tuple[Array, Kept]:
    """Attends with queries [P · M, T, K · G, h] → the same shape, and the arrays that the backward pass needs."""
    rows, tokens, heads, _ = given.query.shape
    sizes = program_sizes(given, how.tiles.forward, how.scale)
    blocks = _blocks(given, sizes)
    call = group_call(
        _forward_kernel,
        "group_attention",
        sizes,
        interpret=how.interpret,
        grid=blocks.grid,
        in_specs=[blocks.given],
        out_specs=(blocks.query, blocks.numbers),
        out_shape=(
            jax.ShapeDtypeStruct(given.query.shape, given.query.dtype),
            jax.ShapeDtypeStruct((rows, heads, tokens), jnp.float32),
        ),
    )
    out, lse = (checkpoint_name(x, ATTENDED) for x in call(given))
    return out, Kept(given, out, lse)


def _d_query_kernel(kept: Kept, d_out: Any, d_query: Any, delta: Any, *, sizes: Sizes) -> None:
    """Differentiates one block of queries [t, h]: ds = p (dp − Σ p dp), where Σ p dp is Σ out · d_out."""
    inside = pl.program_id(0) * sizes.tile.queries + jnp.arange(sizes.tile.queries) < sizes.tokens
    query, out, d_out = (load(x, inside) for x in (kept.given.query, kept.out, d_out))
    lse = load(kept.lse, inside)[:, None]
    along = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=1)
    store(delta, along, inside)
    factor = sizes.scale * LOG2_E

    def step(total: Array, keys: Array, values: Array, mask: Array | None) -> Array:
        probs = jnp.exp2(product(query, keys.T) * factor - lse)
        if mask is not None:
            probs = jnp.where(mask, probs, 0)
        d_scores = probs * (product(d_out, values.T) - along[:, None])
        return total + product(d_scores.astype(keys.dtype), keys)

    total = _over_keys(step, jnp.zeros(query.shape, jnp.float32), kept.given, sizes)
    store(d_query, total * sizes.scale, inside)


def differentiate_queries(kept: Kept, d_out: Array, how: How) -> tuple[Array, Array]:
    """Computes the gradient of the queries, and Σ out · d_out [P · M, K · G, T]."""
    sizes = program_sizes(kept.given, how.tiles.d_query, how.scale)
    blocks = _blocks(kept.given, sizes)
    return group_call(
        _d_query_kernel,
        "group_attention_d_query",
        sizes,
        interpret=how.interpret,
        grid=blocks.grid,
        in_specs=[Kept(blocks.given, blocks.query, blocks.numbers), blocks.query],
        out_specs=(blocks.query, blocks.numbers),
        out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (kept.given.query, kept.lse)),
    )(kept, d_out)
