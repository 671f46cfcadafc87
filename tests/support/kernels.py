"""Attention kernels that a CPU can run, and inputs to compare them on."""

import functools

import jax
import jax.numpy as jnp

from tsallis_rl.models.attention import KeyValues, Part, group_kernel
from tsallis_rl.models.attention import library_kernels as kernels
from tsallis_rl.models.attention.group_tiles import Tile, Tiles

SMALL_TILES = Tiles(Tile(32, 16, 4, 2), Tile(16, 32, 4, 2), Tile(32, 16, 4, 2), Tile(16, 32, 4, 2))
RUN = {
    "splash": functools.partial(kernels.splash_attention, interpret=True),
    "group": functools.partial(group_kernel.attend, interpret=True, tiles=SMALL_TILES),
}


def kernel(name: str) -> kernels.Kernel:
    """Makes a kernel in a form that a CPU can run."""
    return kernels.Kernel(RUN[name], ("float32", "bfloat16"), (8, 16, 64, 128), 2, any_mask=name == "group")


def group(prompt: int, tokens: int, prompts=2, rollouts=2, kv_heads=2, heads=2, width=16):
    """Draws queries, the parts of keys that they see, and factors of the output; every other prompt has one key."""
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
