"""The TPU's attention kernel, interpreted, against the two merged parts that every other backend computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsallis_rl.models.group_attention import LANES, Layout, attend_group

P, K, G, H = 2, 1, 2, LANES
KEYS = jax.random.split(jax.random.key(0), 4)


def arrays(layout: Layout, dtype: str) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
    """Query, key and value, which tokens are valid, and weights that are zero where an output means nothing."""
    shapes = ((P, layout.length, K, G, H), (P, layout.length, K, H), (P, layout.length, K, H))
    inputs = tuple(jax.random.normal(key, shape).astype(dtype) for key, shape in zip(KEYS, shapes, strict=False))
    prompt = jnp.arange(layout.prompt) < jnp.array([layout.prompt - 1, 5])[:, None]  # of different lengths
    valid = jnp.concatenate([prompt, jnp.ones((P, layout.rollouts * layout.tokens), bool)], axis=1)
    weights = jax.random.normal(KEYS[3], shapes[0]) * valid[..., None, None, None]
    return inputs, valid, weights


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 2e-6), ("bfloat16", 2e-2)])  # roundings of either dtype
def test_the_kernel_of_a_tpu_attends_as_the_two_parts_do_and_has_the_same_gradient(dtype, gap):
    layout = Layout(prompt=50, rollouts=3, tokens=37)
    inputs, valid, weights = arrays(layout, dtype)

    def outputs(backend: str):
        run = functools.partial(attend_group, valid=valid, layout=layout, scale=H**-0.5, backend=backend)

        @jax.jit
        def both(query, key, value):
            def loss(*inputs):
                return (run(*inputs).astype(jnp.float32) * weights).sum()

            shown = run(query, key, value) * (weights != 0)
            return shown, jax.grad(loss, argnums=(0, 1, 2))(query, key, value)

        return jax.tree.leaves(both(*inputs))

    for found, expected in zip(outputs("interpret"), outputs("cpu"), strict=True):
        found, expected = np.float32(found), np.float32(expected)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(found, expected, atol=gap * np.abs(expected).max())


def test_a_rollout_sees_the_prompt_and_itself_alone():
    layout = Layout(prompt=30, rollouts=2, tokens=20)
    (query, key, value), valid, _ = arrays(layout, "float32")
    run = jax.jit(functools.partial(attend_group, valid=valid, layout=layout, scale=1.0, backend="interpret"))
    changed = run(query, key.at[:, 30:50].add(1.0), value.at[:, 30:50].add(1.0)) != run(query, key, value)
    assert changed[:, 30:50].any() and not changed[:, 50:].any() and not changed[:, :30].any()
