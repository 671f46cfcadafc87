"""Triton through Pallas, as our kernels use it.

It is imported only when called, so that a jax without it still works: on other processors, and on GPUs by XLA.
"""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

DTYPES = ("bfloat16", "float16")  # float32 factors would be rounded to 10 bits
HEAD_DIMS = (16, 32, 64, 128, 256)
LEAST = 16  # rows and columns of the smallest product
LOG2_E = math.log2(math.e)  # exponentials are to base 2


def has_triton() -> bool:
    """Returns whether this jax has Triton, which versions after 0.12 are expected to drop."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def triton_call(
    kernel: Callable[..., None], name: str, warps: int, stages: int, *, interpret: bool, **arguments: Any
) -> Callable[..., Any]:
    """Makes a Pallas call in Triton.

    Args:
      kernel: takes references to arrays.
      name: shown in profiles.
      warps: warps per program.
      stages: pipeline stages, reads in flight at a time in its loops.
      interpret: emulate it on any processor, slowly.
      arguments: passed on to `pallas_call`.
    """
    from jax.experimental.pallas import triton

    parameters = triton.CompilerParams(num_warps=warps, num_stages=stages)
    return pl.pallas_call(kernel, compiler_params=parameters, interpret=interpret, name=name, **arguments)


def product(x: Array, y: Array) -> Array:
    """Multiplies [m, k] by [k, n] in float32."""
    return jax.lax.dot(x, y, preferred_element_type=jnp.float32)


def span(start: int, size: int) -> pl.Slice:
    """Slices `size` rows from `start` on; the last ones may lie beyond the end of the axis, and must then be masked.

    jax from 0.12 on refuses such slices if it knows their start, so it is hidden; compilers find it again.
    """
    return pl.ds(start + 0 * pl.program_id(0), size)


def load(ref: Any, inside: Array | None) -> Array:
    """Loads an array [n] or [n, h], with zeros for rows that are not `inside` [n]; None is all inside."""
    from jax.experimental.pallas import triton

    return ref[...] if inside is None else triton.load(ref, mask=_rows(ref, inside), other=0)


def store(ref: Any, x: Array, inside: Array) -> None:
    """Stores the rows of x [n] or [n, h] that are `inside` [n], in the dtype of ref."""
    from jax.experimental.pallas import triton

    triton.store(ref, x.astype(ref.dtype), mask=_rows(ref, inside))


def _rows(ref: Any, inside: Array) -> Array:
    return inside[:, None] if len(ref.shape) > 1 else inside
