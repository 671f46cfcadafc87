"""The decoding kernels in Pallas' interpreter, compared with attention over the written cache by `attend`."""

import jax
import numpy as np
import pytest
from jax import Array

from tests.support.decoding import SMALL, Case, by_kernels, expected, given
from tsallis_rl.models.attention.triton_programs import DTYPES

CASES = {
    "rows of their own": Case(3, 5, 3),
    "a window": Case(3, 5, 3, window=9),
    "shared rows, merged batches": Case(2, 9, 6, slots=9),
    "shared rows, a window, odd groups": Case(2, 9, 6, group=3, cache=41, window=7, slots=9),
    "a prompt shorter than a tile": Case(1, 9, 1, kv_heads=1, group=4, head_dim=32, prompt=7, norms=False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kernels_write_and_attend_as_the_decoder_does(case):
    inputs = given(case)
    (attended, cache), (wanted, written) = by_kernels(case, inputs, interpret=True, tiles=SMALL), expected(case, inputs)
    np.testing.assert_allclose(attended, wanted, atol=2e-6)
    for ours, theirs in zip(cache, written, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("window", [None, 9])
def test_keys_of_rollouts_that_are_done_are_not_read(window):
    case = Case(3, 5, 3, window=window)
    inputs = given(case)
    wanted, _ = expected(case, inputs)
    done = np.arange(5) % 2 == 0
    before = np.arange(case.cache) < inputs["position"][0, 0]
    hidden = (done[:, None] & before)[None, :, None, :, None]
    inputs["cache"] = jax.tree.map(lambda x: np.where(hidden, np.nan, x), inputs["cache"])
    inputs["done"] = np.broadcast_to(done, inputs["position"].shape)
    attended, _ = by_kernels(case, inputs, interpret=True, tiles=SMALL)
    assert np.isfinite(attended).all()
    np.testing.assert_allclose(attended[:, ~done], wanted[:, ~done], atol=2e-6)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="Triton compiles for GPUs alone")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_gpu_computes_what_the_interpreter_does(case, dtype):
    inputs = given(case, dtype)
    attended, cache = by_kernels(case, inputs)
    wanted, written = expected(case, inputs)
    assert relative_error(attended, wanted) < 1e-2
    assert all(relative_error(ours, theirs) < 1e-2 for ours, theirs in zip(cache, written, strict=True))


def relative_error(found: Array, wanted: Array) -> float:
    """Returns ‖found − wanted‖ / ‖wanted‖."""
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
