"""Products whose sums are float32 whatever their factors are: attention scores and logits."""

import jax
import jax.numpy as jnp
from jax import Array


def einsum_float32(subscripts: str, x: Array, y: Array) -> Array:
    """Contracts x and y by einsum subscripts, accumulated and returned in float32."""
    if jax.default_backend() == "cpu":  # XLA has no kernel there for bfloat16 factors of a float32 product
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)
