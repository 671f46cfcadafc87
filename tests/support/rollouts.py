"""A tiny model, a batch of prompts, and rollouts of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tsallis_rl.models import SIZES, bind, initialize, token_log_probs
from tsallis_rl.objectives import Coefficients
from tsallis_rl.sampler import RolloutShape, Sampled, roll_out
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.keys import TRAIN, example_keys
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.sampler.rules import Rules
from tsallis_rl.sampler.sampling_settings import Sampling
from tsallis_rl.sampler.schedule import ScheduleLimits
from tsallis_rl.sampler.token_sampling import TokenSampling, Truncation

VOCAB, THINK_END, ENDS, JOINT = 9, 2, (3, 4), (5, 6)
ARCH = dataclasses.replace(SIZES["tiny"], vocab_size=VOCAB, kv_heads=2)
PARAMS = jax.jit(functools.partial(initialize, ARCH))(jax.random.key(0))
P, M, Z, A = 4, 16, 6, 5
RULES = Rules(
    budget=jnp.int32(Z),
    end_of_think=jnp.array([THINK_END], jnp.int32),
    stop_ids=jnp.array(ENDS, jnp.int32),
    joint=jnp.array(JOINT, jnp.int32),
    close_unclosed=jnp.array(False),
)
SAMPLING = Sampling(TokenSampling(temperature=jnp.float32(1)), RULES)
RNG = np.random.default_rng(0)
BATCH = PromptBatch(
    prompt=RNG.integers(VOCAB, size=(P, 7)).astype(np.int32),
    prompt_length=np.array([7, 3, 5, 1], np.int32),
    gold=RNG.integers(5, VOCAB, size=(P, A)).astype(np.int32),
    gold_length=np.array([5, 2, 3, 1], np.int32),
)


def with_rules(**rules) -> Sampling:
    """Returns SAMPLING with other rules."""
    return SAMPLING._replace(rules=RULES._replace(**rules))


def truncation(top_k: int, top_p: float, min_p: float) -> Truncation:
    """Makes a truncation of plain numbers."""
    return Truncation(jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p))


def with_tokens(temperature: float = 1.0, truncation: Truncation | None = None) -> Sampling:
    """Returns SAMPLING with another temperature or truncation."""
    return SAMPLING._replace(tokens=TokenSampling(jnp.float32(temperature), truncation))


def sampled(
    batch: PromptBatch = BATCH,
    *,
    step: int = 0,
    positions=None,
    sampling: Sampling = SAMPLING,
    at_once: int = 0,
    limits: ScheduleLimits | None = None,
    **shape,
) -> Sampled:
    """Rolls out a batch of the tiny model; `shape` are fields of RolloutShape."""
    keys = example_keys(0, TRAIN, step, np.arange(len(batch.prompt)) if positions is None else positions)
    shape = RolloutShape(**{"arch": ARCH, "num_rollouts": M, "max_rationale": Z} | shape)
    return jax.device_get(roll_out(PARAMS, batch, keys, sampling, shape, at_once=at_once, limits=limits))


def sample(batch: PromptBatch = BATCH, **options) -> Rollouts:
    """Returns the record of `sampled`, on the host."""
    return sampled(batch, **options).rollouts


@jax.jit
def _flat_log_probs(tokens: jax.Array) -> jax.Array:
    decoder = bind(ARCH, PARAMS)
    hidden, _ = decoder.prefill(tokens[None])
    return token_log_probs(hidden[:, :-1], decoder.output_head(), tokens[None, 1:])[0]


def flat_log_probs(prompt: np.ndarray, continuation: np.ndarray) -> np.ndarray:
    """Computes log p of each continuation token in one flat sequence: an independent way to score."""
    tokens = np.concatenate([prompt, continuation])
    padded = np.pad(tokens, (0, 32 - len(tokens)))
    return np.asarray(_flat_log_probs(padded))[len(prompt) - 1 : len(tokens) - 1]


KEYS = jax.random.split(jax.random.key(7))


def coefficients(shape: tuple[int, ...]) -> Coefficients:
    return Coefficients(jax.random.normal(KEYS[0], shape), jax.random.normal(KEYS[1], shape))
