"""Attention over parts: in one block, in bands of queries, or merged by log-sum-exp where rows use slots."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models.attention.blocks import attend_in_blocks, softmax_in_blocks
from tsallis_rl.models.attention.parts import MASKED, KeyValues, Part
from tsallis_rl.models.backends import backend
from tsallis_rl.models.precision import einsum_float32
from tsallis_rl.models.shapes import Expected, check_shapes

DENSE = 32  # keys from which a product with a vector is computed by multiplying and summing
BANDS, BANDED = 4, 256  # bands of queries, and the number of queries from which bands are used


def attend(query: Array, parts: Sequence[Part], scale: float) -> Array:
    """Attends with queries [P, M, T, K, G, h] to the union of the parts' keys → the same shape.

    Args:
      query: [P, M, T, K, G, h].
      parts: see `Part`; every query must see at least one key.
      scale: multiplies the scores.

    Returns:
      [P, M, T, K, G, h].
    """
    _check(query, parts)
    query = query * scale
    if all(part.slots is None for part in parts):
        return _at_once(query, parts)[0] if query.shape[2] == 1 else attend_in_blocks(query, parts)
    found = [_softmax(query, [part for part in parts if part.slots is None])]
    for slots, part in ((part.slots, part) for part in parts if part.slots is not None):
        found.append(jax.tree.map(slots.to_rows, _softmax(slots.to_slots(query), [part])))
    return _merge(found)


def _check(query: Array, parts: Sequence[Part]) -> None:
    """Checks queries and parts; letters say [P, M, …] for a compacted batch [C, B, …] as well."""
    queries = Expected("query", query, "P M T K G h", jnp.floating)
    for part in parts:
        if part.kv.keys.ndim == 4 and part.slots is None:
            lead, mask = "P K", "P|1 M|1 T|1 S"
        elif part.kv.keys.ndim == 4:  # P prompts, while the queries' first axis is C
            lead, mask = "prompts K", "prompts|1 R|1 T|1 S"
        else:
            lead, mask = "P M K", "P|1 M|1 T|1 S"
        check_shapes(
            queries,
            Expected("keys", part.kv.keys, f"{lead} h S"),
            Expected("values", part.kv.values, f"{lead} S h"),
            Expected("mask", part.mask, mask, jnp.bool_),
        )


def _softmax(query: Array, parts: Sequence[Part]) -> tuple[Array, Array]:
    """Attends with scaled queries to these parts alone; also returns log-sum-exps of the scores, [P, M, T, K, G]."""
    if query.shape[2] == 1:
        return _at_once(query, parts)
    return softmax_in_blocks(query, parts)


def _merge(found: Sequence[tuple[Array, Array]]) -> Array:
    """Merges attention to disjoint sets of parts, given with log-sum-exps, into attention to all of them."""
    top = functools.reduce(jnp.maximum, (lse for _, lse in found))
    shares = [jnp.exp(lse - top) for _, lse in found]
    total = sum(share[..., None] * out.astype(jnp.float32) for share, (out, _) in zip(shares, found, strict=True))
    return (total / sum(shares)[..., None]).astype(found[0][0].dtype)


def attend_in_order(query: Array, context: Sequence[Part], own: Part, scale: float) -> Array:
    """Attends to a context and to the tokens' own keys, whose mask must be causal; see `attend`.

    Many queries are cut into bands. A band reads own keys only up to its end, so fewer masked scores are computed.
    """
    tokens = query.shape[2]
    check_shapes(Expected("own.kv.keys", own.kv.keys, "P M K h T"), T=tokens)
    ends = [tokens * (i + 1) // bands(tokens) for i in range(bands(tokens))]

    def band(start: int, end: int) -> Array:
        masks = [part.mask if part.mask.shape[2] == 1 else part.mask[:, :, start:end] for part in (*context, own)]
        kv = KeyValues(own.kv.keys[..., :end], own.kv.values[..., :end, :])
        others = [part._replace(mask=mask) for part, mask in zip(context, masks[:-1], strict=True)]
        return attend(query[:, :, start:end], [*others, Part(kv, masks[-1][..., :end])], scale)

    return jnp.concatenate([band(*edges) for edges in zip([0, *ends[:-1]], ends, strict=True)], axis=2)


def bands(tokens: int) -> int:
    """Counts the bands into which `attend_in_order` cuts queries; n bands compute (n + 1) / 2n of the own scores."""
    return BANDS if tokens >= BANDED else 1


# Subscripts of the scores' rows by the rank of the part's keys, in the order in which the product writes them.
_ROWS = {4: "pkmtg", 5: "pmktg"}


def _to_rows(x: Array, rank: int) -> Array:
    """Transposes statistics [P, M, T, K, G] to the order of a part's scores, [rows, 1]."""
    return jnp.einsum(f"pmtkg->{_ROWS[rank]}", x)[..., None]


def _canonical(x: Array, rank: int) -> Array:
    """Transposes [rows, …] of a part's scores to [P, M, T, K, G, …]."""
    return jnp.einsum(f"{_ROWS[rank]}...->pmtkg...", x)


def _multiplies_and_sums(query: Array, keys: Array) -> bool:
    """Returns whether to multiply and sum: for one token's many own keys, if dots do not reach memory bandwidth."""
    is_own = keys.ndim == 5 and query.shape[2] == 1 and keys.shape[-1] >= DENSE
    return is_own and backend().multiplies_and_sums


def _scores(query: Array, part: Part) -> Array:
    """Multiplies queries [P, M, T, K, G, h] by a part's keys → masked scores [rows, S] in float32."""
    keys = part.kv.keys
    rank = keys.ndim
    if _multiplies_and_sums(query, keys):
        scores = (query[:, :, 0, ..., None].astype(jnp.float32) * keys[:, :, :, None]).sum(-2)[:, :, :, None]
    else:
        scores = einsum_float32(f"pmtkgh,{'pkhs' if rank == 4 else 'pmkhs'}->{_ROWS[rank]}s", query, keys)
    mask = part.mask[..., None, None, :]  # [P, M, T, 1, 1, S]
    return jnp.where(jnp.einsum(f"pmtkgs->{_ROWS[rank]}s", mask), scores, MASKED)


def _times_values(probs: Array, query: Array, kv: KeyValues) -> Array:
    """Multiplies probabilities [rows, S] by values → [P, M, T, K, G, h] in float32."""
    rank = kv.values.ndim
    if _multiplies_and_sums(query, kv.keys):
        return (probs[:, :, :, 0, ..., None] * kv.values[:, :, :, None]).sum(-2)[:, :, None]
    subscripts = f"{_ROWS[rank]}s,{'pksh' if rank == 4 else 'pmksh'}->{_ROWS[rank]}h"
    return _canonical(einsum_float32(subscripts, probs.astype(kv.values.dtype), kv.values), rank)


def _at_once(query: Array, parts: Sequence[Part]) -> tuple[Array, Array]:
    """Computes `_softmax` in one block."""
    scores = [_scores(query, part) for part in parts]
    ranks = [part.kv.keys.ndim for part in parts]
    tops = [_canonical(x.max(axis=-1), rank) for x, rank in zip(scores, ranks, strict=True)]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
    exps = [jnp.exp(x - _to_rows(top, rank)) for x, rank in zip(scores, ranks, strict=True)]
    total = sum(_canonical(x.sum(axis=-1), rank) for x, rank in zip(exps, ranks, strict=True))
    merged = sum(_times_values(x, query, part.kv) for x, part in zip(exps, parts, strict=True))
    return (merged / total[..., None]).astype(query.dtype), top + jnp.log(total)
