"""Chooses the next token from its logits and two random numbers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

SAMPLING_BLOCK = 128  # tokens of a large vocabulary among which the second number chooses
COLDEST = 1e-6  # at temperature 0 logits are divided by this, which leaves only the largest within reach


class Truncation(NamedTuple):
    """The tokens that may be sampled at all.

    Attributes:
      top_k: the k most likely; 0 is all.
      top_p: of these the most likely that together reach this probability; 1 is all.
      min_p: and of these those with at least this share of the likeliest one's probability; 0 is all.
    """

    top_k: Array
    top_p: Array
    min_p: Array


class TokenSampling(NamedTuple):
    """The numbers of token sampling; traced, so that changing one compiles nothing.

    Attributes:
      temperature: logits are divided by it; 0 is greedy. Recorded log-probabilities are those of temperature 1 over the
        whole vocabulary, whatever it is.
      truncation: None samples from the whole vocabulary. Having a truncation is compiled, its numbers are not.
    """

    temperature: Array
    truncation: Truncation | None = None


def sample_tokens(uniform: Array, logits: Array, sampling: TokenSampling) -> Array:
    """Samples one token a row: two uniform numbers [C, B, 2], logits [C, B, V] → ids [C, B]."""
    logits = logits / jnp.maximum(sampling.temperature, COLDEST)
    if sampling.truncation is not None:
        logits = truncate_logits(logits, sampling.truncation)
    return jax.vmap(jax.vmap(sample_token))(uniform, logits)


def truncate_logits(logits: Array, truncation: Truncation) -> Array:
    """Sets logits [..., V] of tokens that are left out to −inf; what ties with the last one kept stays."""
    vocab = logits.shape[-1]
    ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    first = jnp.arange(vocab) < jnp.where(truncation.top_k > 0, truncation.top_k, vocab)
    share = jax.nn.softmax(jnp.where(first, ordered, -jnp.inf), axis=-1)
    needed = first & (jnp.cumsum(share, axis=-1) - share < truncation.top_p)
    least = jnp.where(needed, ordered, jnp.inf).min(axis=-1, keepdims=True)
    least = jnp.maximum(least, ordered[..., :1] + jnp.log(truncation.min_p))
    return jnp.where(logits >= least, logits, -jnp.inf)


def sample_token(uniform: Array, logits: Array) -> Array:
    """Samples from softmax(logits [V]) by the cumulative distribution and two uniform numbers [2].

    The first number chooses a block of SAMPLING_BLOCK tokens, by the blocks' log-sum-exps; the second chooses the token
    in it. Sums of some hundred terms lose no rare token, and neither a sort nor a random number for every token is
    needed. A block's tokens are spread evenly over the vocabulary, so that devices that share the vocabulary each hold
    part of every block and send its sum instead of logits.
    """
    padding = -logits.size % SAMPLING_BLOCK
    blocks = jnp.pad(logits, (0, padding), constant_values=-jnp.inf).reshape(SAMPLING_BLOCK, -1)

    def inverse(values: Array, u: Array) -> Array:
        cumulative = jnp.cumsum(jnp.exp(values - values.max()))
        return jnp.sum(cumulative <= u * cumulative[-1], dtype=jnp.int32)

    block = inverse(jax.nn.logsumexp(blocks, axis=0), uniform[0])
    return inverse(blocks[:, block], uniform[1]) * blocks.shape[1] + block
