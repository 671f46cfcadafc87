"""The decoder, compared with a naive float64 implementation, and its two-part form, compared with the flat one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backends import close
from tsallis_rl.models import (
    SIZES,
    Architecture,
    Context,
    attention,
    bind,
    initialize,
    parameter_shapes,
    token_log_probs,
)

ARCH = dataclasses.replace(SIZES["tiny"], vocab_size=23, tied=True, kv_heads=2, rope_theta=10_000.0)
UNTIED = dataclasses.replace(ARCH, tied=False, qk_norm=False, kv_heads=1, head_dim=8, rope_theta=100.0)


def scrambled(arch: Architecture, seed: int = 0) -> dict:
    """Parameters with norms away from one, so that a forgotten scale shows."""
    params = initialize(arch, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def naive_logits(arch: Architecture, params: dict, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one sequence in float64, a head and a query at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2) + arch.norm_eps) * scale

    def turn(x: np.ndarray, position: int) -> np.ndarray:
        half = arch.head_dim // 2
        z = x[:half] + 1j * x[half:]
        z = z * np.exp(1j * position * arch.rope_theta ** (-np.arange(half) / half))
        return np.concatenate([z.real, z.imag])

    residual = params["embed"][tokens]
    for n in range(arch.layers):
        layer = {name: stacked[n] for name, stacked in params["layers"].items()}
        keys, values, outputs = [], [], []
        for t, x in enumerate(residual):
            normed = norm(x, layer["attention_norm"])
            heads = [normed @ layer["query"][:, i] for i in range(arch.heads)]
            kv_heads = [normed @ layer["key"][:, i] for i in range(arch.kv_heads)]
            if arch.qk_norm:
                heads = [norm(head, layer["query_norm"]) for head in heads]
                kv_heads = [norm(head, layer["key_norm"]) for head in kv_heads]
            keys.append([turn(head, t) for head in kv_heads])
            values.append([normed @ layer["value"][:, i] for i in range(arch.kv_heads)])
            for i, head in enumerate(heads):
                shared = i // (arch.heads // arch.kv_heads)
                scores = np.array([turn(head, t) @ key[shared] for key in keys]) / np.sqrt(arch.head_dim)
                probs = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
                x = x + sum(p * v[shared] for p, v in zip(probs, values, strict=True)) @ layer["out"][i]
            outputs.append(x)
        residual = np.stack(outputs)
        for t, x in enumerate(residual):
            normed = norm(x, layer["ffn_norm"])
            gate = normed @ layer["gate"]
            residual[t] = x + (gate / (1 + np.exp(-gate)) * (normed @ layer["up"])) @ layer["down"]
    head = params["embed"].T if arch.tied else params["head"]
    return np.stack([norm(x, params["norm"]) for x in residual]) @ head


def flat_log_probs(params: dict, tokens: jax.Array, arch: Architecture) -> jax.Array:
    """log p(token t+1 | tokens 0 … t) of flat sequences [B, T]: [B, T − 1]."""
    decoder = bind(arch, params)
    hidden, _ = decoder.prefill(tokens)
    return token_log_probs(hidden[:, :-1], decoder.output_head(), tokens[:, 1:])


@pytest.mark.parametrize("arch", [ARCH, UNTIED], ids=["tied, QK-norm, grouped", "untied, plain, multi-query"])
def test_log_probabilities_agree_with_a_naive_float64_decoder(arch):
    params = scrambled(arch)
    tokens = np.random.default_rng(0).integers(arch.vocab_size, size=(2, 7))
    logits = np.stack([naive_logits(arch, params, row) for row in tokens])
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(expected[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    found = jax.jit(functools.partial(flat_log_probs, arch=arch))(params, tokens)
    np.testing.assert_allclose(found, expected, atol=close(2e-5))


def test_no_gradient_flows_from_a_token_to_earlier_hidden_states():
    params = scrambled(ARCH)

    @jax.jit
    @functools.partial(jax.grad, argnums=1)
    def pulled(t: int, shift: jax.Array) -> jax.Array:
        """Token i is row i of the embedding, so that shift[i] moves what stands at position i alone."""
        moved = params | {"embed": params["embed"].at[:6].add(shift)}
        return bind(ARCH, moved).prefill(jnp.arange(6)[None])[0][0, t].sum()

    for t in range(6):
        pull = jnp.abs(pulled(t, jnp.zeros((6, ARCH.width)))).sum(-1)
        assert (pull[t + 1 :] == 0).all()
        assert (pull[: t + 1] > 0).all()


def two_part_log_probs(params: dict, tokens: jax.Array, split: int, arch: Architecture) -> jax.Array:
    """The same as flat_log_probs from position split − 1 on, with tokens[:split] as a padded prompt of M = 3."""
    decoder = bind(arch, params)
    padded = jnp.concatenate([tokens[:, :split], jnp.full((tokens.shape[0], 4), 5)], axis=1)
    prompt = decoder.read_prompt(padded, jnp.full(tokens.shape[0], split))
    own = jnp.repeat(tokens[:, None, split - 1 :], 3, axis=1)
    positions = jnp.broadcast_to(jnp.arange(split - 1, tokens.shape[1]), own.shape)
    hidden, _ = decoder.extend(own, positions, prompt=prompt)
    return token_log_probs(hidden[:, :, :-1], decoder.output_head(), own[:, :, 1:])


@functools.partial(jax.jit, static_argnames="split")
def values_and_gradient(params: dict, tokens: jax.Array, coefficient: jax.Array, split: int | None) -> tuple:
    """Log-probabilities, flat without a split, and the gradient of their sum times `coefficient`, once a rollout."""

    def total(params: dict) -> tuple[jax.Array, jax.Array]:
        if split is None:
            found = flat_log_probs(params, tokens, ARCH)
            return (coefficient * found).sum(), found
        found = two_part_log_probs(params, tokens, split, ARCH)
        return (coefficient[:, None, split - 1 :] * found).sum() / found.shape[1], found

    gradient, values = jax.grad(total, has_aux=True)(params)
    return values, gradient


@pytest.mark.parametrize("split", [1, 2, 6])
def test_two_part_form_equals_flat_form_in_values_and_gradients(split):
    params = scrambled(ARCH)
    tokens = jax.random.randint(jax.random.key(3), (2, 9), 0, ARCH.vocab_size)
    coefficient = jax.random.normal(jax.random.key(4), (2, 8)).at[:, : split - 1].set(0.0)
    expected, flat_gradient = values_and_gradient(params, tokens, coefficient, None)
    found, two_gradient = values_and_gradient(params, tokens, coefficient, split)
    for m in range(3):
        np.testing.assert_allclose(found[:, m], expected[:, split - 1 :], atol=close(1e-5))
    for path, leaf in jax.tree.leaves_with_path(flat_gradient):
        found_leaf = functools.reduce(lambda tree, key: tree[key.key], path, two_gradient)
        np.testing.assert_allclose(found_leaf, leaf, atol=close(2e-5) * float(jnp.abs(leaf).max()), err_msg=str(path))


def test_bands_of_queries_and_all_at_once_attend_to_the_same(monkeypatch):
    params, tokens = scrambled(ARCH), jax.random.randint(jax.random.key(8), (2, 11), 0, ARCH.vocab_size)
    results = []
    for least in (256, 5):
        monkeypatch.setattr(attention.softmax, "BANDED", least)
        results.append(jax.jit(jax.value_and_grad(lambda p: (flat_log_probs(p, tokens, ARCH) ** 2).sum()))(params))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, atol=close(2e-5) * float(jnp.abs(x).max())), *results)


def test_reading_in_pieces_with_a_cache_equals_reading_at_once():
    tokens = jax.random.randint(jax.random.key(5), (2, 3, 8), 0, ARCH.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(8), tokens.shape)

    @jax.jit
    def at_once_and_in_pieces(params: dict) -> tuple[jax.Array, jax.Array]:
        decoder = bind(ARCH, params)
        whole, _ = decoder.extend(tokens, positions)
        _, past = decoder.extend(tokens[:, :, :5], positions[:, :, :5])
        padded = jax.tree.map(lambda x: jnp.where(x == 0, 7.0, x), past.padded(3))  # what is not seen may be anything
        rest, _ = decoder.extend(tokens[:, :, 5:], positions[:, :, 5:], past=Context(padded, jnp.full((2, 3), 5)))
        return whole, rest

    whole, rest = at_once_and_in_pieces(scrambled(ARCH))
    np.testing.assert_allclose(rest, whole[:, :, 5:], atol=close(2e-5))


def test_recomputing_layers_changes_no_gradient():
    params, tokens = scrambled(ARCH), jax.random.randint(jax.random.key(6), (2, 9), 0, ARCH.vocab_size)
    kept, *recomputed = (
        jax.jit(jax.grad(lambda p, arch=arch: flat_log_probs(p, tokens, arch).sum()))(params)
        for arch in (ARCH, *(dataclasses.replace(ARCH, remat=remat) for remat in ("matmuls", "attention", "layers")))
    )
    for others in recomputed:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=close(1e-4), atol=close(1e-5)), kept, others)


def test_shapes_are_told_without_making_parameters():
    made = initialize(ARCH, jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), parameter_shapes(ARCH)
    )
    parameter_shapes(ARCH).clear()
    assert parameter_shapes(ARCH).keys() == made.keys()


def test_qwen3_0_6b_has_the_published_number_of_parameters():
    shapes = parameter_shapes(SIZES["qwen3-0.6b"])
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 596_049_920
