"""The group kernel, interpreted, compared with attention by XLA in float32; and Triton accepts its programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from tests.support.backends import close
from tests.support.kernels import SMALL_TILES
from tsallis_rl.models import attention
from tsallis_rl.models.attention import KeyValues, Part, group_kernel, group_keys
from tsallis_rl.models.attention.group_tiles import Limits

P, M = 2, 2


def masks(tokens: int, width: int, lengths, start, window):
    """What each query sees of the prompt [P, M, T, S] and of the own keys [P, M, T, T], written out."""
    seen = np.zeros((P, M, tokens, width), bool), np.zeros((P, M, tokens, tokens), bool)
    for p, m, t in np.ndindex(P, M, tokens):
        first = 0 if start is None else start[p, m, t]
        for s in range(lengths[p]):
            seen[0][p, m, t, s] = lengths[p] + t - first - s < window
        for j in range(first, t + 1):
            seen[1][p, m, t, j] = t - j < window
    return seen


@pytest.mark.parametrize(
    ("tokens", "width", "lengths", "kv_heads", "group", "head_dim", "starts", "window"),
    [
        (37, 45, [42, 0], 2, 2, 64, None, None),
        (40, 33, [33, 17], 1, 4, 16, (7, 20), 11),
        (48, 16, [0, 16], 1, 1, 128, (7, 35), None),
        (37, 0, [0, 0], 1, 2, 16, None, 9),
    ],
)
def test_outputs_and_gradients_are_those_of_attention_by_xla(
    monkeypatch, tokens, width, lengths, kv_heads, group, head_dim, starts, window
):
    if starts:  # a program sums over all rollouts of a prompt; without, over one
        monkeypatch.setattr(group_keys, "PROGRAMS", 1)
    keys = iter(jax.random.split(jax.random.key(0), 6))
    query, factor = (jax.random.normal(next(keys), (P, M, tokens, kv_heads, group, head_dim)) for _ in range(2))
    own = KeyValues(*(jax.random.normal(next(keys), (P, M, tokens, kv_heads, head_dim)) for _ in range(2)))
    prompt = KeyValues(*(jax.random.normal(next(keys), (P, width, kv_heads, head_dim)) for _ in range(2)))
    prompt, start = prompt if width else None, None
    if starts:  # three rollouts in the first row, one in the others
        start = np.zeros((P, M, tokens), np.int32)
        start[0, 0] = np.searchsorted(starts, np.arange(tokens), side="right")
        start[0, 0] = np.array([0, *starts])[start[0, 0]]
    of_prompt, of_own = masks(tokens, width, lengths, start, window or np.inf)

    def ours(query, own, prompt):
        number = None if window is None else jnp.int32(window)
        how = {"tiles": SMALL_TILES, "interpret": True}
        return group_kernel.attend(query, own, prompt, Limits(jnp.array(lengths), start, number), 0.2, **how)

    def by_xla(query, own, prompt):
        parts = [Part(KeyValues(jnp.einsum("pmtkh->pmkht", own[0]), own[1].swapaxes(2, 3)), jnp.array(of_own))]
        if prompt is not None:
            kv = KeyValues(jnp.einsum("pskh->pkhs", prompt[0]), prompt[1].swapaxes(1, 2))
            parts.insert(0, Part(kv, jnp.array(of_prompt)))
        return attention.attend(query, parts, 0.2)

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.value_and_grad, argnums=(1, 2, 3), has_aux=True)
    def both(attend, *arguments):
        out = attend(*arguments)
        return (factor * out).sum(), out

    (_, found), found_grads = both(ours, query, own, prompt)
    (_, expected), expected_grads = both(by_xla, query, own, prompt)
    np.testing.assert_allclose(found, expected, atol=close(5e-6))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=close(2e-5)), found_grads, expected_grads)


@pytest.mark.parametrize(("head_dim", "masked"), [(128, False), (256, True)])
def test_triton_takes_every_program(head_dim, masked):
    like = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    own, prompt = (KeyValues(like(x), like(x)) for x in ((1, 4, 500, 8, head_dim), (1, 1000, 8, head_dim)))
    numbers = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1,), (1, 4, 500), ())]
    limits = Limits(*numbers) if masked else Limits(numbers[0])

    def loss(query, own, prompt, limits):
        return group_kernel.attend(query, own, prompt, limits, 0.1).astype(jnp.float32).sum()

    query = like((1, 4, 500, 8, 2, head_dim))
    card = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H200", 132, "gpu"))
    with use_abstract_mesh(card):
        traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(query, own, prompt, limits)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    for name in ("group_attention", "group_attention_d_query", "group_attention_d_own", "group_attention_d_prompt"):
        assert f'name = "{name}"' in program
