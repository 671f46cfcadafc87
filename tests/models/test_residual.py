"""The kernel that adds a product and norms the sum, interpreted, compared with the decoder's own sum and norm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from tests.support.backends import close
from tsallis_rl.models.attention.triton_programs import DTYPES
from tsallis_rl.models.layer import rms_norm
from tsallis_rl.models.residual import PendingSum, add_and_norm, count_pieces

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of a batch of rows [C, B], and of the product's pieces."""

    shards: int
    rows: int
    width: int
    pieces: int
    post_norm: bool = False


CASES = {
    "as Qwen3": Case(1, 6, 64, 8),
    "after a norm of its own": Case(2, 3, 64, 4, post_norm=True),
    "in one piece, of odd width": Case(3, 2, 24, 1),
    "in one piece, after a norm": Case(1, 1, 640, 1, post_norm=True),
}


def drawn(case: Case) -> tuple[PendingSum, jax.Array]:
    """Draws a residual that is far larger than the product, as deep layers have it, and the scale of the next norm."""
    rng = np.random.default_rng(0)
    shape = (case.shards, case.rows, 1, case.width)
    post_norm = rng.normal(size=case.width) if case.post_norm else None
    arrays = 30 * rng.normal(size=shape), rng.normal(size=(case.pieces, *shape)), post_norm
    as_float32 = [None if x is None else jnp.asarray(x, jnp.float32) for x in arrays]
    return PendingSum(*as_float32), jnp.asarray(rng.normal(size=case.width), jnp.float32)


def in_float64(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Adds and norms without any rounding."""
    x, scale = jax.tree.map(lambda x: np.asarray(x, np.float64), drawn(case))
    product = x.pieces.sum(0)
    if case.post_norm:
        product = product / np.sqrt((product**2).mean(-1, keepdims=True) + EPS) * x.post_norm
    summed = x.before + product
    return summed, summed / np.sqrt((summed**2).mean(-1, keepdims=True) + EPS) * scale


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kernel_adds_and_norms(case):
    for found, wanted in zip(add_and_norm(*drawn(case), EPS, "float32", interpret=True), in_float64(case), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kernel_rounds_where_the_decoder_does(case, dtype):
    x, scale = drawn(case)
    summed, normed = add_and_norm(x, scale, EPS, dtype, interpret=True)
    product = x.pieces.sum(0).astype(dtype)
    expected = x.before + (rms_norm(product, x.post_norm, EPS, dtype) if case.post_norm else product)
    assert (summed.dtype, normed.dtype) == (jnp.float32, dtype)
    # Sums in another order may round a number of the product to its neighbour: 2^-8 of it in bfloat16.
    same = np.asarray(summed == expected)
    assert same.mean() > 0.95
    np.testing.assert_allclose(summed, expected, atol=2**-8 * np.abs(x.pieces).sum(0).max())
    wanted = np.asarray(rms_norm(summed, scale, EPS, dtype), np.float32)
    np.testing.assert_allclose(np.asarray(normed, np.float32), wanted, rtol=2**-7)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "pieces"),
    [
        (256, 2048, 1024, 8),  # 16 tiles
        (512, 3072, 1024, 4),  # 32 tiles
        (2048, 2048, 1024, 1),  # 128 tiles are enough
        (128, 2064, 1024, 1),  # 2,048 inputs and an adapter's 16 rows
        (128, 1984, 1024, 4),  # pieces of 496, a multiple of 16
        (64, 2048, 16_384, 1),
    ],
)
def test_products_are_split_until_they_have_enough_tiles(rows, inputs, outputs, pieces):
    assert count_pieces(jnp.zeros((1, rows, 1, 1)), inputs, outputs) == pieces


def test_tiles_are_counted_on_each_device():
    mesh = AbstractMesh((2, 4, 1), ("data", "fsdp", "tensor"))
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((8, 256, 1, 1), jnp.float32, sharding=sharding)
    found = []
    jax.eval_shape(lambda x: found.append(count_pieces(x, 2048, 1024)), x)
    assert found == [8]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="Triton compiles for GPUs alone")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_gpu_computes_what_the_interpreter_does(case, dtype):
    found = add_and_norm(*drawn(case), EPS, dtype)
    wanted = add_and_norm(*drawn(case), EPS, dtype, interpret=True)
    for ours, theirs in zip(found, wanted, strict=True):
        ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
        assert (ours == theirs).mean() > 0.95
        np.testing.assert_allclose(ours, theirs, rtol=2**-6, atol=close(2**-6))
