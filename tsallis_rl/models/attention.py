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

Rollouts of several groups may also stand in rows without regard to their groups (`Slots`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from tsallis_rl.models.precision import einsum_float32
from tsallis_rl.models.sharding import local_size
from tsallis_rl.models.slots import Slots

ATTENDED = "attended"  # the name of what the backward pass needs besides queries, keys and values
DENSE = 32  # keys from which a product with a vector is multiplied and summed
BANDS, BANDED = 4, 256  # bands of queries, and how many queries there are at least where there are several
MASKED = -1e30  # finite: a part that is masked whole gets weight exp(MASKED − top) = 0, not NaN
BLOCK_SCORES = {
    "cpu": 1 << 19,
    "gpu": 1 << 28,
    "tpu": 1 << 26,
}  # of one block on a device, over all its heads: 2 MiB on a CPU


class KeyValues(NamedTuple):
    """Keys and values of one layer, or of all with a leading N.

    Attributes:
      keys: [P, K, h, S] for a prompt, [P, M, K, h, S] for rollouts.
      values: [P, K, S, h] and [P, M, K, S, h].
    """

    keys: Array
    values: Array

    def padded(self, more: int, fill: float = 0.0) -> "KeyValues":
        """Appends `more` tokens of a constant: S → S + more."""
        rank = self.keys.ndim
        keys, values = ([(0, more if axis == at else 0) for axis in range(rank)] for at in (rank - 1, rank - 2))
        return KeyValues(
            jnp.pad(self.keys, keys, constant_values=fill), jnp.pad(self.values, values, constant_values=fill)
        )

    def write(self, new: "KeyValues", start: Array) -> "KeyValues":
        """Writes new tokens from `start` on, see `write_tokens`."""
        axis = self.keys.ndim
        return KeyValues(
            write_tokens(self.keys, new.keys, start, axis - 1), write_tokens(self.values, new.values, start, axis - 2)
        )


def write_tokens(array: Array, new: Array, start: Array, axis: int) -> Array:
    """Writes `new` into array [P, M, …] from `start` on along an axis; `start` is one number or each row's, [P, M]."""
    update = jax.lax.dynamic_update_slice_in_dim
    if not start.ndim:  # written in place
        return update(array, new, start, axis)
    return jax.vmap(jax.vmap(functools.partial(update, axis=axis - 2)))(array, new, start)


class Part(NamedTuple):
    """One part of the attention's keys: those of a prompt (rank 4) or of rollouts (rank 5).

    Attributes:
      kv: keys and values.
      mask: True where a query may look, [P or 1, M or 1, T or 1, S].
      slots: where the queries' rows ask for a prompt's keys; the mask's M is then R.
    """

    kv: KeyValues
    mask: Array
    slots: Slots | None = None


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
    if all(part.slots is None for part in parts):
        return _at_once(query, parts)[0] if query.shape[2] == 1 else _in_blocks(_attend, query, parts)
    found = [_softmax(query, [part for part in parts if part.slots is None])]
    for slots, part in ((part.slots, part) for part in parts if part.slots is not None):
        found.append(jax.tree.map(slots.to_rows, _softmax(slots.to_slots(query), [part])))
    return _merged(found)


def _softmax(query: Array, parts: Sequence[Part]) -> tuple[Array, Array]:
    """Attention of scaled queries to the parts alone, and log-sum-exps of their scores [P, M, T, K, G]."""
    if query.shape[2] == 1:
        return _at_once(query, parts)
    return _in_blocks(lambda *blocks: _forward(*blocks)[1][-2:], query, parts)


def _merged(found: Sequence[tuple[Array, Array]]) -> Array:
    """Attention to all parts from what `_softmax` found for some parts each."""
    top = functools.reduce(jnp.maximum, (lse for _, lse in found))
    shares = [jnp.exp(lse - top) for _, lse in found]
    total = sum(share[..., None] * out.astype(jnp.float32) for share, (out, _) in zip(shares, found, strict=True))
    return (total / sum(shares)[..., None]).astype(found[0][0].dtype)


def _in_blocks(function: Callable[..., Any], query: Array, parts: Sequence[Part]) -> Any:
    """`function` of queries, shared and own parts in blocks; its results [I, J, P, K, m, t, G, …] put together."""
    blocks = _blocks(query, parts)
    cut = [_cut_part(part, blocks) for part in parts]
    shared, own = ([part for part in cut if _is_shared(part) == wanted] for wanted in (True, False))
    found = function(_cut_tokens(query, blocks), shared, own)
    return jax.tree.map(functools.partial(_joined, tokens=query.shape[2]), found)


def attend_in_order(query: Array, context: Sequence[Part], own: Part, scale: float) -> Array:
    """`attend` to a context and the tokens' own keys, of which the mask shows none behind a query.

    Many queries are taken in bands, whose keys end where they end, so that fewer scores are computed to be masked.
    """
    tokens = query.shape[2]
    ends = [tokens * (i + 1) // bands(tokens) for i in range(bands(tokens))]

    def band(start: int, end: int) -> Array:
        masks = [part.mask if part.mask.shape[2] == 1 else part.mask[:, :, start:end] for part in (*context, own)]
        kv = KeyValues(own.kv.keys[..., :end], own.kv.values[..., :end, :])
        others = [part._replace(mask=mask) for part, mask in zip(context, masks[:-1], strict=True)]
        return attend(query[:, :, start:end], [*others, Part(kv, masks[-1][..., :end])], scale)

    return jnp.concatenate([band(*edges) for edges in zip([0, *ends[:-1]], ends, strict=True)], axis=2)


def bands(tokens: int) -> int:
    """In how many bands `attend_in_order` takes so many queries; n of them compute (n + 1) / 2n of the own scores."""
    return BANDS if tokens >= BANDED else 1


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


def _at_once(query: Array, parts: Sequence[Part]) -> tuple[Array, Array]:
    """`_softmax` in one block."""
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


def _blocks(query: Array, parts: Sequence[Part]) -> _Blocks:
    _, rollouts, tokens, _, group, _ = query.shape
    heads = local_size(query, 0, "prompts") * local_size(query, 3, "kv_heads") * group
    keys = sum(part.kv.keys.shape[-1] for part in parts)
    rows = max(1, BLOCK_SCORES.get(jax.default_backend(), 1 << 26) // (heads * keys))
    if rows >= tokens:
        most = max(n for n in range(1, rollouts + 1) if rollouts % n == 0 and n * tokens <= rows)
        return _Blocks(most, tokens, 0)
    count = -(-tokens // rows)
    size = -(-tokens // count)
    return _Blocks(1, size, count * size - tokens)


# In blocks everything is laid out as the products want it, so that nothing inside of the loops is transposed:
#   queries [I, J, P, K, m, t, G, h]: block i of M and j of T; their heads' tokens are one axis of rows to a product
#   keys    [P, K, h, S] and [I, P, K, m, h, S]; values with the last two axes swapped
#   masks   [I or 1, J or 1, P or 1, 1, m or 1, t or 1, 1, S]


def _cut_tokens(x: Array, blocks: _Blocks) -> Array:
    """[P, M, T, K, G, …] as [I, J, P, K, m, t, G, …]; an axis of length 1 is shared by all."""
    if x.shape[2] > 1:
        x = jnp.pad(x, [(0, blocks.padding if axis == 2 else 0) for axis in range(x.ndim)])
    rollouts, tokens = (min(size, n) for size, n in zip(blocks, x.shape[1:3], strict=False))
    x = x.reshape(x.shape[0], x.shape[1] // rollouts, rollouts, x.shape[2] // tokens, tokens, *x.shape[3:])
    return x.transpose(1, 3, 0, 5, 2, 4, *range(6, x.ndim))


def _joined(x: Array, tokens: int) -> Array:
    """The inverse of `_cut_tokens`, cut to so many tokens."""
    x = x.transpose(2, 0, 4, 1, 5, 3, *range(6, x.ndim))
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3] * x.shape[4], *x.shape[5:])[:, :, :tokens]


def _cut_part(part: Part, blocks: _Blocks) -> Part:
    kv = part.kv
    if kv.keys.ndim == 5:
        kv = KeyValues(*(x.reshape(x.shape[0], -1, blocks.rollouts, *x.shape[2:]) for x in kv))
        kv = KeyValues(*(x.transpose(1, 0, 3, 2, 4, 5) for x in kv))
    return Part(kv, _cut_tokens(part.mask[:, :, :, None, None], blocks))


def _at(x: Array, i: Array) -> Array:
    """x[i]; an axis of length 1 is shared by all."""
    return jax.lax.dynamic_index_in_dim(x, i if len(x) > 1 else 0, keepdims=False)


def _of_block(shared: list[Part], own: list[Part], i: Array, j: Array) -> list[Part]:
    """What block i of M and j of T reads."""
    parts = [*shared, *(part._replace(kv=jax.tree.map(lambda x: _at(x, i), part.kv)) for part in own)]
    return [part._replace(mask=_at(_at(part.mask, i), j)) for part in parts]


def _is_shared(part: Part) -> bool:
    """Keys of a prompt, which all blocks read."""
    return part.kv.keys.ndim == 4


def _product(subscripts: str, x: Array, y: Array, kv: KeyValues) -> Array:
    """A product in float32 for each head of the keys; axes m, t and G of a block's tokens become one axis of rows."""
    lead = kv.keys.shape[:-2]
    x, y = (z.reshape(*lead, -1, z.shape[-1]) if z.ndim == 6 else z for z in (x, y))
    return einsum_float32(subscripts, x, y)


def _block_scores(query: Array, part: Part) -> Array:
    """[P, K, m, t, G, S], masked, in float32."""
    scores = _product("...rh,...hs->...rs", query, part.kv.keys, part.kv)
    return scores.reshape(*query.shape[:-1], -1) + jnp.where(part.mask, 0.0, MASKED)


@jax.custom_vjp
def _attend(query: Array, shared: list[Part], own: list[Part]) -> Array:
    return _forward(query, shared, own)[0]


def _forward(query: Array, shared: list[Part], own: list[Part]) -> tuple[Array, tuple]:
    def one_block(i: Array, j: Array) -> tuple[Array, Array]:
        q, parts = _at(_at(query, i), j), _of_block(shared, own, i, j)
        scores = [_block_scores(q, part) for part in parts]
        top = functools.reduce(jnp.maximum, [x.max(axis=-1, keepdims=True) for x in scores])
        weights = [jnp.exp(x - top) for x in scores]
        total = sum(x.sum(axis=-1, keepdims=True) for x in weights)
        merged = sum(
            _product("...rs,...sh->...rh", x.astype(q.dtype), part.kv.values, part.kv).reshape(q.shape)
            for x, part in zip(weights, parts, strict=True)
        )
        return (merged / total).astype(q.dtype), (top + jnp.log(total))[..., 0]

    rows, columns = (jnp.arange(count) for count in query.shape[:2])
    out, lse = jax.lax.map(lambda i: jax.lax.map(functools.partial(one_block, i), columns), rows)
    out, lse = (checkpoint_name(x, ATTENDED) for x in (out, lse))
    return out, (query, shared, own, out, lse)


def _backward(kept: tuple, d_out: Array) -> tuple:
    """Of the softmax p over scores s: ds = p (dp − Σ p dp), a block at a time; those of prompts are summed."""
    query, shared, own, out, lse = kept
    d_out = d_out.astype(query.dtype)
    rows, columns = (jnp.arange(count) for count in query.shape[:2])

    def of_part(part: Part, q: Array, dy: Array, lse: Array, delta: Array) -> tuple[Array, tuple[Array, Array]]:
        kv = part.kv
        weights = jnp.exp(_block_scores(q, part) - lse)
        d_weights = _product("...rh,...sh->...rs", dy, kv.values, kv).reshape(weights.shape)
        d_scores = (weights * (d_weights - delta)).astype(q.dtype)
        d_query = _product("...rs,...hs->...rh", d_scores, kv.keys, kv).reshape(q.shape)
        # Small factors first: products then run along the rows of the scores, which nothing has to transpose.
        d_keys = _product("...rh,...rs->...hs", q, d_scores, kv)
        return d_query, (d_keys, _product("...rh,...rs->...hs", dy, weights.astype(q.dtype), kv))

    def one_block(i: Array, total: list, j: Array) -> tuple[list, Array]:
        q, y, dy, lse_block = (_at(_at(x, i), j) for x in (query, out, d_out, lse))
        delta = einsum_float32("...h,...h->...", y, dy)
        parts = _of_block(shared, own, i, j)
        d_query, grads = zip(
            *(of_part(part, q, dy, lse_block[..., None], delta[..., None]) for part in parts), strict=True
        )
        return jax.tree.map(jnp.add, total, list(grads)), sum(d_query)

    def one_row(of_shared: list, i: Array) -> tuple[list, tuple[Array, list]]:
        start = of_shared + _zeros([jax.tree.map(lambda x: _at(x, i), part.kv) for part in own])
        grads, d_query = jax.lax.scan(functools.partial(one_block, i), start, columns)
        return grads[: len(shared)], (d_query, grads[len(shared) :])

    of_shared, (d_query, of_own) = jax.lax.scan(one_row, _zeros([part.kv for part in shared]), rows)
    grads = [
        Part(KeyValues(d_keys.astype(part.kv.keys.dtype), d_values.swapaxes(-1, -2).astype(part.kv.values.dtype)), None)
        for (d_keys, d_values), part in zip(of_shared + of_own, shared + own, strict=True)
    ]
    return d_query.astype(query.dtype), grads[: len(shared)], grads[len(shared) :]


def _zeros(kvs: list[KeyValues]) -> list[tuple[Array, Array]]:
    """Of the keys' shape for keys and for values, whose gradients are transposed at the end."""
    return [(jnp.zeros(kv.keys.shape, jnp.float32),) * 2 for kv in kvs]


_attend.defvjp(_forward, _backward)
