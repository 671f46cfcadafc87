"""Softmax attention over several sets of keys, without ever holding all scores.

A group's keys come in parts, each stored where it belongs: those of the prompt once for all M rollouts, those of a
rollout's past, those of the tokens themselves. Rank tells them apart:

                 keys of the prompt   keys of the rollout's past   keys of the tokens themselves
                 [P, K, S, h]         [P, M, K, S, h]              [P, M, K, T, h]
    query t      held once per group  behind a length per rollout  causal: 0 … t

These are the shapes of values; keys are kept transposed, [P, K, h, S] and so on, so that both products of a decoding
step run along memory.

Training reads many queries: they are taken in blocks of rollouts and tokens, whose scores fit the processor's cache,
and the backward pass computes a block's scores again from the log-sum-exp that the forward pass kept. P and the heads
are never cut, so that arrays that are split over them stay where they are.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from tsallis_rl.models.precision import einsum_float32

ATTENDED = "attended"  # the name of what the backward pass needs besides queries, keys and values
DENSE = 32  # keys from which a product with a vector is multiplied and summed
MASKED = -1e30  # finite: a part that is masked whole gets weight exp(MASKED − top) = 0, not NaN
BLOCK_SCORES = {"cpu": 1 << 19, "gpu": 1 << 28, "tpu": 1 << 26}  # of one block, over all its heads: 2 MiB on a CPU


class KeyValues(NamedTuple):
    """Keys and values of one layer, or of all with a leading N.

    Attributes:
      keys: [P, K, h, S] for a prompt, [P, M, K, h, S] for rollouts.
      values: [P, K, S, h] and [P, M, K, S, h].
    """

    keys: Array
    values: Array

    def grown(self, more: int, fill: float = 0.0) -> "KeyValues":
        """The same with room for `more` tokens behind."""
        rank = self.keys.ndim
        keys, values = ([(0, more if axis == at else 0) for axis in range(rank)] for at in (rank - 1, rank - 2))
        return KeyValues(
            jnp.pad(self.keys, keys, constant_values=fill), jnp.pad(self.values, values, constant_values=fill)
        )

    def written(self, new: "KeyValues", start: Array) -> "KeyValues":
        """The same with new tokens at places start, start + 1, …, as `written` has them."""
        axis = self.keys.ndim
        return KeyValues(
            written(self.keys, new.keys, start, axis - 1), written(self.values, new.values, start, axis - 2)
        )


def written(array: Array, new: Array, start: Array, axis: int) -> Array:
    """array [P, …] with `new` from start [W] on along an axis: the first of W for groups 0, W, 2 W, …, and so on."""
    update = jax.lax.dynamic_update_slice_in_dim
    if len(start) == 1:  # written in place
        return update(array, new, start[0], axis)
    each = jnp.tile(start, len(array) // len(start))
    return jax.vmap(functools.partial(update, axis=axis - 1))(array, new, each)


class Part(NamedTuple):
    """One part of the attention's keys: those of a prompt (rank 4) or of rollouts (rank 5).

    Attributes:
      kv: keys and values.
      mask: True where a query may look, [P or 1, M or 1, T or 1, S].
    """

    kv: KeyValues
    mask: Array


def attend(query: Array, parts: Sequence[Part], scale: float) -> Array:
    """Softmax attention over the union of the parts' keys.

    Args:
      query: [P, M, T, K, G, h], G = H / K query heads to a key-value head.
      parts: see `Part`; every query must see at least one key.
      scale: multiplies the scores.

    Returns:
      [P, M, T, K, G, h].
    """
    query = query * scale
    if query.shape[2] == 1:
        return _block(query, parts)[0]
    return _attend(query, tuple(part.kv for part in parts), tuple(part.mask for part in parts))


# Subscripts of scores, by the rank of the part's keys: the order in which the product writes them.
_ROWS = {4: "pkmtg", 5: "pmktg"}


def _turned(x: Array, rank: int) -> Array:
    """Statistics [P, M, T, K, G] in the order of a part's scores, with an axis for the keys."""
    return jnp.einsum(f"pmtkg->{_ROWS[rank]}", x)[..., None]


def _canonical(x: Array, rank: int) -> Array:
    """[rows, …] of a part as [P, M, T, K, G, …]."""
    return jnp.einsum(f"{_ROWS[rank]}...->pmtkg...", x)


def _is_decoding(query: Array, keys: Array) -> bool:
    """One token of a rollout over many keys of its own: XLA's dots do not do this at memory's speed."""
    return keys.ndim == 5 and query.shape[2] == 1 and keys.shape[-1] >= DENSE


def _scores(query: Array, part: Part) -> Array:
    """query [P, M, T, K, G, h] · keys, masked, [rows, S] in float32."""
    keys = part.kv.keys
    rank = keys.ndim
    if _is_decoding(query, keys):
        scores = (query[:, :, 0, ..., None].astype(jnp.float32) * keys[:, :, :, None]).sum(-2)[:, :, :, None]
    else:
        scores = einsum_float32(f"pmtkgh,{'pkhs' if rank == 4 else 'pmkhs'}->{_ROWS[rank]}s", query, keys)
    mask = part.mask[..., None, None, :]  # [P, M, T, 1, 1, S]
    return jnp.where(jnp.einsum(f"pmtkgs->{_ROWS[rank]}s", mask), scores, MASKED)


def _weighted(weights: Array, query: Array, kv: KeyValues) -> Array:
    """weights [rows, S] · values, [P, M, T, K, G, h] in float32."""
    rank = kv.values.ndim
    if _is_decoding(query, kv.keys):
        return (weights[:, :, :, 0, ..., None] * kv.values[:, :, :, None]).sum(-2)[:, :, None]
    subscripts = f"{_ROWS[rank]}s,{'pksh' if rank == 4 else 'pmksh'}->{_ROWS[rank]}h"
    return _canonical(einsum_float32(subscripts, weights.astype(kv.values.dtype), kv.values), rank)


def _block(query: Array, parts: Sequence[Part]) -> tuple[Array, Array]:
    """Attention of one block of scaled queries: [P, M, T, K, G, h] and the log-sum-exp of scores [P, M, T, K, G]."""
    scores = [_scores(query, part) for part in parts]
    ranks = [part.kv.keys.ndim for part in parts]
    tops = [_canonical(x.max(axis=-1), rank) for x, rank in zip(scores, ranks, strict=True)]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
    weights = [jnp.exp(x - _turned(top, rank)) for x, rank in zip(scores, ranks, strict=True)]
    total = sum(_canonical(x.sum(axis=-1), rank) for x, rank in zip(weights, ranks, strict=True))
    merged = sum(_weighted(x, query, part.kv) for x, part in zip(weights, parts, strict=True))
    return (merged / total[..., None]).astype(query.dtype), top + jnp.log(total)


class _Blocks(NamedTuple):
    """How queries [P, M, T, …] are cut: `rollouts` and `tokens` of one block, and the tokens that fill up the last."""

    rollouts: int
    tokens: int
    padding: int


def _blocks(query: Array, kvs: Sequence[KeyValues]) -> _Blocks:
    prompts, rollouts, tokens, kv_heads, group, _ = query.shape
    keys = sum(kv.keys.shape[-1] for kv in kvs)
    rows = max(1, BLOCK_SCORES.get(jax.default_backend(), 1 << 26) // (prompts * kv_heads * group * keys))
    if rows >= tokens:
        most = max(n for n in range(1, rollouts + 1) if rollouts % n == 0 and n * tokens <= rows)
        return _Blocks(most, tokens, 0)
    count = -(-tokens // rows)
    size = -(-tokens // count)
    return _Blocks(1, size, count * size - tokens)


def _cut(x: Array, blocks: _Blocks, i: Array, j: Array) -> Array:
    """Block i of M and j of T of x [P, M, T, …]; an axis of length 1 is shared by all."""
    if x.shape[1] > 1:
        x = jax.lax.dynamic_slice_in_dim(x, i * blocks.rollouts, blocks.rollouts, axis=1)
    return x if x.shape[2] == 1 else jax.lax.dynamic_slice_in_dim(x, j * blocks.tokens, blocks.tokens, axis=2)


def _own(kv: KeyValues, blocks: _Blocks, i: Array) -> KeyValues:
    """The keys and values that block i of M reads: a prompt's are shared."""
    if kv.keys.ndim == 4:
        return kv
    return KeyValues(*(jax.lax.dynamic_slice_in_dim(x, i * blocks.rollouts, blocks.rollouts, axis=1) for x in kv))


def _padded(x: Array, blocks: _Blocks) -> Array:
    """x [P, M, T, …] with T filled up to whole blocks."""
    if x.shape[2] == 1 or not blocks.padding:
        return x
    return jnp.pad(x, [(0, blocks.padding if axis == 2 else 0) for axis in range(x.ndim)])


def _joined(x: Array, like: Array) -> Array:
    """[blocks of M, blocks of T, P, m, t, …] as [P, M, T, …], cut to the length of `like`."""
    x = jnp.moveaxis(x, (0, 1), (1, 3))
    shape = (x.shape[0], x.shape[1] * x.shape[2], x.shape[3] * x.shape[4], *x.shape[5:])
    return x.reshape(shape)[:, :, : like.shape[2]]


@jax.custom_vjp
def _attend(query: Array, kvs: tuple[KeyValues, ...], masks: tuple[Array, ...]) -> Array:
    return _forward(query, kvs, masks)[0]


def _forward(query: Array, kvs: tuple[KeyValues, ...], masks: tuple[Array, ...]) -> tuple[Array, tuple]:
    blocks = _blocks(query, kvs)
    whole, whole_masks = _padded(query, blocks), [_padded(mask, blocks) for mask in masks]

    def one_block(i: Array, j: Array) -> tuple[Array, Array]:
        parts = [Part(_own(kv, blocks, i), _cut(m, blocks, i, j)) for kv, m in zip(kvs, whole_masks, strict=True)]
        return _block(_cut(whole, blocks, i, j), parts)

    counts = (query.shape[1] // blocks.rollouts, whole.shape[2] // blocks.tokens)
    rows, columns = (jnp.arange(count) for count in counts)
    out, lse = jax.lax.map(lambda i: jax.lax.map(functools.partial(one_block, i), columns), rows)
    out, lse = (checkpoint_name(_joined(x, query), ATTENDED) for x in (out, lse))
    return out, (query, kvs, masks, out, lse)


def _backward(kept: tuple, d_out: Array) -> tuple:
    """Of the softmax p over scores s: ds = p (dp − Σ p dp), a block at a time."""
    query, kvs, masks, out, lse = kept
    blocks = _blocks(query, kvs)
    delta = (d_out.astype(jnp.float32) * out).sum(-1)
    whole = [_padded(x, blocks) for x in (query, d_out.astype(query.dtype), lse, delta)]
    whole_masks = [_padded(mask, blocks) for mask in masks]
    counts = (query.shape[1] // blocks.rollouts, whole[0].shape[2] // blocks.tokens)
    is_shared = [kv.keys.ndim == 4 for kv in kvs]

    def of_part(part: Part, q: Array, dy: Array, lse: Array, delta: Array) -> tuple[Array, KeyValues]:
        rank = part.kv.keys.ndim
        rows, ks, vs = _ROWS[rank], *(("pkhs", "pksh") if rank == 4 else ("pmkhs", "pmksh"))
        weights = jnp.exp(_scores(q, part) - _turned(lse, rank))
        d_weights = einsum_float32(f"pmtkgh,{vs}->{rows}s", dy, part.kv.values)
        d_scores = (weights * (d_weights - _turned(delta, rank))).astype(q.dtype)
        d_query = _canonical(einsum_float32(f"{rows}s,{ks}->{rows}h", d_scores, part.kv.keys), rank)
        # Small factors first: products then run along the rows of the scores, which nothing has to transpose.
        d_keys = einsum_float32(f"pmtkgh,{rows}s->{ks}", q, d_scores)
        d_values = einsum_float32(f"pmtkgh,{rows}s->{ks}", dy, weights.astype(q.dtype)).swapaxes(-1, -2)
        return d_query, KeyValues(d_keys, d_values)

    def one_block(i: Array, total: list[KeyValues], j: Array) -> tuple[list[KeyValues], Array]:
        q, dy, lse_block, delta_block = (_cut(x, blocks, i, j) for x in whole)
        d_query, grads = jnp.float32(0), []
        for kv, mask in zip(kvs, whole_masks, strict=True):
            part = Part(_own(kv, blocks, i), _cut(mask, blocks, i, j))
            more, grad = of_part(part, q, dy, lse_block, delta_block)
            d_query, grads = d_query + more, [*grads, grad]
        return jax.tree.map(jnp.add, total, grads), d_query

    def one_row(of_prompts: list[KeyValues | None], i: Array) -> tuple[list[KeyValues | None], tuple]:
        start = [
            so_far if so_far is not None else _zeros(_own(kv, blocks, i))
            for so_far, kv in zip(of_prompts, kvs, strict=True)
        ]
        grads, d_query = jax.lax.scan(functools.partial(one_block, i), start, jnp.arange(counts[1]))
        of_rollouts = [None if shared else grad for grad, shared in zip(grads, is_shared, strict=True)]
        return [grad if shared else None for grad, shared in zip(grads, is_shared, strict=True)], (d_query, of_rollouts)

    start = [_zeros(kv) if shared else None for kv, shared in zip(kvs, is_shared, strict=True)]
    of_prompts, (d_query, of_rollouts) = jax.lax.scan(one_row, start, jnp.arange(counts[0]))
    grads = tuple(
        jax.tree.map(lambda grad, x: grad.astype(x.dtype), a if shared else jax.tree.map(_stacked, b), kv)
        for a, b, kv, shared in zip(of_prompts, of_rollouts, kvs, is_shared, strict=True)
    )
    return _joined(d_query, query).astype(query.dtype), grads, tuple(None for _ in masks)


def _zeros(kv: KeyValues) -> KeyValues:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), kv)


def _stacked(x: Array) -> Array:
    """[blocks of M, P, m, …] as [P, M, …]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


_attend.defvjp(_forward, _backward)
