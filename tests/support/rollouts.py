"""A tiny model, a group of prompts and rollouts of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tsallis_rl.models import SIZES, bind, initialize, token_log_probs
from tsallis_rl.objectives import Coefficients
from tsallis_rl.sampler.record import (
    TRAIN,
    Group,
    Rollouts,
    Sampling,
    address,
)
from tsallis_rl.sampler.sampler import roll_out

VOCAB, THINK_END, ENDS, JOINT = 9, 2, (3, 4), (5, 6)
ARCH = dataclasses.replace(SIZES["tiny"], vocab_size=VOCAB, kv_heads=2)
PARAMS = jax.jit(functools.partial(initialize, ARCH))(jax.random.key(0))
P, M, Z, A = 4, 16, 6, 5
SAMPLING = Sampling(
    temperature=jnp.float32(1),
    budget=jnp.int32(Z),
    end_of_think=jnp.int32(THINK_END),
    end_of_sequence=jnp.array(ENDS, jnp.int32),
    joint=jnp.array(JOINT, jnp.int32),
    close_unclosed=jnp.array(False),
)
RNG = np.random.default_rng(0)
GROUP = Group(
    prompt=RNG.integers(VOCAB, size=(P, 7)).astype(np.int32),
    prompt_length=np.array([7, 3, 5, 1], np.int32),
    gold=RNG.integers(5, VOCAB, size=(P, A)).astype(np.int32),
    gold_length=np.array([5, 2, 3, 1], np.int32),
)


def sample(group: Group = GROUP, *, step: int = 0, slots=None, sampling: Sampling = SAMPLING, **static) -> Rollouts:
    slots = np.arange(len(group.prompt)) if slots is None else slots
    options = {"arch": ARCH, "num_rollouts": M, "max_rationale": Z} | static
    return jax.device_get(roll_out(PARAMS, group, address(0, TRAIN, step, slots), sampling, **options))


@jax.jit
def _flat_log_probs(tokens: jax.Array) -> jax.Array:
    decoder = bind(ARCH, PARAMS)
    hidden, _ = decoder.prefill(tokens[None])
    return token_log_probs(hidden[:, :-1], decoder.output_head(), tokens[None, 1:])[0]


def flat_log_probs(prompt: np.ndarray, continuation: np.ndarray) -> np.ndarray:
    """log p of each continuation token in one flat sequence: the independent way to score."""
    tokens = np.concatenate([prompt, continuation])
    padded = np.pad(tokens, (0, 32 - len(tokens)))
    return np.asarray(_flat_log_probs(padded))[len(prompt) - 1 : len(tokens) - 1]


KEYS = jax.random.split(jax.random.key(7))


def coefficients(shape: tuple[int, ...]) -> Coefficients:
    return Coefficients(jax.random.normal(KEYS[0], shape), jax.random.normal(KEYS[1], shape))
