"""Attention of a token that is decoded, on a GPU: two kernels of a layer instead of the thirteen that XLA makes.

The first attends to a prompt's keys for all rollouts of its group at once, so that they are read once a group, and
leaves its sums without dividing them. The second goes on from there through a rollout's own keys, up to its length, and
writes the new token into the cache on the way. So a cache may have more room than is filled: what is empty is not read.

Written in Pallas for its Triton compiler. There is no gradient: rollouts are constants to an update.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from tsallis_rl.models.attention.parts import MASKED, KeyValues, Part, RowCache, WriteAt
from tsallis_rl.models.sharding import sharding

DTYPES = ("bfloat16", "float16")  # products of float32 numbers would be rounded to 10 bits
SMALLEST_TILE = 16  # rows of the smallest product that Triton makes
HEAD_DIMS = (16, 32, 64, 128, 256)
LOG2_E = math.log2(math.e)


class Tile(NamedTuple):
    """The work of one program of a kernel.

    Attributes:
      keys: read at a time.
      warps: that share the work.
      stages: reads of keys that are under way at a time.
      rows: query rows at most; of the prompt's kernel alone.
      splits: parts of a prompt's keys that are read side by side; of the prompt's kernel alone.
    """

    keys: int
    warps: int
    stages: int
    rows: int = SMALLEST_TILE
    splits: int = 1


PROMPT_TILE = Tile(keys=64, warps=4, stages=3, rows=64, splits=2)
OWN_TILE = Tile(keys=64, warps=4, stages=2)


def attend(
    query: Array,
    new: KeyValues,
    prompt: Part,
    own: Part,
    at: WriteAt,
    scale: float,
    *,
    interpret: bool = False,
    tiles: tuple[Tile, Tile] = (PROMPT_TILE, OWN_TILE),
) -> tuple[Array, RowCache]:
    """Writes tokens into the cache, and attends with their queries to the prompt and to the cache.

    Args:
      query: [C, B, 1, K, G, h].
      new: the tokens' keys [C, B, K, h, 1] and values [C, B, K, 1, h].
      prompt: keys and values [P, K, …]; its mask is not read, but its interval.
      own: its `kv` is a `RowCache` [C, B, K, S, h]; likewise.
      at: where the tokens are written; a row sees its cache up to there, the token included.
      scale: multiplies the scores.
      interpret: computes as the kernels do on any processor, slowly.
      tiles: of the two kernels.

    Returns:
      [C, B, 1, K, G, h], and the cache with the tokens in it.
    """
    rows = query.shape[:2]
    position = jnp.broadcast_to(at.of_rows, rows).astype(jnp.int32)
    if prompt.slots is None:
        asked, slot = query, jnp.broadcast_to(jnp.arange(rows[1]), rows)
    else:
        asked, slot = prompt.slots.to_slots(query), prompt.slots.slot
    arrays = _Arrays(
        query=jnp.einsum("prtkgh->pkrgh", asked),
        prompt=RowCache(prompt.kv.keys.swapaxes(-1, -2), prompt.kv.values),
        prompt_first=_of_rows(prompt.interval.first, asked.shape[:2]),
        prompt_end=prompt.interval.end.astype(jnp.int32),
        new=KeyValues(new.keys[..., 0], new.values[..., 0, :]),
        cache=own.kv,
        first=_of_rows(own.interval.first, rows),
        position=position,
        slot=slot.astype(jnp.int32),
    )
    run = functools.partial(_on_one_device, scale=scale * LOG2_E, interpret=interpret, tiles=tiles)
    mesh = jax.typeof(query).sharding.mesh
    if mesh.size < 2:  # 0 where arrays are on no mesh
        return run(arrays)

    def spec(x: Array, kv_heads: int | None = None) -> jax.P:
        axes: list[str | None] = ["prompts", *[None] * (x.ndim - 1)]
        if kv_heads:
            axes[kv_heads] = "kv_heads"
        return sharding(mesh, tuple(axes), x.shape).spec

    heads_at = {"query": 1, "prompt": 1, "new": 2, "cache": 2}
    specs = _Arrays(
        **{name: jax.tree.map(lambda x, name=name: spec(x, heads_at.get(name)), part)
           for name, part in arrays._asdict().items()}
    )  # fmt: skip
    out_specs = spec(query, 3), specs.cache
    return jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=out_specs, check_vma=False)(arrays)


class _Arrays(NamedTuple):
    """What the kernels read, each array split over devices as it comes.

    Attributes:
      query: [P, K, R, G, h]; R slots of each prompt.
      prompt: keys and values, [P, K, S, h].
      prompt_first: [P, R] the first of the prompt's keys that a slot sees; None where all see the first.
      prompt_end: [P] the prompt's keys that there are.
      new: keys and values, [C, B, K, h].
      cache: keys and values, [C, B, K, S, h].
      first: [C, B] the first of its own keys that a row sees; None where all see the first.
      position: [C, B] how many tokens the cache holds; the new one is written behind them.
      slot: [C, B] a row's slot among those of its shard.
    """

    query: Array
    prompt: RowCache
    prompt_first: Array | None
    prompt_end: Array
    new: KeyValues
    cache: RowCache
    first: Array | None
    position: Array
    slot: Array


def _of_rows(first: Array | None, rows: tuple[int, int]) -> Array | None:
    return None if first is None else jnp.broadcast_to(first, rows).astype(jnp.int32)


def _on_one_device(
    arrays: _Arrays, *, scale: float, interpret: bool, tiles: tuple[Tile, Tile]
) -> tuple[Array, RowCache]:
    """Runs both kernels on the arrays of one device."""
    prompts, kv_heads, slots, group, head_dim = arrays.query.shape
    shards, rows = arrays.slot.shape
    prompt_tile, own_tile = tiles
    query = arrays.query.reshape(prompts, kv_heads, slots * group, head_dim)
    # A query row for each head of a slot; tiles of them, the last perhaps not full.
    tile_rows = min(prompt_tile.rows, max(SMALLEST_TILE, pl.next_power_of_2(slots * group)))
    length = arrays.prompt.keys.shape[2]
    splits = max(1, min(prompt_tile.splits, length // prompt_tile.keys))
    first = arrays.prompt_first
    call = functools.partial(pl.pallas_call, interpret=interpret)

    def params(tile: Tile) -> triton.CompilerParams:
        return triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages)

    shape = (splits, prompts, kv_heads, slots * group)
    sums = _Sums(*(jax.ShapeDtypeStruct(x, jnp.float32) for x in ((*shape, head_dim), shape, shape)))
    found = call(
        functools.partial(_prompt_kernel, keys=prompt_tile.keys, rows=tile_rows, splits=splits, scale=scale),
        out_shape=sums,
        grid=(pl.cdiv(slots * group, tile_rows) * splits, kv_heads, prompts),
        compiler_params=params(prompt_tile),
        name="prompt_attention",
    )(None if first is None else jnp.repeat(first, group, axis=1), arrays.prompt_end, query, arrays.prompt)

    of_shards = arrays.slot + jnp.arange(shards)[:, None] * (prompts // shards * slots)
    flat = RowCache(*(x.reshape(shards * rows, *x.shape[2:]) for x in arrays.cache))
    new = KeyValues(*(x.reshape(shards * rows, kv_heads, head_dim) for x in arrays.new))
    numbers = [x.reshape(-1) for x in (of_shards, arrays.position)]
    first = None if arrays.first is None else arrays.first.reshape(-1)
    inputs = (first, *numbers, query, found, new, flat)
    where = len(jax.tree.leaves(inputs)) - 2  # of the cache among the arrays
    out = jax.ShapeDtypeStruct((shards * rows, kv_heads, group, head_dim), query.dtype)
    attended, *cache = call(
        functools.partial(_own_kernel, keys=own_tile.keys, slots=slots, group=group, scale=scale),
        out_shape=(out, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in flat)),
        grid=(kv_heads, shards * rows),
        input_output_aliases={where: 1, where + 1: 2},
        compiler_params=params(own_tile),
        name="own_attention",
    )(*inputs)
    attended = attended.reshape(shards, rows, 1, kv_heads, group, head_dim)
    return attended, RowCache(*(x.reshape(y.shape) for x, y in zip(cache, arrays.cache, strict=True)))


class _Sums(NamedTuple):
    """Attention to some keys, not yet divided; also what a kernel carries from tile to tile.

    Attributes:
      values: [..., h] sum of 2^(score − top) × value.
      top: [...] the largest score.
      total: [...] sum of 2^(score − top).
    """

    values: Any
    top: Any
    total: Any


def _nothing(rows: int, head_dim: int) -> _Sums:
    return _Sums(
        jnp.zeros((rows, head_dim), jnp.float32), jnp.full(rows, MASKED, jnp.float32), jnp.zeros(rows, jnp.float32)
    )


def _add_keys(sums: _Sums, query: Array, keys: Array, values: Array, seen: Array, scale: float) -> _Sums:
    """Adds a tile of keys [s, h] that queries [n, h] see where `seen` [n or 1, s] is true."""
    scores = jnp.where(seen, triton.dot(query, keys.T) * scale, MASKED)
    top = jnp.maximum(sums.top, scores.max(axis=1))
    # A row that has seen nothing yet has top = MASKED, and what is hidden from it must not count as 2^0.
    weights = jnp.where(seen, jnp.exp2(scores - top[:, None]), 0.0)
    kept = jnp.exp2(sums.top - top)
    added = triton.dot(weights.astype(values.dtype), values)
    return _Sums(sums.values * kept[:, None] + added, top, sums.total * kept + weights.sum(axis=1))


def _prompt_kernel(
    first: Any, end: Any, query: Any, prompt: RowCache, *out: Any, keys: int, rows: int, splits: int, scale: float
) -> None:
    """Attends with a tile of a prompt's query rows to one part of its keys; `out` holds the fields of `_Sums`."""
    program, head, p = (pl.program_id(axis) for axis in range(3))
    split, start = program % splits, program // splits * rows
    at = start + jnp.arange(rows)
    there = at < query.shape[2]
    q = triton.load(query.at[p, head, pl.ds(start, rows), :], mask=there[:, None], other=0.0)
    length = end[p]
    lowest = None if first is None else triton.load(first.at[p, pl.ds(start, rows)], mask=there, other=0)
    share = jax.lax.div(jax.lax.div(length + keys - 1, keys) + splits - 1, splits)  # tiles of a part

    def one_tile(i: Array, sums: _Sums) -> _Sums:
        index = i * keys + jnp.arange(keys)
        inside = index < length
        k, v = (triton.load(x.at[p, head, pl.ds(i * keys, keys), :], mask=inside[:, None], other=0.0) for x in prompt)
        seen = inside[None, :] if lowest is None else inside[None, :] & (index[None, :] >= lowest[:, None])
        return _add_keys(sums, q, k, v, seen, scale)

    last = jnp.minimum((split + 1) * share, jax.lax.div(length + keys - 1, keys))
    sums = jax.lax.fori_loop(split * share, last, one_tile, _nothing(rows, query.shape[3]))
    for ref, found in zip(out, sums, strict=True):
        mask = there.reshape(-1, *[1] * (found.ndim - 1))
        triton.store(ref.at[split, p, head, pl.ds(start, rows)], found, mask=mask)


def _own_kernel(
    first: Any,
    slot: Any,
    position: Any,
    query: Any,
    found: _Sums,
    new: KeyValues,
    cache: RowCache,
    out: Any,
    *written: Any,
    keys: int,
    slots: int,
    group: int,
    scale: float,
) -> None:
    """Attends with one row's queries of a key head to its own keys, adds what it found in its prompt, and divides.

    The tile of queries is larger than a group: what stands behind them are queries of others, which are not kept.
    """
    head, row = pl.program_id(0), pl.program_id(1)
    p, start = jax.lax.div(slot[row], slots), jax.lax.rem(slot[row], slots) * group
    rows = max(SMALLEST_TILE, pl.next_power_of_2(group))
    here, head_dim = pl.ds(start, rows), query.shape[3]
    there = start + jnp.arange(rows) < query.shape[2]
    q = triton.load(query.at[p, head, here, :], mask=there[:, None], other=0.0)
    length = position[row]
    lowest = 0 if first is None else first[row]
    new_key, new_value = new.keys[row, head, :], new.values[row, head, :]
    triton.store(written[0].at[row, head, length, :], new_key)
    triton.store(written[1].at[row, head, length, :], new_value)

    def one_tile(i: Array, sums: _Sums) -> _Sums:
        index = i * keys + jnp.arange(keys)
        seen = (index < length) & (index >= lowest)
        k, v = (triton.load(x.at[row, head, pl.ds(i * keys, keys), :], mask=seen[:, None], other=0.0) for x in cache)
        return _add_keys(sums, q, k, v, seen[None, :], scale)

    # The new token is always seen, so that what follows divides by no zero.
    score = (q.astype(jnp.float32) * new_key.astype(jnp.float32)[None, :]).sum(axis=1) * scale
    values = jnp.broadcast_to(new_value.astype(jnp.float32)[None, :], (rows, head_dim))
    sums = _Sums(values, score, jnp.ones(rows, jnp.float32))
    sums = jax.lax.fori_loop(jax.lax.div(lowest, keys), jax.lax.div(length + keys - 1, keys), one_tile, sums)
    for split in range(found.top.shape[0]):
        at = (jnp.int32(split), p, head, here)
        values = triton.load(found.values.at[(*at, slice(None))], mask=there[:, None], other=0.0)
        top, total = (triton.load(x.at[at], mask=there, other=other) for x, other in
                      ((found.top, MASKED), (found.total, 0.0)))  # fmt: skip
        highest = jnp.maximum(sums.top, top)
        kept, added = jnp.exp2(sums.top - highest), jnp.exp2(top - highest)
        sums = _Sums(sums.values * kept[:, None] + values * added[:, None], highest, sums.total * kept + total * added)
    attended = (sums.values / sums.total[:, None]).astype(out.dtype)
    is_own = jnp.arange(rows) < group
    triton.store(out.at[row, head, pl.ds(0, rows), :], attended, mask=is_own[:, None])
