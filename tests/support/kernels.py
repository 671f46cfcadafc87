"""Attention kernels and inputs to compare them on."""

import functools

import jax
import jax.numpy as jnp

from tsallis_rl.models.attention import KeyValues, Part
from tsallis_rl.models.attention import library_kernels as kernels

RUN = {
    "splash": functools.partial(kernels.splash_attention, interpret=True),
    "dot_product": functools.partial(kernels.dot_product_attention, implementation="xla"),
}


def group(prompt: int, tokens: int, prompts=2, rollouts=2, kv_heads=2, heads=2, width=16):
    """Queries, the parts of keys they see, every other prompt with one key alone, and factors of the output."""
    keys = iter(jax.random.split(jax.random.key(0), 6))
    lead = (prompts, rollouts, kv_heads)

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape)

    own = KeyValues(normal(*lead, width, tokens), normal(*lead, tokens, width))
    shared = KeyValues(normal(prompts, kv_heads, width, prompt), normal(prompts, kv_heads, prompt, width))
    lengths = jnp.array([[prompt - 1], [1]] * (prompts // 2))
    parts = [
        Part(shared, (jnp.arange(prompt) < lengths)[:, None, None]),
        Part(own, jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]),
    ]
    queries = (prompts, rollouts, tokens, kv_heads, heads, width)
    return normal(*queries), parts, normal(*queries)
