"""Kernels, compared with attention by XLA: the same numbers and gradients, alone, in a decoder, over devices."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backends import close, only_on_cpu
from tests.support.kernels import RUN, group, kernel
from tests.support.virtual_devices import printed
from tsallis_rl.models import SIZES, attention, backends, initialize, parameter_shapes
from tsallis_rl.models.attention import KeyValues, Part
from tsallis_rl.models.attention import library_kernels as kernels
from tsallis_rl.training.learner import read_prompts, surrogate
from tsallis_rl.training.packing import PackedRows, RowTokens

ARCH = dataclasses.replace(SIZES["tiny"], vocab_size=23, tied=True, kv_heads=2, rope_theta=10_000.0)
HERE = jax.default_backend()


def use(monkeypatch, name: str) -> None:
    """Has this processor use a kernel, with tiles so small that there are several."""
    monkeypatch.setitem(kernels.KERNELS, HERE, kernel(name))
    monkeypatch.setattr(kernels, "LARGEST_TILE", 128)
    kernels._splash_kernel.cache_clear()


@pytest.mark.parametrize("name", RUN)
def test_a_kernel_gives_the_outputs_and_gradients_of_our_own_attention(monkeypatch, name):
    use(monkeypatch, name)
    query, parts, factor = group(prompt=70, tokens=130)
    masks = [part.mask for part in parts]

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.value_and_grad, argnums=(1, 2), has_aux=True)
    def both(attend, query, kvs):
        out = attend(query, [Part(kv, mask) for kv, mask in zip(kvs, masks, strict=True)], 0.25)
        return (factor * out).sum(), out

    kvs = [part.kv for part in parts]
    (_, found), found_grads = both(kernels.attend, query, kvs)
    (_, expected), expected_grads = both(attention.attend, query, kvs)
    np.testing.assert_allclose(found, expected, atol=close(5e-6))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=close(2e-5)), found_grads, expected_grads)


def rows(vocab: int, prompt=9, tokens=12) -> PackedRows:
    """Two groups of two rollouts, every token of which carries a coefficient."""
    rng = np.random.default_rng(0)
    shape = (2, 2, tokens)
    tokens = RowTokens(
        inputs=rng.integers(vocab, size=shape).astype(np.int32),
        targets=rng.integers(vocab, size=shape).astype(np.int32),
        coefficient=np.float32(rng.normal(size=shape)),
        log_prob=np.zeros(shape, np.float32),
    )
    ids = rng.integers(vocab, size=(2, prompt)).astype(np.int32)
    return PackedRows(prompt=ids, prompt_length=np.array([prompt, 4], np.int32), tokens=tokens)


@pytest.mark.parametrize(
    ("name", "changes", "start"),
    [("splash", {}, None), ("group", {"local_layers": (True,), "window": 6}, np.repeat([0, 5], [5, 7]))],
)
def test_the_surrogate_has_the_same_gradient_and_xla_is_left_alone_when_asked_for(monkeypatch, name, changes, start):
    use(monkeypatch, name)
    one_layer = dataclasses.replace(ARCH, layers=1, remat="matmuls", **changes)
    params = initialize(one_layer, jax.random.key(0))
    packed_rows = rows(one_layer.vocab_size)
    if start is not None:  # two rollouts in each row, in a layer with a window
        start = np.broadcast_to(start, packed_rows.tokens.inputs.shape)
        packed_rows = packed_rows._replace(tokens=packed_rows.tokens._replace(start=start))

    def loss(attention: str, params: dict) -> jax.Array:
        arch = dataclasses.replace(one_layer, attention=attention)
        return surrogate(params, read_prompts(params, packed_rows, arch), packed_rows, arch)[0]

    found, expected = (jax.jit(jax.grad(functools.partial(loss, x)))(params) for x in ("library", "xla"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=close(1e-5) * float(jnp.abs(b).max())),
        found,
        expected,
    )
    calls = [str(jax.make_jaxpr(functools.partial(loss, x))(params)).count("pallas_call") for x in ("library", "xla")]
    assert calls == [2, 0]  # the prompts and the rollouts


@only_on_cpu
def test_the_backward_pass_runs_no_forward_kernel_again_unless_layers_are_recomputed(monkeypatch):
    use(monkeypatch, "group")
    packed_rows = rows(ARCH.vocab_size)

    def loops(remat: str) -> int:
        """Counts the loops of the compiled gradient: an interpreted kernel is one over its grid, and others in it."""
        arch = dataclasses.replace(ARCH, layers=1, remat=remat, attention="library")

        @jax.grad
        def gradient(params):
            return surrogate(params, read_prompts(params, packed_rows, arch), packed_rows, arch)[0]

        params = parameter_shapes(arch)
        return jax.jit(gradient).lower(params).compile().as_text().count(" while(")

    everything = loops("none")
    assert everything > 7 and loops("matmuls") == loops("attention") == everything < loops("layers")


def test_only_what_a_kernel_takes_is_given_to_it(monkeypatch):
    query, (prompt, own), _ = group(prompt=70, tokens=130)
    number, start = jnp.int32(3), jnp.zeros(query.shape[:3], jnp.int32)
    serves = functools.partial(kernels.serves, start=None, window=None)
    assert not serves(query, [prompt])  # a CPU has none
    use(monkeypatch, "splash")
    assert serves(query, [prompt]) and serves(query, [])
    assert not serves(query, [prompt, own])  # a past
    assert not serves(query[:, :, :1], [])  # decoding
    assert not serves(query.astype(jnp.float16), [prompt])
    assert not serves(query[..., :6], [prompt])
    assert not serves(query, [prompt], start=start) and not serves(query, [prompt], window=number)
    use(monkeypatch, "group")
    assert serves(query, [prompt], start=start, window=number)


def test_splash_attention_lowers_for_a_tpu_at_the_shape_of_qwen3_0_6b(monkeypatch):
    monkeypatch.setitem(kernels.KERNELS, HERE, kernels.KERNELS["tpu"])
    like = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    heads, width, prompt, tokens = (1, 4, 8), 128, 4096, 921
    query = like((1, 4, tokens, 8, 2, width))
    own = KeyValues(like((*heads, width, tokens)), like((*heads, tokens, width)))
    shared = KeyValues(like((1, 8, width, prompt)), like((1, 8, prompt, width)))
    assert kernels.serves(query, [Part(shared, None)], None, None)

    def loss(query, shared, own, lengths):
        mask = (jnp.arange(prompt) < lengths[:, None])[:, None, None]
        return kernels.attend(query, [Part(shared, mask), Part(own, None)], width**-0.5).astype(jnp.float32).sum()

    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(query, shared, own, lengths)
    program = traced.lower(lowering_platforms=("tpu",)).as_text()
    for part in ("splash_mqa_fwd_segmented_residuals", "splash_mqa_dq_segmented", "splash_mqa_dkv_segmented"):
        assert part in program


@pytest.mark.processes
def test_over_devices_nothing_is_sent_and_the_numbers_are_those_of_one():
    found = printed("tests.support.kernels_program", 8, os.environ.get("XLA_FLAGS", ""))
    for case, facts in found.items():
        assert facts["gap"] < 2e-5, case
        assert facts["collectives"] == [], case


@pytest.mark.parametrize(
    ("kind", "attention", "chosen"),
    [
        ("NVIDIA H200", "auto", True),
        ("NVIDIA H100 80GB HBM3", "auto", True),
        ("Tesla T4", "auto", False),
        ("AMD Instinct MI300X", "auto", False),
        ("Tesla T4", "library", True),
        ("NVIDIA H200", "xla", False),
    ],
)
def test_kernels_are_chosen_where_they_were_measured_to_win_or_are_asked_for(monkeypatch, kind, attention, chosen):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(backends, "device_kind", lambda: kind)
    assert kernels.is_chosen(attention) == chosen
    assert (backends.backend() == backends.BACKENDS["gpu"]) == kind.startswith(("Tesla", "AMD"))
