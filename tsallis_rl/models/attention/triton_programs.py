"""Triton by Pallas, as our kernels use it.

It is imported where it is called, so that a jax without it serves other processors, and GPUs by XLA.
"""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

DTYPES = ("bfloat16", "float16")  # products of float32 numbers would be rounded to 10 bits
HEAD_DIMS = (16, 32, 64, 128, 256)
LEAST = 16  # rows and columns of the smallest product
LOG2_E = math.log2(math.e)  # exponentials are to base 2


def has_triton() -> bool:
    """Tells whether this jax has Triton, which versions after 0.12 are to lose."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def triton_call(
    kernel: Callable[..., None], name: str, warps: int, stages: int, *, interpret: bool, **arguments: Any
) -> Callable[..., Any]:
    """Makes a Pallas call in Triton.

    Args:
      kernel: of references to arrays.
      name: in profiles.
      warps: that share a program.
      stages: reads under way at a time in its loops.
      interpret: run it on any processor, slowly.
      arguments: of `pallas_call`.
    """
    from jax.experimental.pallas import triton

    parameters = triton.CompilerParams(num_warps=warps, num_stages=stages)
    return pl.pallas_call(kernel, compiler_params=parameters, interpret=interpret, name=name, **arguments)


def product(x: Array, y: Array) -> Array:
    """Multiplies [m, k] by [k, n] in float32."""
    return jax.lax.dot(x, y, preferred_element_type=jnp.float32)


def span(start: int, size: int) -> pl.Slice:
    """Takes `size` rows from `start` on, of which the last may lie behind the end of the axis and be masked.

    jax from 0.12 on refuses such rows where it knows their start, so that is hidden from it; compilers find it again.
    """
    return pl.ds(start + 0 * pl.program_id(0), size)


def load(ref: Any, inside: Array | None) -> Array:
    """Loads an array [n] or [n, h], with zeros for the rows that are not inside [n]; None is all inside."""
    from jax.experimental.pallas import triton

    return ref[...] if inside is None else triton.load(ref, mask=_rows(ref, inside), other=0)


def store(ref: Any, x: Array, inside: Array) -> None:
    """Stores the rows of x [n] or [n, h] that are inside [n], in the dtype of ref."""
    from jax.experimental.pallas import triton

    triton.store(ref, x.astype(ref.dtype), mask=_rows(ref, inside))


def _rows(ref: Any, inside: Array) -> Array:
    return inside[:, None] if len(ref.shape) > 1 else inside
