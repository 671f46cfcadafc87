"""Log-probabilities of chosen tokens, in chunks, so that no [tokens, V] array is ever whole (docs/method.md §5)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models.backends import backend
from tsallis_rl.models.precision import einsum_float32
from tsallis_rl.models.shapes import Expected, check_shapes
from tsallis_rl.models.sizes import LogitForm

PLAIN = LogitForm()


class Barred(NamedTuple):
    """Ids that could not be sampled at a token, and are left out of its distribution.

    Attributes:
      ids: [P, E + 1], the same for every prompt.
      counts: [P, T] how many of them were barred at each token, counted from the first id.
    """

    ids: Array
    counts: Array


def output_logits(hidden: Array, head: Array, form: LogitForm = PLAIN) -> Array:
    """Multiplies hidden [..., D] by head [D, V] in float32, and caps the product; absent ids get −inf."""
    logits = einsum_float32("...d,dv->...v", hidden, head)
    if form.cap:
        logits = form.cap * jnp.tanh(logits / form.cap)
    if form.absent:
        logits = jnp.where(_is_absent(form, logits.shape[-1]), -jnp.inf, logits)
    return logits


def _is_absent(form: LogitForm, vocab: int) -> Array:
    ids = jnp.arange(vocab)
    return functools.reduce(jnp.logical_or, [(ids >= start) & (ids < stop) for start, stop in form.absent])


def bar_ids(logits: Array, counts: Array, ids: Array) -> Array:
    """Sets the logits [..., V] of the first `counts` [...] of ids [E + 1] to −inf."""
    is_barred = (ids[:, None] == jnp.arange(logits.shape[-1])) & (jnp.arange(len(ids)) < counts[..., None])[..., None]
    return jnp.where(is_barred.any(-2), -jnp.inf, logits)


def token_log_probs(hidden: Array, head: Array, targets: Array, form: LogitForm = PLAIN) -> Array:
    """Computes log softmax(output_logits(hidden, head, form))[targets] in float32.

    Args:
      hidden: [..., D] outputs of the decoder.
      head: [D, V] output matrix.
      targets: [...] token ids.
      form: of the logits.

    Returns:
      [...] float32 log-probabilities. For training use `scored_log_probs`: differentiating this one keeps all logits.
    """
    check_shapes(
        Expected("head", head, "D V"),
        Expected("hidden", hidden, "... D"),
        Expected("targets", targets, "...", jnp.integer),
    )
    vocab = head.shape[1]
    rows = len(targets) if targets.ndim > 1 else 1  # each chunk has tokens of all rows: devices hold different rows
    tokens = targets.size // rows
    chunk = min(tokens, max(1, backend().chunk_elements // (rows * vocab)))

    def chunked(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -tokens % chunk), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(rows, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    def one_chunk(inputs: tuple[Array, Array]) -> Array:
        chunk_hidden, chunk_targets = inputs
        logits = output_logits(chunk_hidden, head, form)
        chosen = jnp.take_along_axis(logits, chunk_targets[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    inputs = chunked(hidden.reshape(rows, tokens, -1)), chunked(targets.reshape(rows, tokens))
    log_probs = jax.lax.map(one_chunk, inputs).swapaxes(0, 1)
    return log_probs.reshape(rows, -1)[:, :tokens].reshape(targets.shape)


def scored_log_probs(
    hidden: Array,
    head: Array,
    targets: Array,
    coefficient: Array,
    form: LogitForm = PLAIN,
    shards: int = 1,
    barred: Barred | None = None,
) -> tuple[Array, Array]:
    """Sums coefficient × log softmax(output_logits(hidden, head, form))[targets] over all tokens, in float32.

    Tokens with coefficient 0 cost nothing. The gradient is computed in the forward pass, while a chunk's logits are in
    memory, so that they are computed only once.

    Args:
      hidden: [P, T, D] outputs of the decoder.
      head: [D, V] output matrix.
      targets: [P, T] token ids.
      coefficient: [P, T] float32, a constant.
      form: of the logits.
      shards: C, equal parts of P, one per device. Each sums its own gradient of the head; these are added once, after
        the last chunk.
      barred: ids that are left out of a token's distribution; None if there are none.

    Returns:
      The sum, and the log-probabilities [P, T], 0 where the coefficient is 0, which have no gradient.
    """
    check_shapes(
        Expected("head", head, "D V"),
        Expected("hidden", hidden, "P T D"),
        Expected("targets", targets, "P T", jnp.integer),
        Expected("coefficient", coefficient, "P T", jnp.floating),
    )
    if len(targets) % shards:
        raise ValueError(f"targets have shape {targets.shape}, expected [P, T] with P a multiple of shards = {shards}")
    return _scored_log_probs(hidden, head, _Chosen(targets, coefficient, barred), form, shards)


class _Chosen(NamedTuple):
    """The tokens that are scored; see `scored_log_probs`."""

    targets: Array
    coefficient: Array
    barred: Barred | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _scored_log_probs(hidden, head, chosen, form, shards):
    return _scored(hidden, head, chosen, form, shards, with_hidden=False, with_head=False)[0]


def _scored(
    hidden: Array,
    head: Array,
    chosen: _Chosen,
    form: LogitForm,
    shards: int,
    *,
    with_hidden: bool,
    with_head: bool,
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Computes the results, and the gradients of the sum to hidden and head, each if requested."""
    targets, coefficient, barred = chosen
    prompts, tokens, width = hidden.shape
    vocab = head.shape[1]
    chunk = min(tokens, max(1, backend().chunk_elements * shards // (prompts * vocab)))
    order, ordered = _scored_first(coefficient, -tokens % chunk)
    needed = ((coefficient != 0).sum(axis=1).max() + chunk - 1) // chunk

    def one_chunk(i: Array, so_far: tuple) -> tuple:
        total, log_probs, d_hidden, d_head = so_far
        index, w = (jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1) for x in (order, ordered))
        h = jnp.take_along_axis(hidden, index[..., None], axis=1)
        ids = jnp.take_along_axis(targets, index, axis=1)
        logits = output_logits(h, head, form)
        if barred:
            counts = jnp.take_along_axis(barred.counts, index, axis=1)
            logits = jax.vmap(bar_ids)(logits, counts, barred.ids)
        log_sum = jax.nn.logsumexp(logits, axis=-1)
        log_prob = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0] - log_sum
        total += jnp.where(w == 0, 0.0, w * log_prob).sum()
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=i * chunk, axis=1)
        log_probs = write(log_probs, jnp.where(w == 0, 0.0, log_prob))
        if with_hidden or with_head:
            d_logits = _logits_gradient(logits, log_sum, ids, w, form.cap).astype(head.dtype)
        if with_hidden:
            d_hidden = write(d_hidden, einsum_float32("ptv,dv->ptd", d_logits, head))
        if with_head:
            parts = [x.reshape(shards, -1, x.shape[-1]) for x in (h, d_logits)]
            d_head += einsum_float32("snd,snv->sdv", *parts)
        return total, log_probs, d_hidden, d_head

    start = (
        jnp.float32(0),
        jnp.zeros(order.shape, jnp.float32),
        jnp.zeros((*order.shape, width if with_hidden else 0), jnp.float32),
        jnp.zeros((shards, width if with_head else 0, vocab), jnp.float32),
    )
    total, log_probs, d_hidden, d_head = jax.lax.fori_loop(0, needed, one_chunk, start)
    # Chunks are written one after the other and reordered once at the end; adding each at its tokens' places would be
    # one scatter per chunk.
    place = jnp.argsort(order[:, :tokens], axis=1)
    log_probs = jnp.take_along_axis(log_probs, place, axis=1)
    d_hidden = jnp.take_along_axis(d_hidden, place[..., None], axis=1)
    return (total, log_probs), (d_hidden.astype(hidden.dtype), d_head.sum(axis=0).astype(head.dtype))


def _scored_first(coefficient: Array, padding: int) -> tuple[Array, Array]:
    """Sorts tokens with a nonzero coefficient first: [P, T] → their indices and coefficients, [P, T + padding].

    The padding repeats the last token, with coefficient 0.
    """
    tokens = coefficient.shape[1]
    order = jnp.argsort(coefficient == 0, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, padding)), mode="edge")
    return order, jnp.where(jnp.arange(tokens + padding) < tokens, jnp.take_along_axis(coefficient, order, axis=1), 0.0)


def _logits_gradient(logits: Array, log_sum: Array, ids: Array, coefficient: Array, cap: float) -> Array:
    """Computes the gradient [P, T, V] of Σ coefficient × log-probability of ids [P, T] to the logits before the cap."""
    one_hot = ids[..., None] == jnp.arange(logits.shape[-1])
    gradient = coefficient[..., None] * (one_hot - jnp.exp(logits - log_sum[..., None]))
    # Where a logit is −inf its gradient is 0, whatever the cap.
    return jnp.where(jnp.isneginf(logits), 0.0, gradient * (1 - (logits / cap) ** 2)) if cap else gradient


def _scored_forward(hidden, head, chosen, form, shards):
    values = jax.tree.map(lambda x: x.value, chosen)
    found = _scored(
        hidden.value, head.value, values, form, shards, with_hidden=hidden.perturbed, with_head=head.perturbed
    )
    return found


def _scored_backward(form: LogitForm, shards: int, grads: tuple[Array, Array], tangents: tuple) -> tuple:
    total = tangents[0]
    d_hidden, d_head = ((total * x).astype(x.dtype) if x.size else None for x in grads)
    return d_hidden, d_head, None


_scored_log_probs.defvjp(_scored_forward, _scored_backward, symbolic_zeros=True)
