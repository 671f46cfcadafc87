"""Programs for keys: gradients to the keys and values of rollouts and of their prompts. See `group_kernel`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from tsallis_rl.models.attention.group_tiles import How, Kept, Sizes, group_call, inside_rows, program_sizes, whole
from tsallis_rl.models.attention.parts import KeyValues
from tsallis_rl.models.attention.triton_programs import LOG2_E, load, product, store
from tsallis_rl.models.shapes import largest_divisor

PROGRAMS = 264  # two for each multiprocessor of a Hopper


class _Queries(NamedTuple):
    """Arrays of queries that a program for keys reads: those of one row (M = 1), or of several rows of one prompt.

    Attributes:
      query: [M, T, G, h].
      d_out: [M, T, G, h].
      lse: [M, G, T].
      delta: [M, G, T], Σ out · d_out.
      start: [M, T] or None.
    """

    query: Any
    d_out: Any
    lse: Any
    delta: Any
    start: Any | None


class _Seen(NamedTuple):
    """Arrays that bound what queries see, in a program for keys; None is no bound.

    Attributes:
      window: [1].
      end: [1] for a prompt, its length; for own keys, the index after the last query that sees this block.
    """

    window: Any | None
    end: Any | None


def _add_queries(
    kv: KeyValues,
    queries: _Queries,
    total: KeyValues,
    blocks: tuple[Array | int, Array | int],
    mask: Callable[[Array, Any], Array] | None,
    sizes: Sizes,
) -> KeyValues:
    """Adds to the gradients of one block of keys the terms of query blocks [from, to) of all rows and heads.

    Scores are transposed, [keys, queries], so that probabilities are the first factor, which stays in registers.
    """
    rollouts, _, group, _ = queries.query.shape
    factor, size = sizes.scale * LOG2_E, sizes.tile.queries
    div, rem = jax.lax.div, jax.lax.rem  # no number here is negative
    begin, end = blocks
    each = rollouts * group

    def body(n: Array, total: KeyValues) -> KeyValues:
        at, m, g = (begin + div(n, each)) * size, div(rem(n, each), group), rem(n, group)
        here, inside = pl.ds(at, size), inside_rows(at, size, sizes.tokens)
        query, d_out = (load(x.at[m, here, g], inside) for x in (queries.query, queries.d_out))
        lse, delta = (load(x.at[m, g, here], inside)[None, :] for x in (queries.lse, queries.delta))
        probs = jnp.exp2(product(kv.keys, query.T) * factor - lse)
        if mask is not None:
            start = 0 if queries.start is None else load(queries.start.at[m, here], inside)[None, :]
            probs = jnp.where(mask(at + jnp.arange(size)[None, :], start), probs, 0)
        d_values = total.values + product(probs.astype(d_out.dtype), d_out)
        d_scores = probs * (product(kv.values, d_out.T) - delta)
        return KeyValues(total.keys + product(d_scores.astype(query.dtype), query), d_values)

    return jax.lax.fori_loop(0, jnp.maximum(end - begin, 0) * each, body, total)


class _Block(NamedTuple):
    """The block of keys of a program.

    Attributes:
      first: index of its first key.
      key: [s] indices of its keys.
      inside: [s] True at keys that exist.
      kv: keys and values, [s, h].
    """

    first: Array
    key: Array
    inside: Array
    kv: KeyValues


def _block(kv: KeyValues, keys: int, end: int) -> _Block:
    """Loads this program's block of `keys` keys, from `end` keys in all."""
    first = pl.program_id(0) * keys
    key = first + jnp.arange(keys)
    inside = key < end
    return _Block(first, key, inside, KeyValues(*(load(x, inside) for x in kv)))


def _nothing(kv: KeyValues) -> KeyValues:
    return KeyValues(*(jnp.zeros(x.shape, jnp.float32) for x in kv))


def _store(refs: tuple[Any, Any], total: KeyValues, inside: Array, scale: float) -> None:
    """Writes the gradients of a block of keys and values; multiplies the keys' by the factor of the scores."""
    for ref, x in zip(refs, (total.keys * scale, total.values), strict=True):
        store(ref, x, inside)


def _d_own_kernel(own: KeyValues, queries: _Queries, seen: _Seen, *grads: Any, sizes: Sizes) -> None:
    """Differentiates one block of a rollout's keys and values [s, h]."""
    (size, keys, *_), tokens, _, scale = sizes
    first, key, inside, kv = _block(own, keys, tokens)
    window = None if seen.window is None else seen.window[0]

    def mask(index: Array, start: Any) -> Array:
        shown = key[:, None] <= index
        if queries.start is not None:
            shown &= key[:, None] >= start
        return shown if window is None else shown & (index - key[:, None] < window)

    total, begin, end = _nothing(kv), first // size, pl.cdiv(tokens, size)
    if window is None and seen.end is None:
        masked = jnp.minimum(pl.cdiv(first + keys - 1, size), end)
        total = _add_queries(kv, queries, total, (begin, masked), mask, sizes)
        total = _add_queries(kv, queries, total, (masked, end), None, sizes)
    else:
        last = tokens if seen.end is None else seen.end[0]
        if window is not None:
            last = jnp.minimum(last, first + keys - 1 + window)
        total = _add_queries(kv, queries, total, (begin, pl.cdiv(last, size)), mask, sizes)
    _store(grads, total, inside, scale)


def differentiate_own(kept: Kept, d_out: Array, delta: Array, how: How) -> KeyValues:
    """Computes the gradients of own keys and values."""
    query, own, _, limits = kept.given
    rows, tokens, heads, head_dim = query.shape
    kv_heads = own.keys.shape[2]
    sizes = program_sizes(kept.given, how.tiles.d_own, how.scale, of_prompt=False)
    keys, group, length = sizes.tile.keys, heads // kv_heads, whole(tokens, sizes.tile.queries)
    of_keys = pl.BlockSpec((None, keys, None, head_dim), lambda j, r, k: (r, j, k, 0))
    of_queries = pl.BlockSpec((1, length, group, head_dim), lambda j, r, k: (r, 0, k, 0))
    numbers = pl.BlockSpec((1, group, length), lambda j, r, k: (r, k, 0))
    starts = of_end = ends = None
    if limits.start is not None:
        last = (jnp.arange(pl.cdiv(tokens, keys)) + 1)[:, None] * keys - 1
        ends = jnp.where(limits.start[:, None] <= last, jnp.arange(tokens) + 1, 0).max(-1)
        of_end = pl.BlockSpec((None, 1), lambda j, r, k: (r, j))
        starts = pl.BlockSpec((1, length), lambda j, r, k: (r, 0))
    window = None if limits.window is None else pl.BlockSpec((1,), lambda j, r, k: (0,))
    kv = KeyValues(of_keys, of_keys)
    return group_call(
        _d_own_kernel,
        "group_attention_d_own",
        sizes,
        interpret=how.interpret,
        grid=(pl.cdiv(tokens, keys), rows, kv_heads),
        in_specs=[kv, _Queries(of_queries, of_queries, numbers, numbers, starts), _Seen(window, of_end)],
        out_specs=kv,
        out_shape=KeyValues(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in own)),
    )(own, _Queries(query, d_out, kept.lse, delta, limits.start), _Seen(limits.window, ends))


def _d_prompt_kernel(prompt: KeyValues, queries: _Queries, seen: _Seen, *grads: Any, sizes: Sizes) -> None:
    """Differentiates one block of a prompt's keys and values [s, h]."""
    (size, keys, *_), tokens, width, scale = sizes
    first, key, inside, kv = _block(prompt, keys, width)
    length, window = seen.end[0], None if seen.window is None else seen.window[0]
    last = tokens * (first < length).astype(jnp.int32)
    if window is not None and queries.start is None:  # after the last query that sees this block
        last = jnp.clip(window - length + first + keys - 1, 0, last)

    def mask(index: Array, start: Any) -> Array:
        return length + index - start - key[:, None] < window

    blocks = (0, pl.cdiv(last, size))
    total = _add_queries(kv, queries, _nothing(kv), blocks, None if window is None else mask, sizes)
    total = KeyValues(*(jnp.where((key < length)[:, None], x, 0) for x in total))  # nothing sees keys after the end
    _store(grads, total, inside, scale)


def differentiate_prompt(kept: Kept, d_out: Array, delta: Array, how: How) -> KeyValues:
    """Computes the gradients of the prompts' keys and values."""
    query, _, prompt, limits = kept.given
    _, _, heads, head_dim = query.shape
    prompts, width, kv_heads, _ = prompt.keys.shape
    sizes = program_sizes(kept.given, how.tiles.d_prompt, how.scale)
    keys, group, length = sizes.tile.keys, heads // kv_heads, whole(sizes.tokens, sizes.tile.queries)
    blocks = pl.cdiv(width, keys)
    parts = largest_divisor(len(query) // prompts, max(1, PROGRAMS // (blocks * prompts * kv_heads)))
    queries = _Queries(query, d_out, kept.lse, delta, None if limits.window is None else limits.start)
    queries = jax.tree.map(lambda x: x.reshape(prompts * parts, -1, *x.shape[1:]), queries)
    rollouts = queries.query.shape[1]
    of_prompt = pl.BlockSpec((None, keys, None, head_dim), lambda j, p, k: (p // parts, j, k, 0))
    of_keys = pl.BlockSpec((None, None, keys, None, head_dim), lambda j, p, k: (p // parts, p % parts, j, k, 0))
    of_queries = pl.BlockSpec((None, rollouts, length, group, head_dim), lambda j, p, k: (p, 0, 0, k, 0))
    numbers = pl.BlockSpec((None, rollouts, group, length), lambda j, p, k: (p, 0, k, 0))
    starts = None if queries.start is None else pl.BlockSpec((None, rollouts, length), lambda j, p, k: (p, 0, 0))
    window = None if limits.window is None else pl.BlockSpec((1,), lambda j, p, k: (0,))
    call = group_call(
        _d_prompt_kernel,
        "group_attention_d_prompt",
        sizes,
        interpret=how.interpret,
        grid=(blocks, prompts * parts, kv_heads),
        in_specs=[
            KeyValues(of_prompt, of_prompt),
            _Queries(of_queries, of_queries, numbers, numbers, starts),
            _Seen(window, pl.BlockSpec((1,), lambda j, p, k: (p // parts,))),
        ],
        out_specs=KeyValues(of_keys, of_keys),
        out_shape=KeyValues(*(jax.ShapeDtypeStruct((prompts, parts, *x.shape[1:]), jnp.float32) for x in prompt)),
    )
    summed = (x.sum(axis=1) for x in call(prompt, queries, _Seen(limits.window, limits.lengths)))
    return KeyValues(*(x.astype(y.dtype) for x, y in zip(summed, prompt, strict=True)))
