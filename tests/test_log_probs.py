"""Chunked log-probabilities against log-softmax, and what the compiled program never holds."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from tsallis_rl.models import log_probs
from tsallis_rl.models.log_probs import token_log_probs


def test_values_and_gradients_equal_log_softmax(monkeypatch):
    monkeypatch.setattr(log_probs, "CHUNK_ELEMENTS", 4 * 50)  # 4 tokens a chunk: 15 tokens leave a short last one
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = jax.random.normal(keys[0], (3, 5, 8)), jax.random.normal(keys[1], (8, 50))
    targets, weight = jax.random.randint(keys[2], (3, 5), 0, 50), jax.random.normal(keys[3], (3, 5))

    def whole(hidden, head):
        return jnp.take_along_axis(jax.nn.log_softmax(hidden @ head), targets[..., None], -1)[..., 0]

    np.testing.assert_allclose(token_log_probs(hidden, head, targets), whole(hidden, head), atol=1e-5)
    found = jax.grad(lambda h, w: (weight * token_log_probs(h, w, targets)).sum(), (0, 1))(hidden, head)
    expected = jax.grad(lambda h, w: (weight * whole(h, w)).sum(), (0, 1))(hidden, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_no_compiled_array_holds_all_tokens_times_the_vocabulary():
    tokens, width, vocab = 3000, 8, 20_000

    def loss(hidden, head, targets):
        return token_log_probs(hidden, head, targets).sum()

    shapes = [
        jax.ShapeDtypeStruct((tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    ]
    program = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().as_text()
    sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"f32\[([\d,]+)\]", program)]
    assert log_probs.CHUNK_ELEMENTS // 2 < max(sizes) <= log_probs.CHUNK_ELEMENTS < tokens * vocab
