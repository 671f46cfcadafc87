"""Attention in blocks, compared with a softmax over all keys at once in float64."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec

from tests.support.backends import close, on_cpu
from tsallis_rl.models.attention import KeyValues, Part, WriteAt, attend, write_tokens
from tsallis_rl.models.slots import slots_for, take_rows

P, M, T, K, G, H, S = 2, 6, 10, 2, 2, 4, 7
SCALE = 0.3


@functools.partial(jax.jit, static_argnames="past")
def group(past: int = 0) -> tuple[jax.Array, list[Part]]:
    """Queries, and keys of a prompt (two lengths), of a past (two lengths) if there is one, and of the tokens."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def kv(*lead: int, size: int) -> KeyValues:
        return KeyValues(
            jax.random.normal(next(keys), (*lead, K, H, size)), jax.random.normal(next(keys), (*lead, K, size, H))
        )

    prompt_mask = jnp.arange(S) < jnp.array([[S], [S - 3]])
    parts = [Part(kv(P, size=S), prompt_mask[:, None, None])]
    if past:
        lengths = jax.random.randint(next(keys), (P, M, 1), 0, past + 1)
        parts.append(Part(kv(P, M, size=past), (jnp.arange(past) < lengths)[:, :, None]))
    parts.append(Part(kv(P, M, size=T), jnp.tril(jnp.ones((T, T), bool))[None, None]))
    return jax.random.normal(next(keys), (P, M, T, K, G, H)), parts


def at_once(query: jax.Array, parts: list[Part]) -> jax.Array:
    """The prompt's keys copied to every rollout, one softmax over all keys."""
    scores, values = [], []
    for (keys, part_values), mask, *_ in parts:
        if keys.ndim == 4:
            keys, part_values = (jnp.broadcast_to(x[:, None], (P, M, *x.shape[1:])) for x in (keys, part_values))
        found = SCALE * jnp.einsum("pmtkgh,pmkhs->pmtkgs", query, keys)
        scores.append(jnp.where(mask[..., None, None, :], found, -jnp.inf))
        values.append(part_values)
    probs = jax.nn.softmax(jnp.concatenate(scores, -1), axis=-1)
    return jnp.einsum("pmtkgs,pmksh->pmtkgh", probs, jnp.concatenate(values, -2))


@pytest.mark.parametrize("past", [0, 5])
# The block is all; two rollouts; three tokens of one, the last block filled up; one token.
@pytest.mark.parametrize("block", [1 << 30, 3200, 600, 100])
def test_blocks_give_the_softmax_over_all_parts_and_its_gradients(monkeypatch, block, past):
    on_cpu(monkeypatch, block_scores=block)
    query, parts = group(past)
    masks = [part.mask for part in parts]

    def loss(function, query, kvs):
        out = function(query, [Part(kv, mask) for kv, mask in zip(kvs, masks, strict=True)])
        return jnp.sin(out).sum(), out

    def both(function, dtype):
        arguments = jax.tree.map(lambda x: x.astype(dtype), (query, [part.kv for part in parts]))
        return jax.jit(jax.value_and_grad(lambda *x: loss(function, *x), (0, 1), has_aux=True))(*arguments)

    (_, out), grads = both(lambda query, parts: attend(query, parts, SCALE), jnp.float32)
    with jax.enable_x64(True):
        (_, expected), expected_grads = jax.device_get(both(at_once, jnp.float64))
    np.testing.assert_allclose(out, expected, atol=close(1e-5))
    jax.tree.map(lambda found, right: np.testing.assert_allclose(found, right, atol=close(1e-4)), grads, expected_grads)


@pytest.mark.parametrize("tokens", [1, T])
@pytest.mark.parametrize("shards", [1, 2])
def test_rollouts_that_share_rows_attend_to_their_own_prompts(tokens, shards):
    query, (prompt, *own) = group(past=5)
    query, own[1] = query[:, :, :tokens], own[1]._replace(mask=own[1].mask[:, :, :tokens])
    attended = jax.jit(functools.partial(attend, scale=SCALE))
    expected = attended(query, [prompt, *own])
    # Rows of a shard: some rollouts of its prompts in any order, and one of which no more than nonsense is expected.
    prompts = P // shards
    chosen = jax.vmap(lambda key: jax.random.permutation(key, prompts * M)[: prompts * M - 1])
    rollout = chosen(jax.random.split(jax.random.key(1), shards))
    needed = jnp.arange(rollout.shape[1]) > 0

    def in_rows(x: jax.Array) -> jax.Array:
        x = jnp.broadcast_to(x, (P, M, *x.shape[2:]))
        return take_rows(x.reshape(shards, prompts * M, *x.shape[2:]), rollout)

    slots = slots_for(rollout // M, jnp.broadcast_to(needed, rollout.shape), prompts, count=M)
    parts = [prompt._replace(slots=slots), *(Part(jax.tree.map(in_rows, kv), in_rows(mask)) for kv, mask, *_ in own)]
    found = attended(in_rows(query), parts)
    np.testing.assert_allclose(found[:, needed], in_rows(expected)[:, needed], atol=close(1e-6))
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("data", "tensor", "rollouts"), [(1, 1, 1), (2, 1, 2), (2, 2, 3)])
def test_a_block_is_sized_by_what_a_device_holds_of_prompts_and_heads(monkeypatch, data, tensor, rollouts):
    on_cpu(monkeypatch, block_scores=P * K * G * T * (S + T))  # one rollout of everything
    mesh = AbstractMesh((data, tensor), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    over = NamedSharding(mesh, Spec("data"))
    query, parts = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), group())
    query = jax.ShapeDtypeStruct(query.shape, query.dtype, sharding=over)
    program = str(jax.make_jaxpr(lambda query, parts: attend(query, parts, SCALE))(query, parts))
    assert f"f32[{P},{K},{rollouts},{T},{G},{S}]" in program  # scores of a block


def test_the_compiled_backward_pass_holds_a_block_of_scores_and_never_all(monkeypatch):
    on_cpu(monkeypatch, block_scores=2048)
    query, parts = group()
    masks = [part.mask for part in parts]

    def loss(query, kvs):
        return attend(query, [Part(kv, mask) for kv, mask in zip(kvs, masks, strict=True)], SCALE).sum()

    program = jax.jit(jax.grad(loss, (0, 1))).lower(query, [part.kv for part in parts]).compile().as_text()
    all_scores = P * M * T * K * G * (S + T)
    assert f"{T},{G},{T}]" in program  # a block: all tokens of one rollout
    largest = max(np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"f32\[([\d,]+)\]", program))
    assert largest < all_scores / 4


@pytest.mark.parametrize("slots", [False, True])
def test_one_token_meets_its_own_keys_by_dots_as_by_multiplying_and_summing(monkeypatch, slots):
    query, (prompt, past, _) = group(past=40)
    query, products = query[:, :, :1], []
    if slots:
        where = slots_for(jnp.zeros((P, M), int), jnp.ones((P, M), bool), 1, M)
        prompt = prompt._replace(slots=where)
    found = []
    for multiplies in (True, False):
        on_cpu(monkeypatch, multiplies_and_sums=multiplies)
        function = lambda query: attend(query, [prompt, past], SCALE)  # noqa: E731 - another one, compiled anew
        products.append(str(jax.make_jaxpr(function)(query)).count("dot_general"))
        found.append(function(query))
    np.testing.assert_allclose(*found, atol=close(1e-6))
    assert products[1] == products[0] + 2  # scores and values of the rollout's own keys


@pytest.mark.parametrize("writes_by_batch", [False, True])
@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("batches", [1, 3])
def test_each_row_writes_its_token_at_the_position_of_its_batch(monkeypatch, writes_by_batch, axis, batches):
    on_cpu(monkeypatch, writes_by_batch=writes_by_batch)
    rng = np.random.default_rng(0)
    array, batch = rng.normal(size=(2, 5, 7, 6)).astype(np.float32), rng.integers(batches, size=(2, 5))
    new = rng.normal(size=[1 if i == axis else n for i, n in enumerate(array.shape)]).astype(np.float32)
    positions = rng.permutation(6)[:batches]
    at = WriteAt(jnp.asarray(positions), jnp.asarray(batch) if batches > 1 else None)
    expected = array.copy()
    for p, m in np.ndindex(batch.shape):
        np.moveaxis(expected[p, m], axis - 2, 0)[positions[batch[p, m]]] = new[p, m].squeeze(axis - 2)
    np.testing.assert_array_equal(write_tokens(jnp.asarray(array), jnp.asarray(new), at, axis), expected)
