"""Attention of a group's rollouts on an NVIDIA GPU: flash attention in Triton, by Pallas, with its gradient.

The M rollouts of a group read the keys of their one prompt where they are: nothing is copied, and one softmax is taken
over them and over the rollout's own keys. Arrays are read and written in the layout of the projections.

    forward    out and log-sum-exps     a program for a block of queries of one head
    d_query    gradient of the queries  the same; also Σ out · d_out of every query, which the other two need
    d_own      of own keys and values   a program for a block of a rollout's keys: sums over the G heads and queries
    d_prompt   of the prompt's          a program for a block of a prompt's keys: sums over M rollouts, heads, queries

Scores are computed again in each backward kernel. Every sum is made in float32 by one program in one order, so that
runs are the same bit for bit. Inside, exponentials and log-sum-exps are to base 2.
"""

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

from tsallis_rl.models.attention.parts import ATTENDED, MASKED, KeyValues

LEAST = 16  # queries and keys of a tile: a tensor core's


class Tile(NamedTuple):
    """What a program holds at a time.

    Attributes:
      queries: of a block.
      keys: of a block.
      warps: of a program.
      stages: blocks that are loaded ahead, and the one at work.
    """

    queries: int
    keys: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tile of each kernel."""

    forward: Tile
    d_query: Tile
    d_own: Tile
    d_prompt: Tile


# For heads of up to 128 numbers; of more, half as many rows fit into registers and shared memory.
TILES = Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2), Tile(64, 128, 8, 2))


def tiles_for(head_dim: int) -> Tiles:
    """Chooses the tiles for heads of `head_dim` numbers."""
    if head_dim <= 128:
        return TILES
    return Tiles(*(tile._replace(queries=tile.queries // 2, keys=tile.keys // 2) for tile in TILES))


class Limits(NamedTuple):
    """What queries see besides the order of tokens; inside a kernel, the same of its block.

    Attributes:
      lengths: [P] keys of each prompt.
      start: [P · M, T] the first own key that each query sees, before which stands the prompt; None is 0 for all.
      window: [1] how many positions back a query sees, its own included; None is all.
    """

    lengths: Array
    start: Array | None
    window: Array | None


class _How(NamedTuple):
    """Constants of a call."""

    scale: float
    tiles: Tiles
    interpret: bool


def attend(
    query: Array,
    own: KeyValues,
    prompt: KeyValues | None,
    lengths: Array,
    start: Array | None,
    window: Array | None,
    scale: float,
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> Array:
    """Attends with queries [P, M, T, K, G, h] to a prompt's keys and to own keys, in one softmax; the same shape.

    Query t stands at position lengths[p] + t − start[p, m, t].

    Args:
      query: [P, M, T, K, G, h].
      own: [P, M, T, K, h], of which query t sees start[p, m, t] … t.
      prompt: [P, S, K, h], of which every query sees the first lengths[p]; or None.
      lengths: [P], at most S.
      start: [P, M, T], at most t; None is 0.
      window: a number, at least 1: a query sees keys less than `window` positions before its own; None is all.
      scale: multiplies the scores; above 0.
      tiles: None is `tiles_for` the heads.
      interpret: run on any processor, slowly.

    Returns:
      [P, M, T, K, G, h].
    """
    prompts, rollouts, tokens, kv_heads, group, head_dim = query.shape
    rows = prompts * rollouts
    if start is not None:
        start = jnp.broadcast_to(start, query.shape[:3]).reshape(rows, tokens)
    if window is not None:  # of no effect where it is longer than all keys; sums with it then stay in int32
        longest = tokens + (0 if prompt is None else prompt.keys.shape[1])
        window = jnp.minimum(window, longest).astype(jnp.int32).reshape(1)
    flat = query.reshape(rows, tokens, kv_heads * group, head_dim)
    own = KeyValues(*(x.reshape(rows, *x.shape[2:]) for x in own))
    how = _How(scale, tiles or tiles_for(head_dim), interpret)
    return _attend(flat, own, prompt, Limits(lengths, start, window), how).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query: Array, own: KeyValues, prompt: KeyValues | None, limits: Limits, how: _How) -> Array:
    return _forward(query, own, prompt, limits, how)[0]


def _clipped(tile: Tile, tokens: int, prompt: KeyValues | None) -> Tile:
    """Makes a tile no larger than what there is of queries and keys."""
    longest = tokens if prompt is None else max(tokens, prompt.keys.shape[1])
    queries, keys = (max(LEAST, pl.next_power_of_2(size)) for size in (tokens, longest))
    return tile._replace(queries=min(tile.queries, queries), keys=min(tile.keys, keys))


def _whole(size: int, block: int) -> int:
    """Rounds a size up to whole blocks: a block that is all of an axis, of which no more than the axis is read."""
    return pl.cdiv(size, block) * block


def _call(kernel: Callable[..., None], name: str, tile: Tile, how: _How, **arguments: Any) -> Callable[..., Any]:
    """Makes a Pallas call in Triton."""
    parameters = plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages)
    return pl.pallas_call(kernel, compiler_params=parameters, interpret=how.interpret, name=name, **arguments)


def _block(shape: tuple[int | None, ...], index: Callable[..., tuple]) -> pl.BlockSpec:
    return pl.BlockSpec(shape, index)


# ---------------------------------------------------------------------------------------------- a program for queries


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
    of_row = _block((None, _whole(tokens, tile.keys), None, head_dim), lambda i, r, n: (r, 0, n // group, 0))
    if prompt is not None:
        size = _whole(prompt.keys.shape[1], tile.keys)
        of_prompt = _block((None, size, None, head_dim), lambda i, r, n: (r // rollouts, 0, n // group, 0))
    return _QuerySpecs(
        grid=(pl.cdiv(tokens, tile.queries), rows, heads),
        query=_block((None, tile.queries, None, head_dim), lambda i, r, n: (r, i, n, 0)),
        numbers=_block((None, None, tile.queries), lambda i, r, n: (r, n, i)),
        own=KeyValues(of_row, of_row),
        prompt=None if prompt is None else KeyValues(of_prompt, of_prompt),
        limits=Limits(
            lengths=_block((1,), lambda i, r, n: (r // rollouts,)),
            start=None if limits.start is None else _block((None, tile.queries), lambda i, r, n: (r, i)),
            window=None if limits.window is None else _block((1,), lambda i, r, n: (0,)),
        ),
    )


def _rows(ref: Any, at: Array | int, size: int, end: int) -> Array:
    """Loads `size` rows of ref [end, …] from `at` on; zeros after the end."""
    block = ref.at[pl.ds(at, size)]
    if end % size == 0:
        return block[...]
    inside = at + jnp.arange(size) < end
    return plgpu.load(block, mask=inside.reshape(-1, *[1] * (len(ref.shape) - 1)), other=0)


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
    start = 0 if limits.start is None else _rows(limits.start, 0, tile.queries, tile.queries)
    if limits.start is not None:  # a query after the last token may stand anywhere
        start = jnp.where(index < tokens, start, first)

    def loop(begin: Array | int, end: Array, kv: KeyValues, axis: int, carry: Any, mask: Callable | None) -> Any:
        def body(j: Array, carry: Any) -> Any:
            at = j * size
            shown = None if mask is None else mask(at + jnp.arange(size)[None, :])
            return step(carry, *(_rows(x, at, size, axis) for x in kv), shown)

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
    query: Any, own: KeyValues, prompt: KeyValues | None, limits: Limits, out: Any, lse: Any, *, scale: float, **sizes: Any
) -> None:
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


class _Kept(NamedTuple):
    """Arrays that the backward pass needs: the arguments of `_attend`, its result, and log-sum-exps [P · M, K · G, T]."""

    query: Array
    own: KeyValues
    prompt: KeyValues | None
    limits: Limits
    out: Array
    lse: Array


def _width(prompt: KeyValues | None) -> int:
    return 0 if prompt is None else prompt.keys.shape[1]


def _forward(
    query: Array, own: KeyValues, prompt: KeyValues | None, limits: Limits, how: _How
) -> tuple[Array, _Kept]:
    rows, tokens, heads, _ = query.shape
    tile = _clipped(how.tiles.forward, tokens, prompt)
    specs = _query_specs(query, own, prompt, limits, tile)
    kernel = functools.partial(_forward_kernel, scale=how.scale, tile=tile, tokens=tokens, width=_width(prompt))
    out, lse = _call(
        kernel, "group_attention", tile, how, grid=specs.grid,
        in_specs=(specs.query, specs.own, specs.prompt, specs.limits), out_specs=(specs.query, specs.numbers),
        out_shape=(
            jax.ShapeDtypeStruct(query.shape, query.dtype), jax.ShapeDtypeStruct((rows, heads, tokens), jnp.float32)
        ),
    )(query, own, prompt, limits)  # fmt: skip
    out, lse = (checkpoint_name(x, ATTENDED) for x in (out, lse))
    return out, _Kept(query, own, prompt, limits, out, lse)


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


def _d_query(kept: _Kept, d_out: Array, how: _How) -> tuple[Array, Array]:
    """Computes the gradient of the queries, and Σ out · d_out [P · M, K · G, T]."""
    query, own, prompt, limits, out, lse = kept
    tokens = query.shape[1]
    tile = _clipped(how.tiles.d_query, tokens, prompt)
    specs = _query_specs(query, own, prompt, limits, tile)
    kernel = functools.partial(_d_query_kernel, scale=how.scale, tile=tile, tokens=tokens, width=_width(prompt))
    return _call(
        kernel, "group_attention_d_query", tile, how, grid=specs.grid,
        in_specs=(specs.query, specs.own, specs.prompt, specs.limits, (specs.query, specs.numbers, specs.query)),
        out_specs=(specs.query, specs.numbers),
        out_shape=(
            jax.ShapeDtypeStruct(query.shape, query.dtype), jax.ShapeDtypeStruct(lse.shape, jnp.float32)
        ),
    )(query, own, prompt, limits, (out, lse, d_out))  # fmt: skip


# ------------------------------------------------------------------------------------------------- a program for keys


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
        at, m, g = (begin + n // each) * size, n % each // group, n % group
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


def _d_own(kept: _Kept, d_out: Array, delta: Array, how: _How) -> KeyValues:
    """Computes the gradients of own keys and values."""
    query, own, _, limits, _, lse = kept
    rows, tokens, heads, head_dim = query.shape
    kv_heads = own.keys.shape[2]
    group = heads // kv_heads
    tile = _clipped(how.tiles.d_own, tokens, None)
    size, blocks = _whole(tokens, tile.queries), pl.cdiv(tokens, tile.keys)
    of_keys = _block((None, tile.keys, None, head_dim), lambda j, r, k: (r, j, k, 0))
    of_queries = _block((1, size, group, head_dim), lambda j, r, k: (r, 0, k, 0))
    numbers = _block((1, group, size), lambda j, r, k: (r, k, 0))
    ends = specs_ends = starts = None
    if limits.start is not None:  # after the last query that sees a block of keys
        index, last = jnp.arange(tokens), jnp.arange(blocks)[:, None] * tile.keys + tile.keys - 1
        ends = jnp.where(limits.start[:, None] <= last, index + 1, 0).max(-1)
        specs_ends = _block((None, 1), lambda j, r, k: (r, j))
        starts = _block((1, size), lambda j, r, k: (r, 0))
    kv = KeyValues(of_keys, of_keys)
    return _call(
        functools.partial(_d_own_kernel, scale=how.scale, tile=tile, tokens=tokens),
        "group_attention_d_own", tile, how, grid=(blocks, rows, kv_heads),
        in_specs=(
            kv, _Queries(of_queries, of_queries, numbers, numbers, starts),
            None if limits.window is None else _block((1,), lambda j, r, k: (0,)), specs_ends,
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
    last = jnp.where(first < length, tokens, 0)
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


def _d_prompt(kept: _Kept, d_out: Array, delta: Array, how: _How) -> KeyValues:
    """Computes the gradients of the prompts' keys and values."""
    query, _, prompt, limits, _, lse = kept
    _, tokens, heads, head_dim = query.shape
    prompts, width, kv_heads, _ = prompt.keys.shape
    group = heads // kv_heads
    tile = _clipped(how.tiles.d_prompt, tokens, prompt)
    size = _whole(tokens, tile.queries)
    queries = _Queries(query, d_out, lse, delta, limits.start if limits.window is not None else None)
    queries = jax.tree.map(lambda x: x.reshape(prompts, -1, *x.shape[1:]), queries)
    rollouts = queries.query.shape[1]
    of_keys = _block((None, tile.keys, None, head_dim), lambda j, p, k: (p, j, k, 0))
    of_queries = _block((None, rollouts, size, group, head_dim), lambda j, p, k: (p, 0, 0, k, 0))
    numbers = _block((None, rollouts, group, size), lambda j, p, k: (p, 0, k, 0))
    starts = None if queries.start is None else _block((None, rollouts, size), lambda j, p, k: (p, 0, 0))
    kv = KeyValues(of_keys, of_keys)
    return _call(
        functools.partial(_d_prompt_kernel, scale=how.scale, tile=tile, tokens=tokens, width=width),
        "group_attention_d_prompt", tile, how, grid=(pl.cdiv(width, tile.keys), prompts, kv_heads),
        in_specs=(
            kv, _Queries(of_queries, of_queries, numbers, numbers, starts), _block((1,), lambda j, p, k: (p,)),
            None if limits.window is None else _block((1,), lambda j, p, k: (0,)),
        ),
        out_specs=kv,
        out_shape=KeyValues(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in prompt)),
    )(prompt, queries, limits.lengths, limits.window)  # fmt: skip


def _backward(how: _How, kept: _Kept, d_out: Array) -> tuple:
    d_out = d_out.astype(kept.query.dtype)
    d_query, delta = _d_query(kept, d_out, how)
    d_own = _d_own(kept, d_out, delta, how)
    return d_query, d_own, None if kept.prompt is None else _d_prompt(kept, d_out, delta, how), None


_attend.defvjp(_forward, _backward)
