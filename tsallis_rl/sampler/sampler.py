"""The sampler's entry: M rollouts for each of P prompts, sampled, closed and scored (docs/method.md §4).

`engine` is the plain engine: it reads the prompts once, decodes segment by segment while the cache grows, scores the
gold answer after every rationale with the rollout's own cache, and makes the record. `compacting_engine` is a layer on
it that retires finished rows and starts the next prompts early. `decode`, `scoring` and `compaction` hold the programs,
`schedule` the arithmetic.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models import Architecture, uses_kernel
from tsallis_rl.models.shapes import Expected, check_shapes
from tsallis_rl.sampler import compaction, scoring
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.compacting_engine import CompactingEngine
from tsallis_rl.sampler.engine import PlainEngine, RolloutShape
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.sampler.rules import Rules
from tsallis_rl.sampler.sampling_settings import Sampling
from tsallis_rl.sampler.schedule import DecodeSchedule, ScheduleLimits, rollout_tokens


class Sampled(NamedTuple):
    """The result of `roll_out`.

    Attributes:
      rollouts: the record; T is max_rationale + L + J + (A or max_answer).
      computed_tokens: rows × steps that were computed, including those of finished rows.
    """

    rollouts: Rollouts
    computed_tokens: Array | int


def roll_out(
    params: dict,
    batch: PromptBatch,
    keys: Array,
    sampling: Sampling,
    shape: RolloutShape,
    *,
    at_once: int = 0,
    limits: ScheduleLimits | None = None,
) -> Sampled:
    """Samples M rollouts for each of P prompts and scores the gold answer after each.

    Args:
      params: the decoder's parameters.
      batch: prompts and gold answers.
      keys: [P] typed keys; see `keys.example_keys`.
      sampling: traced numbers and ids.
      shape: what is compiled.
      at_once: prompts rolled out at a time, a divisor of P; 0 is all of them. Changes only memory, speed and rounding.
      limits: of the schedule; None is its defaults. With NO_COMPACTION no row is retired early, and the call
        can be traced.

    Raises:
      ValueError: `at_once` does not divide P, or an array has the wrong rank or dtype.
    """
    check_shapes(
        Expected("batch.prompt", batch.prompt, "P T0", jnp.integer),
        Expected("batch.prompt_length", batch.prompt_length, "P", jnp.integer),
        Expected("batch.gold", batch.gold, "P A", jnp.integer),
        Expected("batch.gold_length", batch.gold_length, "P", jnp.integer),
        Expected("keys", keys, "P", jax.dtypes.prng_key),
    )
    prompts = len(batch.prompt_length)
    prompts_at_once, batches = _batches(prompts, at_once)
    arch = shape.arch
    limits = limits or ScheduleLimits(grows=not uses_kernel(arch))
    rules = sampling.rules
    joint_length = len(rules.joint) if shape.max_answer else 0  # a gold answer is scored, not sampled
    total = rollout_tokens(shape.max_rationale, len(rules.end_of_think) + joint_length, shape.max_answer)
    # The plain engine does not look at devices, so that it can be traced: each prompt is its own shard.
    shards = math.gcd(_devices(batch.prompt), prompts_at_once) if limits.compacts(total) else prompts_at_once
    schedule = DecodeSchedule(total, shape.num_rollouts, prompts=prompts_at_once // shards, limits=limits)
    engine = (CompactingEngine if schedule.compacts else PlainEngine)(params, sampling, shape, schedule, shards)
    records = list(engine.roll_out(_split((batch, keys), batches, shards)))
    record = records[0] if len(records) == 1 else compaction.concatenate_prompts(records, shards=shards)
    return Sampled(rollouts=record, computed_tokens=engine.computed_tokens)


def score_without_rationale(
    params: dict,
    batch: PromptBatch,
    rules: Rules,
    arch: Architecture,
    *,
    at_once: int = 0,
    mean_probability: bool = False,
) -> Array:
    """Scores the gold answers with thinking closed before its first token → log p(y* | x*, no rationale) [P].

    Args:
      params: the decoder's parameters.
      batch: prompts and gold answers.
      rules: ids of end-of-think and joint.
      arch: of the decoder.
      at_once: see `roll_out`.
      mean_probability: return the mean probability of the answer's tokens instead.
    """
    prompts = len(batch.prompt_length)
    prompts_at_once, batches = _batches(prompts, at_once)
    shards = math.gcd(_devices(batch.prompt), prompts_at_once)
    parts = [
        scoring.score_prompts(params, part, rules, arch=arch, mean_probability=mean_probability)
        for part in _split(batch, batches=batches, shards=shards)
    ]
    if len(parts) == 1:
        return parts[0]
    return jnp.stack([part.reshape(shards, -1) for part in parts], axis=1).reshape(-1)


def _batches(prompts: int, at_once: int) -> tuple[int, int]:
    """Returns the number of prompts in a batch and the number of batches; `at_once` as in `roll_out`."""
    prompts_at_once = min(at_once or prompts, prompts)
    if prompts % prompts_at_once:
        raise ValueError(f"at_once={at_once} does not divide the {prompts} prompts")
    return prompts_at_once, prompts // prompts_at_once


def _split(tree: Any, batches: int, shards: int) -> Iterator[Any]:
    """Splits arrays [P, …] into batches that each hold equally many prompts of every shard."""
    if batches == 1:
        yield tree
        return

    def part(x: Array, i: int) -> Array:
        of_shards = x.reshape(shards, batches, -1, *x.shape[1:])
        return of_shards[:, i].reshape(-1, *x.shape[1:])

    for i in range(batches):
        yield jax.tree.map(functools.partial(part, i=i), tree)


def _devices(prompts: Array) -> int:
    """Counts the devices over which prompts [P, T0] are split."""
    return len(prompts) // prompts.sharding.shard_shape(prompts.shape)[0] if isinstance(prompts, Array) else 1
