"""Random keys: every draw has an address of its own, so no draw depends on another.

A key is a function of (seed, purpose, step, index of the example); the sampler folds the rollout and the position into
it. A rollout therefore depends on its address alone: not on the other rollouts of its batch, nor on what ran before.
"""

import functools

import jax
from jax import Array

# Purposes of keys. The reference rollouts of gradient comparisons take REFERENCE and the numbers after it.
TRAIN, VALIDATION, TEST, ESTIMATOR, REFERENCE = range(5)
HINTED = 1 << 29  # rollouts of hinted prompts, far above those numbers
ALIAS = 1 << 30


@jax.jit
def example_keys(seed: int, purpose: int, step: int, indices: Array) -> Array:
    """Makes one typed key per example [P]; `indices` are positions in the step's batch or in the split."""
    key = jax.random.key(seed)
    for number in (purpose, step):
        key = jax.random.fold_in(key, number)
    return jax.vmap(functools.partial(jax.random.fold_in, key))(indices)


def rollout_keys(keys: Array, rollout: Array) -> Array:
    """Folds the number of the rollout [C, B] into its example's key [C, B]."""
    return jax.vmap(jax.vmap(jax.random.fold_in))(keys, rollout)


def uniforms(keys: Array, positions: Array) -> Array:
    """Draws two numbers in [0, 1) for every position: rollouts' keys [C, B], positions [C, B, T] → [C, B, T, 2]."""

    def of_rollout(key: Array, positions: Array) -> Array:
        return jax.vmap(lambda position: jax.random.uniform(jax.random.fold_in(key, position), (2,)))(positions)

    return jax.vmap(jax.vmap(of_rollout))(keys, positions)
