"""Attention of decoding on a GPU: three kernels per layer instead of the fifteen that XLA makes.

The first norms and rotates the heads, and writes the token into the cache. The second attends to a prompt's keys for
all rollouts of its group at once, so that the keys are read once per group, and returns undivided sums. The third
attends to a rollout's own keys, up to its length, and adds those sums. So a cache may be longer than what is filled:
the empty part is not read.

Written in Pallas for its Triton compiler. There is no gradient: rollouts are constants to an update.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from tsallis_rl.models.attention.parts import MASKED, Part, RowCache, WriteAt
from tsallis_rl.models.attention.triton_programs import LEAST, LOG2_E, load, product, span, store, triton_call
from tsallis_rl.models.rotary import Rotation
from tsallis_rl.models.sharding import prompt_specs


class Tile(NamedTuple):
    """The work of one program of a kernel.

    Attributes:
      keys: keys read at a time.
      warps: warps that share the work.
      stages: pipeline stages, reads of keys in flight at a time.
      rows: most query rows; only for the prompt's kernel.
      splits: parts of a prompt's keys that are read in parallel; only for the prompt's kernel.
    """

    keys: int
    warps: int
    stages: int
    rows: int = LEAST
    splits: int = 1


# Each the fastest of some ten on one H200: 256 rows of 0 to 512 own keys after prompts of 1,024, heads of 128.
PROMPT_TILE = Tile(keys=64, warps=4, stages=3, rows=64, splits=4)
OWN_TILE = Tile(keys=16, warps=1, stages=3)
WIDE_OWN_TILE = Tile(keys=32, warps=4, stages=2)  # for heads of 256, whose sums do not fit into one warp's registers
HEADS_WARPS = 4


def tiles_for(head_dim: int) -> tuple[Tile, Tile]:
    """Chooses the tiles of the prompt's and of own keys for heads of width `head_dim`."""
    return PROMPT_TILE, OWN_TILE if head_dim <= 128 else WIDE_OWN_TILE


class Heads(NamedTuple):
    """The projected heads of tokens, neither normed nor rotated.

    Attributes:
      query: [C, B, K G, h].
      key: [C, B, K, h].
      value: [C, B, K, h].
      query_scale: [h] scale of the queries' RMSNorm; None if heads are not normed.
      key_scale: [h] scale of the keys' RMSNorm, or None.
      eps: of the norms.
    """

    query: Array
    key: Array
    value: Array
    query_scale: Array | None = None
    key_scale: Array | None = None
    eps: float = 1e-6


def attend(
    heads: Heads,
    rotation: Rotation,
    prompt: Part,
    own: Part,
    at: WriteAt,
    scale: float,
    *,
    interpret: bool = False,
    tiles: tuple[Tile, Tile] | None = None,
) -> tuple[Array, RowCache]:
    """Writes tokens into the cache, and attends with their queries to the prompt and to the cache.

    Args:
      heads: of one token per row.
      rotation: of the tokens' positions, [C, B, 1, …].
      prompt: keys and values [P, K, …]; its interval is read instead of its mask.
      own: its `kv` is a `RowCache` [C, B, K, S, h]; its interval is read instead of its mask.
      at: where the tokens are written; a row sees its cache up to there, the token included.
      scale: multiplies the scores.
      interpret: emulates the kernels on any processor, slowly.
      tiles: of the prompt's and of own keys; None is `tiles_for` the heads.

    Returns:
      [C, B, K G, h], and the cache with the tokens in it.
    """
    rows = heads.query.shape[:2]
    prompts = len(prompt.interval.end)
    if prompt.slots is None:
        row_of_slot, slot = (jnp.broadcast_to(jnp.arange(rows[1]), shape) for shape in ((prompts, rows[1]), rows))
    else:
        row_of_slot, slot = prompt.slots
    # Grouped by key head, so that a mesh splits queries like keys.
    by_group = heads.query.reshape(*heads.key.shape[:3], -1, heads.key.shape[3])
    arrays = _Arrays(
        heads=heads._replace(query=by_group, eps=None),
        cos=rotation.cos[:, :, 0, 0, 0],
        sin=rotation.sin[:, :, 0, 0, 1],
        prompt=prompt.kv.rows,
        prompt_first=_of_rows(prompt.interval.first, row_of_slot.shape),
        prompt_end=prompt.interval.end.astype(jnp.int32),
        row_of_slot=row_of_slot.astype(jnp.int32),
        cache=own.kv,
        first=_of_rows(own.interval.first, rows),
        position=jnp.broadcast_to(at.of_rows, rows).astype(jnp.int32),
        slot=slot.astype(jnp.int32),
    )
    tiles = tiles or tiles_for(heads.key.shape[-1])
    static = {"eps": heads.eps, "scale": scale * LOG2_E, "interpret": interpret, "tiles": tiles}
    run = functools.partial(_on_one_device, **static)
    mesh = jax.typeof(heads.query).sharding.mesh
    if mesh.size >= 2:  # 0 if arrays are on no mesh
        specs = _specs(mesh, arrays)
        out_specs = specs.heads.query, specs.cache
        run = jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=out_specs, check_vma=False)
    attended, cache = run(arrays)
    return attended.reshape(heads.query.shape), cache


class _Arrays(NamedTuple):
    """The arrays that the kernels read, split over devices.

    Attributes:
      heads: see `Heads`; queries are [C, B, K, G, h].
      cos: [C, B, h / 2] of the tokens' angles.
      sin: [C, B, h / 2].
      prompt: keys and values, [P, K, S, h].
      prompt_first: [P, R] the first of the prompt's keys that a slot sees; None is 0 for all.
      prompt_end: [P] how many keys a prompt has.
      row_of_slot: [P, R] index of a slot's row within its shard.
      cache: keys and values, [C, B, K, S, h].
      first: [C, B] the first of its own keys that a row sees; None is 0 for all.
      position: [C, B] how many tokens the cache holds; the new one is written after them.
      slot: [C, B] index of a row's slot within its shard.
    """

    heads: Heads
    cos: Array
    sin: Array
    prompt: RowCache
    prompt_first: Array | None
    prompt_end: Array
    row_of_slot: Array
    cache: RowCache
    first: Array | None
    position: Array
    slot: Array


def _specs(mesh: jax.sharding.Mesh, arrays: _Arrays) -> _Arrays:
    """Returns specs that split the arrays over a mesh; the scales of norms are on every device."""
    scales = dict.fromkeys(("query_scale", "key_scale"))
    everywhere = {name: jax.tree.map(lambda _: jax.P(), getattr(arrays.heads, name)) for name in scales}
    return prompt_specs(mesh, arrays)._replace(
        heads=prompt_specs(mesh, arrays.heads._replace(**scales), 2)._replace(**everywhere),
        prompt=prompt_specs(mesh, arrays.prompt, 1),
        cache=prompt_specs(mesh, arrays.cache, 2),
    )


def _of_rows(first: Array | None, rows: tuple[int, ...]) -> Array | None:
    return None if first is None else jnp.broadcast_to(first, rows).astype(jnp.int32)


def _on_one_device(
    arrays: _Arrays, *, eps: float, scale: float, interpret: bool, tiles: tuple[Tile, Tile]
) -> tuple[Array, RowCache]:
    """Runs the kernels on the arrays of one device."""
    shards, rows, kv_heads, head_dim = arrays.heads.key.shape
    (prompts, slots), group = arrays.row_of_slot.shape, arrays.heads.query.shape[3]
    queries = kv_heads * group
    prompt_tile, own_tile = tiles
    call = functools.partial(triton_call, interpret=interpret)
    flat = functools.partial(jax.tree.map, lambda x: x.reshape(shards * rows, *x.shape[2:]))

    # One array, which XLA makes by one product. Separate slices of it would be copied for the kernel, even where their
    # rows are already flat.
    heads = jnp.concatenate([x.reshape(shards, rows, -1) for x in arrays.heads[:3]], axis=2)
    heads = heads.reshape(shards * rows, -1, head_dim)
    scales, position, cache = arrays.heads[3:5], flat(arrays.position), flat(arrays.cache)
    inputs = (heads, scales, flat((arrays.cos, arrays.sin)), position, cache)
    where = len(jax.tree.leaves(inputs)) - 2  # index of the cache among the arrays
    query, *written = call(
        functools.partial(_heads_kernel, kv_heads=kv_heads, eps=eps),
        "norm_turn_write",
        HEADS_WARPS,
        stages=1,
        out_shape=jax.tree.map(_like, (heads[:, :queries], *cache)),
        grid=(shards * rows,),
        input_output_aliases={where: 1, where + 1: 2},
    )(*inputs)
    cache = RowCache(*written)
    query = query.reshape(-1, kv_heads, group, head_dim)

    # The product has a row for each head of a slot. Rows are cut into tiles, of which the last may not be full.
    prompt_tile = prompt_tile._replace(
        rows=min(prompt_tile.rows, max(LEAST, pl.next_power_of_2(slots * group))),
        splits=max(1, min(prompt_tile.splits, arrays.prompt.keys.shape[2] // prompt_tile.keys)),
    )
    shape = (prompt_tile.splits, prompts, kv_heads, slots * group)
    of_shard = jnp.arange(shards)[:, None]
    row_of_slot = (arrays.row_of_slot.reshape(shards, -1) + of_shard * rows).reshape(prompts, slots)
    sums = call(
        functools.partial(_prompt_kernel, tile=prompt_tile, group=group, scale=scale),
        "prompt_attention",
        prompt_tile.warps,
        prompt_tile.stages,
        out_shape=_Sums(*(jax.ShapeDtypeStruct(x, jnp.float32) for x in ((*shape, head_dim), shape, shape))),
        grid=(pl.cdiv(slots * group, prompt_tile.rows) * prompt_tile.splits, kv_heads, prompts),
    )((arrays.prompt_first, arrays.prompt_end), row_of_slot, query, arrays.prompt)

    slot = flat(arrays.slot + of_shard * (prompts // shards * slots))
    attended = call(
        functools.partial(_own_kernel, keys=own_tile.keys, slots=slots, scale=scale),
        "own_attention",
        own_tile.warps,
        own_tile.stages,
        out_shape=_like(query),
        grid=(kv_heads, shards * rows),
    )((flat(arrays.first), slot, position), query, sums, cache)
    cache = RowCache(*(x.reshape(y.shape) for x, y in zip(cache, arrays.cache, strict=True)))
    return attended.reshape(arrays.heads.query.shape), cache


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _heads_kernel(
    heads: Any, scales: tuple, angles: tuple, position: Any, _: RowCache, *out: Any, kv_heads: int, eps: float
) -> None:
    """Norms and rotates the heads of a row's token; writes its key and value into the cache."""
    row, queries, half = pl.program_id(0), heads.shape[1] - 2 * kv_heads, heads.shape[2] // 2
    length, (cos, sin) = position[row], (x[row, :][None] for x in angles)
    halves = pl.ds(0, half), pl.ds(half, half)

    def load_heads(start: int, count: int) -> tuple[Array, tuple[Array, Array]]:
        size = pl.next_power_of_2(count)
        inside = jnp.arange(size) < count
        return inside, tuple(load(heads.at[row, span(start, size), at], inside) for at in halves)

    def turned(found: tuple[Array, Array], scale: Any) -> tuple[Array, Array]:
        left, right = (x.astype(jnp.float32) for x in found)
        if scale is not None:
            squares = (left * left).sum(axis=1) + (right * right).sum(axis=1)
            inverse = jax.lax.rsqrt(squares / (2 * half) + eps)[:, None]
            # Rounded like the result of `decoder.rms_norm`.
            left, right = (
                (x * inverse * scale[at][None]).astype(heads.dtype).astype(jnp.float32)
                for x, at in zip((left, right), halves, strict=True)
            )
        return left * cos - right * sin, right * cos + left * sin

    query, *cache = out
    inside, found = load_heads(0, queries)
    for at, x in zip(halves, turned(found, scales[0]), strict=True):
        store(query.at[row, span(0, len(x)), at], x, inside)
    for kept, start, turn in zip(cache, (queries, queries + kv_heads), (turned, lambda found, _: found), strict=True):
        inside, found = load_heads(start, kv_heads)
        for at, x in zip(halves, turn(found, scales[1]), strict=True):
            store(kept.at[row, span(0, len(x)), length, at], x, inside)


class _Sums(NamedTuple):
    """Sums of attention to some keys, not yet divided; also the carry of a kernel's loop over tiles.

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
    """Adds a tile of keys [s, h] to the sums of queries [n, h], which see them where `seen` [n or 1, s] is true."""
    scores = jnp.where(seen, product(query, keys.T) * scale, MASKED)
    top = jnp.maximum(sums.top, scores.max(axis=1))
    # A row that has seen nothing yet has top = MASKED, and keys hidden from it must not count as 2^0.
    weights = jnp.where(seen, jnp.exp2(scores - top[:, None]), 0.0)
    kept = jnp.exp2(sums.top - top)
    added = product(weights.astype(values.dtype), values)
    return _Sums(sums.values * kept[:, None] + added, top, sums.total * kept + weights.sum(axis=1))


def _prompt_kernel(
    reach: tuple, row_of_slot: Any, query: Any, prompt: RowCache, *out: Any, tile: Tile, group: int, scale: float
) -> None:
    """Attends with a tile of query rows to one part of their prompt's keys; `out` are the fields of `_Sums`."""
    (first, end), (keys, _, _, rows, splits) = reach, tile
    program, head, p = (pl.program_id(axis) for axis in range(3))
    split, start = jax.lax.rem(program, splits), jax.lax.div(program, splits) * rows
    at = start + jnp.arange(rows)
    there = at < row_of_slot.shape[1] * group
    at = jnp.where(there, at, 0)
    slot, member = jax.lax.div(at, group), jax.lax.rem(at, group)
    row = row_of_slot[p, slot]
    q = query[row[:, None], head, member[:, None], jnp.arange(query.shape[3])[None, :]]
    length = end[p]
    tiles = jax.lax.div(length + keys - 1, keys)
    lowest = None if first is None else first[p, slot]
    share = jax.lax.div(tiles + splits - 1, splits)

    def one_tile(i: Array, sums: _Sums) -> _Sums:
        index = i * keys + jnp.arange(keys)
        inside = index < length
        k, v = (load(x.at[p, head, pl.ds(i * keys, keys), :], inside) for x in prompt)
        seen = inside[None, :] if lowest is None else inside[None, :] & (index[None, :] >= lowest[:, None])
        return _add_keys(sums, q, k, v, seen, scale)

    last = jnp.minimum((split + 1) * share, tiles)
    sums = jax.lax.fori_loop(split * share, last, one_tile, _nothing(rows, query.shape[3]))
    for ref, found in zip(out, sums, strict=True):
        store(ref.at[split, p, head, pl.ds(start, rows)], found, there)


def _own_kernel(
    numbers: tuple, query: Any, found: _Sums, cache: RowCache, out: Any, *, keys: int, slots: int, scale: float
) -> None:
    """Attends with one row's queries of a key head to its own keys, adds the sums of its prompt, and divides.

    The last of its own keys is that of the new token, which is always seen, so the sum is never zero.
    """
    first, slot, position = numbers
    head, row = pl.program_id(0), pl.program_id(1)
    group, head_dim = query.shape[2:]
    rows = max(LEAST, pl.next_power_of_2(group))
    is_own = jnp.arange(rows) < group  # a tile is larger than a group
    q = load(query.at[row, head, span(0, rows), :], is_own)
    length = position[row] + 1
    lowest = 0 if first is None else first[row]

    def one_tile(i: Array, sums: _Sums) -> _Sums:
        index = i * keys + jnp.arange(keys)
        seen = (index < length) & (index >= lowest)
        k, v = (load(x.at[row, head, pl.ds(i * keys, keys), :], seen) for x in cache)
        return _add_keys(sums, q, k, v, seen[None, :], scale)

    tiles = jax.lax.div(lowest, keys), jax.lax.div(length + keys - 1, keys)
    sums = jax.lax.fori_loop(*tiles, one_tile, _nothing(rows, head_dim))
    p, start = jax.lax.div(slot[row], slots), jax.lax.rem(slot[row], slots) * group
    parts = []
    for split in range(found.top.shape[0]):
        at = (jnp.int32(split), p, head, pl.ds(start, rows))
        parts.append(_Sums(*(load(x.at[at], is_own) for x in found)))
    # Merge parts first: they share a layout, which is not that of a product.
    sums = _merge(functools.reduce(_merge, parts), sums)
    store(out.at[row, head, span(0, rows), :], sums.values / sums.total[:, None], is_own)


def _merge(left: _Sums, right: _Sums) -> _Sums:
    """Merges the sums of two sets of keys."""
    top = jnp.maximum(left.top, right.top)
    kept, added = jnp.exp2(left.top - top), jnp.exp2(right.top - top)
    values = left.values * kept[:, None] + right.values * added[:, None]
    return _Sums(values, top, left.total * kept + right.total * added)
