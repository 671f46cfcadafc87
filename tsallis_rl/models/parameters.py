"""Makes a decoder's parameters, tells their shapes, and binds them to the module."""

import functools

import jax
from flax import nnx
from jax import Array

from tsallis_rl.models.decoder import Decoder
from tsallis_rl.models.sizes import Architecture


def initialize(arch: Architecture, key: Array) -> dict:
    """Makes fresh float32 parameters as a plain dict of arrays, which is jitted, sharded and saved."""
    return nnx.to_pure_dict(nnx.split(Decoder(arch, nnx.Rngs(key)))[1])


@functools.cache
def _abstract(arch: Architecture) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the module's structure, and the shapes of its parameters."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(arch, nnx.Rngs(0))))


def parameter_shapes(arch: Architecture) -> dict:
    """Returns the shapes and dtypes of fresh parameters, without making them."""
    return nnx.to_pure_dict(_abstract(arch)[1])


def bind(arch: Architecture, params: dict) -> Decoder:
    """Binds parameters to the module, cast once to the dtype of the computation."""
    graph, _ = _abstract(arch)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(arch.dtype), params))
