"""Log-probabilities of chosen tokens, in chunks: a [tokens, vocab] array is never held whole (METHOD §5)."""

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models.precision import einsum_float32

CHUNK_ELEMENTS = 1 << 23  # logits alive at a time: 32 MiB of float32


def output_logits(hidden: Array, head: Array, cap: float = 0.0) -> Array:
    """hidden [..., D] @ head [D, V] in float32, softly capped to (−cap, cap) unless cap is 0."""
    logits = einsum_float32("...d,dv->...v", hidden, head)
    return cap * jnp.tanh(logits / cap) if cap else logits


def token_log_probs(hidden: Array, head: Array, targets: Array, cap: float = 0.0) -> Array:
    """log softmax(output_logits(hidden, head, cap))[targets], in float32.

    Args:
      hidden: [..., D] outputs of the decoder.
      head: [D, V] output matrix.
      targets: [...] token ids.
      cap: of the logits; 0 is none.

    Returns:
      [...] float32 log-probabilities. Backward recomputes each chunk's logits, so they are alive one chunk at a time
      there as well.
    """
    vocab = head.shape[1]
    rows = len(targets) if targets.ndim > 1 else 1  # each chunk holds tokens of all rows: rows lie on different devices
    tokens = targets.size // rows
    chunk = min(tokens, max(1, CHUNK_ELEMENTS // (rows * vocab)))

    def chunked(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -tokens % chunk), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(rows, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one_chunk(inputs: tuple[Array, Array]) -> Array:
        chunk_hidden, chunk_targets = inputs
        logits = output_logits(chunk_hidden, head, cap)
        chosen = jnp.take_along_axis(logits, chunk_targets[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    inputs = chunked(hidden.reshape(rows, tokens, -1)), chunked(targets.reshape(rows, tokens))
    log_probs = jax.lax.map(one_chunk, inputs).swapaxes(0, 1)
    return log_probs.reshape(rows, -1)[:, :tokens].reshape(targets.shape)
