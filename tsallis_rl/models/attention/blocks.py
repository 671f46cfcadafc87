"""Attention of many queries, in blocks of rollouts and tokens whose scores fit the processor's cache.

The backward pass recomputes a block's scores, and their probabilities from the log-sum-exp that the forward pass kept.
P and the heads are never cut, so arrays that are sharded over them stay where they are.

Blocks have the layout that products need, so that nothing is transposed inside the loops:

    queries [M / m, T / t, P, K, m, t, G, h]: blocks of m rollouts and t tokens; a key-value head's m, t and G become
            one axis of rows
    keys    [P, K, h, S] and [M / m, P, K, m, h, S]; values with the last two axes swapped
    masks   [M / m or 1, T / t or 1, P or 1, 1, m or 1, t or 1, 1, S]
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from tsallis_rl.models.attention.parts import ATTENDED, MASKED, KeyValues, Part
from tsallis_rl.models.backends import backend
from tsallis_rl.models.precision import einsum_float32
from tsallis_rl.models.shapes import largest_divisor
from tsallis_rl.models.sharding import local_size


def attend_in_blocks(query: Array, parts: Sequence[Part]) -> Array:
    """Attends with scaled queries [P, M, T, K, G, h] to all parts → the same shape."""
    return _in_blocks(_attend, query, parts)


def softmax_in_blocks(query: Array, parts: Sequence[Part]) -> tuple[Array, Array]:
    """Attends like `attend_in_blocks`; also returns log-sum-exps [P, M, T, K, G]. Has no gradient."""

    def attended(*blocks: Any) -> tuple[Array, Array]:
        _, kept = _forward(*blocks)
        return kept.out, kept.lse

    return _in_blocks(attended, query, parts)


def _in_blocks(function: Callable[..., Any], query: Array, parts: Sequence[Part]) -> Any:
    """Calls a function with queries, shared and own parts cut into blocks, and joins its results → [P, M, T, …]."""
    blocks = _blocks(query, parts)
    cut = [_cut_part(part, blocks) for part in parts]
    shared, own = ([part for part in cut if _is_shared(part) == wanted] for wanted in (True, False))
    found = function(_cut_tokens(query, blocks), shared, own)
    return jax.tree.map(functools.partial(_join_tokens, tokens=query.shape[2]), found)


class _Blocks(NamedTuple):
    """How queries [P, M, T, …] are cut: rollouts m and tokens t per block, and tokens that pad the last block."""

    rollouts: int
    tokens: int
    padding: int


def _blocks(query: Array, parts: Sequence[Part]) -> _Blocks:
    """Chooses block sizes, so that a block has at most `Backend.block_scores` scores on a device."""
    _, rollouts, tokens, _, group, _ = query.shape
    heads = local_size(query, 0, "prompts") * local_size(query, 3, "kv_heads") * group
    keys = sum(part.kv.keys.shape[-1] for part in parts)
    rows = max(1, backend().block_scores // (heads * keys))
    if rows >= tokens:
        most = largest_divisor(rollouts, rows // tokens)
        return _Blocks(most, tokens, 0)
    count = -(-tokens // rows)
    size = -(-tokens // count)
    return _Blocks(1, size, count * size - tokens)


def _cut_tokens(x: Array, blocks: _Blocks) -> Array:
    """Cuts [P, M, T, K, G, …] → [M / m, T / t, P, K, m, t, G, …]; an axis of length 1 is shared by all blocks."""
    if blocks.padding and x.shape[2] > 1:
        x = jnp.pad(x, [(0, blocks.padding if axis == 2 else 0) for axis in range(x.ndim)])
    rollouts, tokens = (min(size, n) for size, n in zip(blocks, x.shape[1:3], strict=False))
    x = x.reshape(x.shape[0], x.shape[1] // rollouts, rollouts, x.shape[2] // tokens, tokens, *x.shape[3:])
    return x.transpose(1, 3, 0, 5, 2, 4, *range(6, x.ndim))


def _join_tokens(x: Array, tokens: int) -> Array:
    """Inverts `_cut_tokens` and drops the padding after `tokens`."""
    x = x.transpose(2, 0, 4, 1, 5, 3, *range(6, x.ndim))
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3] * x.shape[4], *x.shape[5:])[:, :, :tokens]


def _cut_part(part: Part, blocks: _Blocks) -> Part:
    kv = part.kv
    if kv.keys.ndim == 5:
        kv = KeyValues(*(x.reshape(x.shape[0], -1, blocks.rollouts, *x.shape[2:]) for x in kv))
        kv = KeyValues(*(x.transpose(1, 0, 3, 2, 4, 5) for x in kv))
    return Part(kv, _cut_tokens(part.mask[:, :, :, None, None], blocks))


def _at(x: Array, i: Array) -> Array:
    """Takes x[i]; an axis of length 1 is shared by all."""
    # `dynamic_index_in_dim` would be a program within the program, which every transformation traces again.
    one = jax.lax.dynamic_slice_in_dim(x, i, 1, allow_negative_indices=False) if len(x) > 1 else x
    return jax.lax.squeeze(one, (0,))


def _block_parts(shared: list[Part], own: list[Part], i: Array, j: Array) -> list[Part]:
    """Takes the parts that the block at i of M and j of T reads."""
    parts = [*shared, *(part._replace(kv=jax.tree.map(lambda x: _at(x, i), part.kv)) for part in own)]
    return [part._replace(mask=_at(_at(part.mask, i), j)) for part in parts]


def _is_shared(part: Part) -> bool:
    """Returns whether a part holds a prompt's keys, which all blocks read."""
    return part.kv.keys.ndim == 4


def _product(subscripts: str, x: Array, y: Array, kv: KeyValues) -> Array:
    """Multiplies in float32 for each key-value head, after merging the axes m, t and G of a block into one of rows."""
    lead = kv.keys.shape[:-2]
    x, y = (z.reshape(*lead, -1, z.shape[-1]) if z.ndim == 6 else z for z in (x, y))
    return einsum_float32(subscripts, x, y)


def _block_scores(query: Array, part: Part) -> Array:
    """Multiplies a block's queries by a part's keys → masked scores [P, K, m, t, G, S] in float32."""
    scores = _product("...rh,...hs->...rs", query, part.kv.keys, part.kv)
    return scores.reshape(*query.shape[:-1], -1) + jnp.where(part.mask, 0.0, MASKED)


@jax.custom_vjp
def _attend(query: Array, shared: list[Part], own: list[Part]) -> Array:
    return _forward(query, shared, own)[0]


class _Kept(NamedTuple):
    """Arrays that the backward pass needs: the arguments of `_attend`, its result, and log-sum-exps of the scores."""

    query: Array
    shared: list[Part]
    own: list[Part]
    out: Array
    lse: Array


def _forward(query: Array, shared: list[Part], own: list[Part]) -> tuple[Array, _Kept]:
    def one_block(i: Array, j: Array) -> tuple[Array, Array]:
        q, parts = _at(_at(query, i), j), _block_parts(shared, own, i, j)
        scores = [_block_scores(q, part) for part in parts]
        top = functools.reduce(jnp.maximum, [x.max(axis=-1, keepdims=True) for x in scores])
        exps = [jnp.exp(x - top) for x in scores]
        total = sum(x.sum(axis=-1, keepdims=True) for x in exps)
        merged = sum(
            _product("...rs,...sh->...rh", x.astype(q.dtype), part.kv.values, part.kv).reshape(q.shape)
            for x, part in zip(exps, parts, strict=True)
        )
        return (merged / total).astype(q.dtype), (top + jnp.log(total))[..., 0]

    rows, columns = (jnp.arange(count) for count in query.shape[:2])
    out, lse = jax.lax.map(lambda i: jax.lax.map(functools.partial(one_block, i), columns), rows)
    out, lse = (checkpoint_name(x, ATTENDED) for x in (out, lse))
    return out, _Kept(query=query, shared=shared, own=own, out=out, lse=lse)


def _backward(kept: _Kept, d_out: Array) -> tuple:
    """Differentiates the softmax p of scores s, ds = p (dp − Σ p dp), block by block; sums gradients of prompts."""
    query, shared, own = kept.query, kept.shared, kept.own
    d_out = d_out.astype(query.dtype)
    rows, columns = (jnp.arange(count) for count in query.shape[:2])

    def one_part(part: Part, q: Array, dy: Array, lse: Array, delta: Array) -> tuple[Array, tuple[Array, Array]]:
        kv = part.kv
        probs = jnp.exp(_block_scores(q, part) - lse)
        d_probs = _product("...rh,...sh->...rs", dy, kv.values, kv).reshape(probs.shape)
        d_scores = (probs * (d_probs - delta)).astype(q.dtype)
        d_query = _product("...rs,...hs->...rh", d_scores, kv.keys, kv).reshape(q.shape)
        # With the small factors first, products run along the rows of the scores, so these are not transposed.
        d_keys = _product("...rh,...rs->...hs", q, d_scores, kv)
        return d_query, (d_keys, _product("...rh,...rs->...hs", dy, probs.astype(q.dtype), kv))

    def one_block(i: Array, total: list, j: Array) -> tuple[list, Array]:
        q, y, dy, lse_block = (_at(_at(x, i), j) for x in (query, kept.out, d_out, kept.lse))
        delta = einsum_float32("...h,...h->...", y, dy)
        parts = _block_parts(shared, own, i, j)
        d_query, grads = zip(
            *(one_part(part, q, dy, lse_block[..., None], delta[..., None]) for part in parts), strict=True
        )
        return jax.tree.map(jnp.add, total, list(grads)), sum(d_query)

    def one_row(shared_grads: list, i: Array) -> tuple[list, tuple[Array, list]]:
        start = shared_grads + _zeros([jax.tree.map(lambda x: _at(x, i), part.kv) for part in own])
        grads, d_query = jax.lax.scan(functools.partial(one_block, i), start, columns)
        return grads[: len(shared)], (d_query, grads[len(shared) :])

    shared_grads, (d_query, own_grads) = jax.lax.scan(one_row, _zeros([part.kv for part in shared]), rows)
    grads = [
        Part(KeyValues(d_keys.astype(part.kv.keys.dtype), d_values.swapaxes(-1, -2).astype(part.kv.values.dtype)), None)
        for (d_keys, d_values), part in zip(shared_grads + own_grads, shared + own, strict=True)
    ]
    return d_query.astype(query.dtype), grads[: len(shared)], grads[len(shared) :]


def _zeros(kvs: list[KeyValues]) -> list[tuple[Array, Array]]:
    """Makes zeros of the keys' shape for keys and for values, whose gradients are transposed at the end."""
    return [(jnp.zeros(kv.keys.shape, jnp.float32),) * 2 for kv in kvs]


_attend.defvjp(_forward, _backward)
