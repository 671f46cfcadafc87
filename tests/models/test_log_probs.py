"""Chunked log-probabilities, compared with log-softmax; and arrays that the compiled program never holds."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backends import close, on_cpu
from tsallis_rl.models.backends import backend
from tsallis_rl.models.log_probs import Barred, scored_log_probs, token_log_probs
from tsallis_rl.models.sizes import LogitForm


def test_values_and_gradients_equal_log_softmax(monkeypatch):
    on_cpu(monkeypatch, chunk_elements=4 * 50)  # 4 tokens a chunk: 15 tokens leave a short last one
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = jax.random.normal(keys[0], (3, 5, 8)), jax.random.normal(keys[1], (8, 50))
    targets, coefficient = jax.random.randint(keys[2], (3, 5), 0, 50), jax.random.normal(keys[3], (3, 5))

    def whole(hidden, head):
        return jnp.take_along_axis(jax.nn.log_softmax(hidden @ head), targets[..., None], -1)[..., 0]

    np.testing.assert_allclose(token_log_probs(hidden, head, targets), whole(hidden, head), atol=close(1e-5))
    found = jax.jit(jax.grad(lambda h, w: (coefficient * token_log_probs(h, w, targets)).sum(), (0, 1)))(hidden, head)
    expected = jax.jit(jax.grad(lambda h, w: (coefficient * whole(h, w)).sum(), (0, 1)))(hidden, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=close(1e-5)), found, expected)


def test_no_compiled_array_holds_all_tokens_times_the_vocabulary():
    width, vocab = 8, 20_000
    tokens = 28 * backend().chunk_elements // vocab

    def loss(hidden, head, targets, coefficient):
        values = jax.lax.stop_gradient(token_log_probs(hidden, head, targets))
        return scored_log_probs(hidden, head, targets, coefficient)[0] + values.sum()

    shapes = [
        jax.ShapeDtypeStruct((1, tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
        jax.ShapeDtypeStruct((1, tokens), jnp.int32),
        jax.ShapeDtypeStruct((1, tokens), jnp.float32),
    ]
    program = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().as_text()
    sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"f32\[([\d,]+)\]", program)]
    assert backend().chunk_elements // 2 < max(sizes) <= backend().chunk_elements < tokens * vocab


@pytest.mark.parametrize(("elements", "shards"), [(1 << 20, 1), (3 * 3 * 50, 1), (3 * 50, 3)])
@pytest.mark.parametrize("form", [LogitForm(), LogitForm(cap=2.0), LogitForm(2.0, ((0, 3), (48, 60)))])
@pytest.mark.parametrize("is_barred", [False, True])
def test_a_weighted_sum_and_its_gradient_equal_log_softmax_and_skip_coefficients_of_zero(
    monkeypatch, elements, shards, form, is_barred
):
    on_cpu(monkeypatch, chunk_elements=elements)
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = jax.random.normal(keys[0], (3, 7, 8)), jax.random.normal(keys[1], (8, 50))
    targets = jax.random.randint(keys[2], (3, 7), 7, 48)
    coefficient = jax.random.normal(keys[3], (3, 7)).at[:, ::2].set(0).at[1].set(0)
    ids, counts = np.array([4, 6, 5]), np.arange(21).reshape(3, 7) % 4
    barred = Barred(jnp.tile(ids, (3, 1)), jnp.array(counts, jnp.int8)) if is_barred else None
    left_out = np.zeros((3, 7, 50), bool)
    for at in np.ndindex(3, 7) if is_barred else ():
        left_out[(*at, ids[: counts[at]])] = True
    for start, stop in form.absent:
        left_out[..., start:stop] = True

    def whole(hidden, head):
        logits = hidden @ head
        logits = jnp.where(left_out, -jnp.inf, form.cap * jnp.tanh(logits / form.cap) if form.cap else logits)
        values = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return (coefficient * values).sum(), values

    def weighted(hidden, head):
        return scored_log_probs(hidden, head, targets, coefficient, form, shards, barred)

    @jax.jit
    def results(hidden, head):
        tripled = jax.value_and_grad(lambda *x: jax.tree.map(lambda y: 3 * y, weighted(*x)), (0, 1), True)
        only_hidden = jax.grad(lambda h: weighted(h, head)[0])(hidden)  # a head that is not trained
        return tripled(hidden, head), jax.value_and_grad(whole, (0, 1), True)(hidden, head), only_hidden

    ((found, values), grads), ((expected, expected_values), expected_grads), only_hidden = results(hidden, head)
    np.testing.assert_allclose(found, 3 * expected, rtol=close(1e-5))
    np.testing.assert_allclose(values / 3, jnp.where(coefficient == 0, 0, expected_values), atol=close(1e-5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 3 * b, atol=close(2e-5)), grads, expected_grads)
    np.testing.assert_allclose(only_hidden, expected_grads[0], atol=close(1e-5))
