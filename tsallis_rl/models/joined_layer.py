"""A layer for decoding: projections of the same input are one matrix, with the factors of their adapters as rows below.

    [x, x A] [W; (α/r) B]    in place of    x W + (α/r) x A B

A decoding step multiplies few rows by each matrix, so it takes as long as reading the matrices and starting kernels.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.scipy.linalg import block_diag

from tsallis_rl.models import lora, residual
from tsallis_rl.models.attention import decoding
from tsallis_rl.models.layer import Layer, norm_scale, project
from tsallis_rl.models.precision import einsum_float32
from tsallis_rl.models.residual import LEAST_INPUTS, MOST_PIECES, PendingSum
from tsallis_rl.models.sizes import PROJECTIONS, Architecture

_GROUPS = (("query", "key", "value"), ("out",), ("gate", "up"), ("down",))  # each is projected by at once in `Layer`
_PARTS = {name + suffix for name in PROJECTIONS for suffix in ("", lora.IN, lora.OUT)}


def joined(layer: Layer) -> Layer:
    """Joins the projections of a layer, inside jit; leaves them alone if they are split over devices."""
    mesh = jax.typeof(layer.query[...]).sharding.mesh
    return layer if mesh.shape.get("tensor", 1) > 1 else JoinedLayer(layer)


class JoinedLayer(Layer):
    """A layer with the matrices query_key_value, out, gate_up and down, each [inputs + adapters' rows, outputs]."""

    def __init__(self, layer: Layer):
        # Scales of norms are read in float32: cast here, since XLA casts them for every token otherwise.
        self.arch = dataclasses.replace(layer.arch, norm_offset=0.0)
        params = nnx.to_pure_dict(nnx.state(layer))
        for name in sorted(params.keys() - _PARTS):
            param = getattr(layer, name)
            setattr(self, name, nnx.Param(norm_scale(param, layer.arch) if name.endswith("_norm") else param[...]))
        for group in _GROUPS:
            name, (matrix, into) = "_".join(group), _join(params, self.arch, group)
            setattr(self, name, nnx.Param(matrix))
            if into is not None:
                setattr(self, name + lora.IN, nnx.Param(into))

    def _project_by(self, x: Array, *names: str) -> list[Array]:
        name, shapes = "_".join(names), [self.arch.projection_shape(name)[1] for name in names]
        flat = self._with_adapters(x, names)
        # Of this shape, XLA sees that a kernel that puts heads together again takes them as they are.
        product = project(flat, getattr(self, name)[...]).reshape(x.shape[0], x.shape[1] * x.shape[2], -1)
        parts = jnp.split(product, list(itertools.accumulate(map(math.prod, shapes)))[:-1], axis=-1)
        return [part.reshape(*x.shape[:3], *shape) for part, shape in zip(parts, shapes, strict=True)]

    def _with_adapters(self, x: Array, names: tuple[str, ...]) -> Array:
        """Flattens inputs [P, M, T, …], and appends what the adapters' first factors make of them."""
        flat = x.reshape(*x.shape[:3], -1)
        if set(names) & set(self.arch.adapted):
            return jnp.concatenate([flat, project(flat, getattr(self, "_".join(names) + lora.IN)[...])], axis=-1)
        return flat

    def _norm_residual(self, x: Array | PendingSum, scale: nnx.Param) -> tuple[Array, Array]:
        if isinstance(x, PendingSum):
            summed, normed = residual.add_and_norm(x, norm_scale(scale, self.arch), self.arch.norm_eps, self.arch.dtype)
            return normed, summed
        return super()._norm_residual(x, scale)

    def _add_projected(self, x: Array, inputs: Array, name: str, post_norm: str) -> Array | PendingSum:
        if not (inputs.shape[2] == 1 and decoding.uses_kernel(self.arch)):
            return super()._add_projected(x, inputs, name, post_norm)
        flat, matrix = self._with_adapters(inputs, (name,)), getattr(self, name)[...]
        pieces = residual.count_pieces(flat, *matrix.shape)
        products = einsum_float32(
            "cbtsk,skn->scbtn",
            flat.reshape(*flat.shape[:3], pieces, -1),
            matrix.reshape(pieces, -1, matrix.shape[1]),
        )
        own_norm = norm_scale(getattr(self, post_norm), self.arch) if self.arch.post_norms else None
        return PendingSum(x, products, own_norm)


def _join(params: dict, arch: Architecture, group: tuple[str, ...]) -> tuple[Array, Array | None]:
    """Joins projections [inputs, outputs], and stacks their adapters' second factors below.

    Returns:
      [inputs + rows, all outputs], and the first factors of these rows, [inputs, rows], or None without adapters.
    """
    columns = {name: math.prod(arch.projection_shape(name)[1]) for name in group}
    matrix = jnp.concatenate([params[name].reshape(-1, columns[name]) for name in group], axis=1)
    adapted = [name for name in group if name in arch.adapted]
    if not adapted:
        return matrix, None
    first = [params[name + lora.IN].reshape(-1, arch.lora_rank) for name in adapted]
    second = [
        arch.lora_scale * params[name + lora.OUT].reshape(-1, columns[name])
        if name in adapted
        else jnp.zeros((0, columns[name]), matrix.dtype)
        for name in group
    ]
    matrix, into = jnp.concatenate([matrix, block_diag(*second)]), jnp.concatenate(first, axis=1)
    # Rows of zeros, without which XLA would pad the matrix for every token to split it.
    zeros = -len(matrix) % (MOST_PIECES * LEAST_INPUTS) if len(group) == 1 and decoding.uses_kernel(arch) else 0
    return jnp.pad(matrix, ((0, zeros), (0, 0))), jnp.pad(into, ((0, 0), (0, zeros)))
