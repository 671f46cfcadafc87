"""The residual of decoding on a GPU: a product is added where the next norm reads the sum, by one kernel.

XLA makes one kernel that adds a product, whose sum over pieces of the matrix it splits off, and one that norms the
result, since the result is also the next residual. A step of decoding has two such pairs a layer, and takes as long as
starting its kernels.

Written in Pallas for its Triton compiler, without a gradient: rollouts are constants to an update.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from tsallis_rl.models.attention.triton_programs import load, span, store, triton_call
from tsallis_rl.models.sharding import prompt_shards, prompt_specs

PROGRAMS = 128  # tiles of a product that keep an H200 busy: it has 132 processors
TILE = 128  # rows and columns of a tile
MOST_PIECES = 8
LEAST_INPUTS = 16  # of a piece, and a factor of them


class PendingSum(NamedTuple):
    """A residual and a product that is still to be added.

    Attributes:
      before: [C, B, 1, D] float32, the residual.
      pieces: [pieces, C, B, 1, D] float32; their sum, rounded to the dtype of the computation, is the product.
      post_norm: [D] float32 scale of the product's own norm; None if it has none.
    """

    before: Array
    pieces: Array
    post_norm: Array | None


def count_pieces(x: Array, inputs: int, outputs: int) -> int:
    """Chooses how many pieces keep a GPU busy, for a product of x [C, B, …] with a matrix [inputs, outputs]."""
    mesh = jax.typeof(x).sharding.mesh
    rows = x.shape[0] * x.shape[1] // (prompt_shards(mesh.shape) if mesh.size >= 2 else 1)
    tiles = pl.cdiv(rows, TILE) * pl.cdiv(outputs, TILE)
    pieces = MOST_PIECES
    while pieces > 1 and (tiles * pieces > PROGRAMS or inputs % (pieces * LEAST_INPUTS)):
        pieces //= 2
    return pieces


def add_and_norm(
    x: PendingSum, scale: Array, eps: float, dtype: str, *, interpret: bool = False
) -> tuple[Array, Array]:
    """Adds the product and norms the sum.

    Args:
      x: see `PendingSum`.
      scale: [D] float32, of the norm of the sum.
      eps: of both norms.
      dtype: of the computation.
      interpret: emulates the kernel on any processor, slowly.

    Returns:
      the residual in float32, and what the norm makes of it in `dtype`: [C, B, 1, D] each.
    """
    run = functools.partial(_on_one_device, eps=eps, dtype=dtype, interpret=interpret)
    mesh = jax.typeof(x.before).sharding.mesh
    if mesh.size >= 2:  # 0 if arrays are on no mesh
        rows = prompt_specs(mesh, x.before)
        scales = jax.tree.map(lambda _: jax.P(), (x.post_norm, scale))
        specs = PendingSum(rows, jax.P(None, *rows), scales[0]), scales[1]
        run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(rows, rows), check_vma=False)
    return run(x, scale)


def _on_one_device(x: PendingSum, scale: Array, *, eps: float, dtype: str, interpret: bool) -> tuple[Array, Array]:
    shape, width = x.before.shape, x.before.shape[-1]
    before, pieces = x.before.reshape(-1, width), x.pieces.reshape(len(x.pieces), -1, width)
    summed, normed = triton_call(
        functools.partial(_kernel, eps=eps),
        "add_and_norm",
        warps=4 if width <= 2048 else 8,
        stages=1,
        interpret=interpret,
        out_shape=(jax.ShapeDtypeStruct(before.shape, jnp.float32), jax.ShapeDtypeStruct(before.shape, dtype)),
        grid=(len(before),),
    )(before, pieces, x.post_norm, scale)
    return summed.reshape(shape), normed.reshape(shape)


def _kernel(before: Any, pieces: Any, post_norm: Any, scale: Any, summed: Any, normed: Any, *, eps: float) -> None:
    """Adds the pieces of one row to it, and norms it; rounds where `rms_norm` and a product would.

    Indices of pieces are hidden as `span` hides its start.
    """
    row, width = pl.program_id(0), before.shape[1]
    columns = span(0, pl.next_power_of_2(width))
    inside = jnp.arange(pl.next_power_of_2(width)) < width

    def by_norm(x: Array, scale: Any) -> Array:
        inverse = jax.lax.rsqrt((x * x).sum() / width + eps)
        return x * inverse * load(scale.at[columns], inside)

    def rounded(x: Array) -> Array:
        return x.astype(normed.dtype).astype(jnp.float32)

    product = rounded(sum(load(pieces.at[s + 0 * row, row, columns], inside) for s in range(pieces.shape[0])))
    if post_norm is not None:
        product = rounded(by_norm(product, post_norm))
    found = load(before.at[row, columns], inside) + product
    store(summed.at[row, columns], found, inside)
    store(normed.at[row, columns], by_norm(found, scale), inside)
