"""Which token comes next, from logits and two random numbers."""

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.sampler.record import Truncation

DRAW_BLOCK = 128  # tokens of a large vocabulary that are drawn from together


def truncated(logits: Array, truncation: Truncation) -> Array:
    """Logits [..., V] with −inf at tokens that are not to be drawn; what ties with the last one drawn stays."""
    top_k, top_p, min_p = truncation
    ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    first = jnp.arange(logits.shape[-1]) < jnp.where(top_k > 0, top_k, logits.shape[-1])
    share = jax.nn.softmax(jnp.where(first, ordered, -jnp.inf), axis=-1)
    needed = first & (jnp.cumsum(share, axis=-1) - share < top_p)
    least = jnp.where(needed, ordered, jnp.inf).min(axis=-1, keepdims=True)
    least = jnp.maximum(least, ordered[..., :1] + jnp.log(min_p))
    return jnp.where(logits >= least, logits, -jnp.inf)


def draw(uniform: Array, logits: Array) -> Array:
    """A token of softmax(logits [V]) from two numbers uniform in [0, 1), by the cumulative distribution.

    First the block of DRAW_BLOCK tokens, by the blocks' log-sum-exps, then the token in it: sums of some hundred terms
    lose no rare token, and neither a sort nor a random number for every token is needed. A block's tokens are spread
    evenly over the vocabulary, so that devices that share it each hold part of every block, and send its sum instead of
    logits.
    """
    padding = -logits.size % DRAW_BLOCK
    blocks = jnp.pad(logits, (0, padding), constant_values=-jnp.inf).reshape(DRAW_BLOCK, -1)

    def inverse(values: Array, u: Array) -> Array:
        cumulative = jnp.cumsum(jnp.exp(values - values.max()))
        return jnp.sum(cumulative <= u * cumulative[-1], dtype=jnp.int32)

    block = inverse(jax.nn.logsumexp(blocks, axis=0), uniform[0])
    return inverse(blocks[:, block], uniform[1]) * blocks.shape[1] + block


def uniforms(keys: Array, steps: Array) -> Array:
    """The numbers [L, B, S, 2] that rollouts with keys [L, B] draw with at steps [L, B, S]."""

    def of_rollout(key: Array, steps: Array) -> Array:
        return jax.vmap(lambda step: jax.random.uniform(jax.random.fold_in(key, step), (2,)))(steps)

    return jax.vmap(jax.vmap(of_rollout))(keys, steps)
