"""Chooses the next token from its logits and two random numbers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.models.backends import backend
from tsallis_rl.models.sharding import local_size

SAMPLING_BLOCK = 128  # tokens in a block, among which the second random number chooses
COLDEST = 1e-30  # divides the logits at temperature 0, so that only the largest can be sampled; a float32 step apart
LEAST = 2.0**-24  # taken for a random number of 0, which would choose the first block however unlikely it is


class Truncation(NamedTuple):
    """The limits on which tokens may be sampled.

    Attributes:
      top_k: the k most likely; 0 is all.
      top_p: of these, the most likely that together reach this probability; 1 is all.
      min_p: of these, the tokens with at least this share of the likeliest one's probability; 0 is all.
    """

    top_k: Array
    top_p: Array
    min_p: Array


class TokenSampling(NamedTuple):
    """The numbers of token sampling; traced, so that changing one recompiles nothing.

    Attributes:
      temperature: divides the logits; 0 is greedy. Recorded log-probabilities are always those of temperature 1 over
        the whole vocabulary.
      truncation: None samples from the whole vocabulary. Whether there is one is compiled, its numbers are not.
    """

    temperature: Array
    truncation: Truncation | None = None


def sample_tokens(uniform: Array, logits: Array, sampling: TokenSampling) -> tuple[Array, Array]:
    """Samples one token a row: two uniform numbers [C, B, 2], logits [C, B, V] → ids [C, B].

    Also returns log Σ exp(logits), [C, B]: at temperature 1 and over all tokens, however the ids are sampled.
    """
    temperature = jnp.maximum(sampling.temperature, COLDEST)
    if sampling.truncation is None:
        return choose_tokens(uniform, logits, temperature)
    ids, _ = choose_tokens(uniform, truncate_logits(logits / temperature, sampling.truncation))
    return ids, jax.nn.logsumexp(logits, axis=-1)


def truncate_logits(logits: Array, truncation: Truncation) -> Array:
    """Sets logits [..., V] of truncated tokens to −inf; tokens that tie with the last one kept stay."""
    vocab = logits.shape[-1]
    ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    first = jnp.arange(vocab) < jnp.where(truncation.top_k > 0, truncation.top_k, vocab)
    share = jax.nn.softmax(jnp.where(first, ordered, -jnp.inf), axis=-1)
    needed = first & (jnp.cumsum(share, axis=-1) - share < truncation.top_p)
    least = jnp.where(needed, ordered, jnp.inf).min(axis=-1, keepdims=True)
    least = jnp.maximum(least, ordered[..., :1] + jnp.log(truncation.min_p))
    return jnp.where(logits >= least, logits, -jnp.inf)


def choose_tokens(uniform: Array, logits: Array, temperature: ArrayLike = 1.0) -> tuple[Array, Array]:
    """Samples ids [...] from softmax(logits [..., V] / temperature) by two uniform numbers [..., 2].

    Also returns log Σ exp(logits), [...].

    The first number chooses a block of SAMPLING_BLOCK tokens, by the blocks' cumulative probabilities; the second
    chooses the token in it. Sums of a few hundred terms keep rare tokens, down to about 1e-7, the resolution of a
    random number. Neither a sort nor a random number per token is needed. A block's tokens are spread evenly over the
    vocabulary, so that devices that share the vocabulary each hold part of every block and send its sum instead of
    logits.
    """
    vocab, top = logits.shape[-1], logits.max(axis=-1, keepdims=True)
    blocks = -(-vocab // SAMPLING_BLOCK)

    def padded(logits: Array, multiple: int) -> Array:
        padding = [(0, 0)] * (logits.ndim - 1) + [(0, -logits.shape[-1] % multiple)]
        return jnp.pad(logits, padding, constant_values=-jnp.inf)

    def exponentials(logits: Array, top: Array, temperature: ArrayLike = temperature) -> Array:
        return jnp.exp((logits - top) / temperature)

    choices, is_whole, log_sum = backend(), local_size(logits, -1, "vocab") == vocab, None
    if choices.cuts_vocabulary and is_whole:
        pieces = [padded(logits[..., i : i + blocks], blocks) for i in range(0, vocab, blocks)]
        block = _inverse(sum(exponentials(piece, top) for piece in pieces), uniform[..., 0])
        ids = block[..., None] + blocks * jnp.arange(len(pieces))
        found = jnp.take_along_axis(logits, jnp.minimum(ids, vocab - 1), axis=-1)
        of_block = jnp.where(ids < vocab, found, -jnp.inf)
    else:
        folded = padded(logits, SAMPLING_BLOCK).reshape(*logits.shape[:-1], SAMPLING_BLOCK, blocks)
        if choices.sums_together and is_whole:
            terms = exponentials(folded, top[..., None]), exponentials(folded, top[..., None], 1.0)
            of_blocks, total = jax.lax.reduce(terms, (jnp.zeros((), terms[0].dtype),) * 2, _add, (logits.ndim - 1,))
            log_sum = top[..., 0] + jnp.log(total.sum(axis=-1))
        else:
            of_blocks = exponentials(folded, top[..., None]).sum(axis=-2)
        block = _inverse(of_blocks, uniform[..., 0])
        of_block = jnp.take_along_axis(folded, block[..., None, None], axis=-1)[..., 0]
    place = _inverse(exponentials(of_block, of_block.max(axis=-1, keepdims=True)), uniform[..., 1])
    return place * blocks + block, jax.nn.logsumexp(logits, axis=-1) if log_sum is None else log_sum


def _add(x: tuple[Array, Array], y: tuple[Array, Array]) -> tuple[Array, Array]:
    return x[0] + y[0], x[1] + y[1]


def _inverse(mass: Array, u: Array) -> Array:
    """Finds the index [...] at which the cumulative sum of mass [..., n] exceeds the share u [...] of its total.

    It has mass, even where sums, added in the order of a tree, fall by rounding from one index to the next. 0 if none
    has, as of NaN.
    """
    cumulative, n = jnp.cumsum(mass, axis=-1), mass.shape[-1]
    index = jnp.arange(n, dtype=jnp.int32)
    exceeds = cumulative > jnp.maximum(u, LEAST)[..., None] * cumulative[..., -1:]
    # The first index that exceeds it; else the last one with mass, as 2 n − index.
    found = jnp.where(mass > 0, jnp.where(exceeds, index, 2 * n - index), 2 * n).min(axis=-1)
    return jnp.where(found < n, found, 2 * n - found)
