"""Log-probabilities of chosen tokens, in chunks: a [tokens, vocab] array is never held whole (METHOD §5)."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models.precision import einsum_float32

# Logits alive at a time: 8 MiB of float32 on a CPU, near its cache; on accelerators enough tokens that reading the head
# for them costs less than multiplying by it.
CHUNK_ELEMENTS = {"cpu": 1 << 21, "gpu": 1 << 26, "tpu": 1 << 26}


def chunk_elements() -> int:
    """CHUNK_ELEMENTS of the devices here."""
    return CHUNK_ELEMENTS[jax.default_backend()]


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
      [...] float32 log-probabilities. Not for training: its gradient keeps all logits; `weighted_log_probs` does not.
    """
    vocab = head.shape[1]
    rows = len(targets) if targets.ndim > 1 else 1  # each chunk holds tokens of all rows: rows lie on different devices
    tokens = targets.size // rows
    chunk = min(tokens, max(1, chunk_elements() // (rows * vocab)))

    def chunked(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -tokens % chunk), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(rows, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    def one_chunk(inputs: tuple[Array, Array]) -> Array:
        chunk_hidden, chunk_targets = inputs
        logits = output_logits(chunk_hidden, head, cap)
        chosen = jnp.take_along_axis(logits, chunk_targets[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    inputs = chunked(hidden.reshape(rows, tokens, -1)), chunked(targets.reshape(rows, tokens))
    log_probs = jax.lax.map(one_chunk, inputs).swapaxes(0, 1)
    return log_probs.reshape(rows, -1)[:, :tokens].reshape(targets.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def weighted_log_probs(
    hidden: Array, head: Array, targets: Array, weight: Array, cap: float = 0.0, shards: int = 1
) -> tuple[Array, Array]:
    """Σ weight × log softmax(output_logits(hidden, head, cap))[targets], in float32; tokens of weight 0 cost nothing.

    The gradient is made in the forward pass, while a chunk's logits are there, so they are computed once.

    Args:
      hidden: [P, T, D] outputs of the decoder.
      head: [D, V] output matrix.
      targets: [P, T] token ids.
      weight: [P, T] float32, a constant.
      cap: of the logits; 0 is none.
      shards: equal parts of P that lie on devices of their own. Each sums its own gradient of the head, and these are
        added once, behind the last chunk.

    Returns:
      The sum, and the log-probabilities [P, T], 0 where the weight is, which are constants to differentiation.
    """
    return _weighted(hidden, head, targets, weight, cap, shards, with_hidden=False, with_head=False)[0]


def _weighted(
    hidden: Array, head: Array, targets: Array, weight: Array, cap: float, shards: int, *,
    with_hidden: bool, with_head: bool,
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:  # fmt: skip
    """The results, and the gradients of the sum to hidden and head as far as they are wanted."""
    prompts, tokens, width = hidden.shape
    vocab = head.shape[1]
    chunk = min(tokens, max(1, chunk_elements() * shards // (prompts * vocab)))
    order, ordered = _weighted_first(weight, -tokens % chunk)
    needed = ((weight != 0).sum(axis=1).max() + chunk - 1) // chunk

    added = jax.vmap(lambda whole, at, values: whole.at[at].add(values))  # each prompt where it lies

    def one_chunk(i: Array, so_far: tuple) -> tuple:
        total, log_probs, d_hidden, d_head = so_far
        place = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk, axis=1)
        w = jax.lax.dynamic_slice_in_dim(ordered, i * chunk, chunk, axis=1)
        h = jnp.take_along_axis(hidden, place[..., None], axis=1)
        ids = jnp.take_along_axis(targets, place, axis=1)
        logits = output_logits(h, head, cap)
        log_sum = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0] - log_sum
        total += (w * chosen).sum()
        log_probs = added(log_probs, place, jnp.where(w == 0, 0.0, chosen))
        if with_hidden or with_head:
            d_logits = _logits_gradient(logits, log_sum, ids, w, cap).astype(head.dtype)
        if with_hidden:
            d_hidden = added(d_hidden, place, einsum_float32("ptv,dv->ptd", d_logits, head))
        if with_head:
            parts = [x.reshape(shards, -1, x.shape[-1]) for x in (h, d_logits)]
            d_head += einsum_float32("snd,snv->sdv", *parts)
        return total, log_probs, d_hidden, d_head

    start = (
        jnp.float32(0),
        jnp.zeros(targets.shape, jnp.float32),
        jnp.zeros((prompts, tokens, width if with_hidden else 0), jnp.float32),
        jnp.zeros((shards, width if with_head else 0, vocab), jnp.float32),
    )
    total, log_probs, d_hidden, d_head = jax.lax.fori_loop(0, needed, one_chunk, start)
    return (total, log_probs), (d_hidden.astype(hidden.dtype), d_head.sum(axis=0).astype(head.dtype))


def _weighted_first(weight: Array, padding: int) -> tuple[Array, Array]:
    """Places [P, T + padding] of the tokens with weight [P, T], then of the others; and the weights in that order.

    What fills up is the last token with weight 0.
    """
    tokens = weight.shape[1]
    order = jnp.argsort(weight == 0, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, padding)), mode="edge")
    return order, jnp.where(jnp.arange(tokens + padding) < tokens, jnp.take_along_axis(weight, order, axis=1), 0.0)


def _logits_gradient(logits: Array, log_sum: Array, ids: Array, weight: Array, cap: float) -> Array:
    """Of Σ weight × log-probability of ids [P, T] to the logits [P, T, V], before they were capped."""
    one_hot = ids[..., None] == jnp.arange(logits.shape[-1])
    gradient = weight[..., None] * (one_hot - jnp.exp(logits - log_sum[..., None]))
    return gradient * (1 - (logits / cap) ** 2) if cap else gradient


def _weighted_forward(hidden, head, targets, weight, cap, shards):
    values = [x.value for x in (hidden, head, targets, weight)]
    return _weighted(*values, cap, shards, with_hidden=hidden.perturbed, with_head=head.perturbed)


def _weighted_backward(cap: float, shards: int, grads: tuple[Array, Array], tangents: tuple) -> tuple:
    total = tangents[0]
    d_hidden, d_head = ((total * x).astype(x.dtype) if x.size else None for x in grads)
    return d_hidden, d_head, None, None


weighted_log_probs.defvjp(_weighted_forward, _weighted_backward, symbolic_zeros=True)
