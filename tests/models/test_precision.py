"""Computing in bfloat16: master parameters, log-probabilities and gradients stay float32, and near those of float32."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backends import on_cpu
from tests.support.reference import learner_log_probs
from tests.support.rollouts import ARCH, PARAMS, coefficients, sample
from tsallis_rl.models import bind, initialize
from tsallis_rl.models.precision import einsum_float32
from tsallis_rl.training.learner import gradient
from tsallis_rl.training.packing import Slices, one_row_each

HALF = dataclasses.replace(ARCH, dtype="bfloat16")


def test_products_of_bfloat16_are_summed_in_float32():
    x = jnp.full((1, 4096), 1 / 3, jnp.bfloat16)
    found = jax.jit(functools.partial(einsum_float32, "ad,bd->ab"))(x, x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 4096 * np.float64(x[0, 0]) ** 2, rtol=1e-6)  # a bfloat16 sum is off by percents


def test_bfloat16_rolls_out_and_gives_nearly_the_log_probabilities_and_gradient_of_float32():
    rollouts = sample(num_rollouts=3, arch=HALF)
    assert np.isfinite(rollouts.log_w[rollouts.answer_length > 0]).all()
    scored = np.asarray(rollouts.score_mask | rollouts.path_mask)
    exact, half = (
        np.asarray(jax.jit(functools.partial(learner_log_probs, arch=arch))(PARAMS, rollouts))[scored]
        for arch in (ARCH, HALF)
    )
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.2  # a relative 2⁻⁸ of logits of a few nats
    rows = one_row_each(rollouts, coefficients(rollouts.log_w.shape))
    (exact, _), (half, measured) = (
        jax.jit(functools.partial(gradient, arch=arch))(PARAMS, rows) for arch in (ARCH, HALF)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    one, two = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (exact, half))
    assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) > 0.995
    assert measured["log_prob_gaps"].largest.max() < 0.2


def test_the_residual_is_rounded_nowhere():
    """Twenty-four layers: a residual in bfloat16 would be rounded 48 times, which is most of the error."""
    arch = dataclasses.replace(HALF, layers=24)
    params, tokens = initialize(arch, jax.random.key(0)), jnp.arange(8)[None]
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)  # what is common to both
    half, exact = (
        jax.jit(lambda params, arch=arch: bind(arch, params).prefill(tokens)[0])(params)
        for arch in (arch, dataclasses.replace(arch, dtype="float32"))
    )
    error = jnp.abs(half.astype(jnp.float32) - exact).mean() / jnp.abs(exact).mean()
    assert error < 0.007  # 0.0044; 0.0127 with a residual in bfloat16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_float32_are_asked_for_in_float32_forward_and_backward(monkeypatch, dtype):
    on_cpu(monkeypatch, widens=False)  # as on a GPU, whose default for float32 is TF32
    arch = dataclasses.replace(ARCH, dtype=dtype, context=ARCH.context + 1)  # traced anew
    rollouts = sample(num_rollouts=3)
    rows = one_row_each(rollouts, coefficients(rollouts.log_w.shape))
    text = str(jax.make_jaxpr(functools.partial(gradient, arch=arch))(PARAMS, rows))
    products = re.findall(r"= dot_general\[(.*?)\]\s", text, re.DOTALL)
    exact = [("HIGHEST" in product) for product in products]
    assert len(products) > 20 and (all(exact) if dtype == "float32" else not all(exact))


def test_parameters_are_cast_once_an_update_whatever_its_slices():
    rollouts = sample(num_rollouts=4)
    rows = one_row_each(rollouts, coefficients(rollouts.log_w.shape))
    arch = dataclasses.replace(ARCH, dtype="bfloat16")
    up = PARAMS["layers"]["up"].shape

    def casts(slices: Slices) -> int:
        text = str(jax.make_jaxpr(functools.partial(gradient, arch=arch, slices=slices))(PARAMS, rows))
        return text.count(f"bf16[{','.join(map(str, up))}] = convert_element_type")

    # Those of gate and up, which have the same shape.
    assert casts(Slices()) == casts(Slices(micro_batches=2, micro_rollouts=1)) == 2
