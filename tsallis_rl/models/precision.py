"""Precision of products: float32 is float32 on every processor, and sums are float32 whatever the factors are."""

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models.backends import backend


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Returns the precision of products of this dtype: the highest for float32, where GPUs and TPUs would use less."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def einsum_float32(subscripts: str, x: Array, y: Array) -> Array:
    """Contracts x and y by einsum subscripts, accumulated and returned in float32."""
    if backend().widens:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    precision = precision_of(jnp.promote_types(x.dtype, y.dtype))
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32, precision=precision)
