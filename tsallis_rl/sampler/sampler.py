"""The sampler: M rollouts for each of P prompts, sampled, closed and scored.

The plain engine reads the prompts once, decodes segment by segment while the cache grows, scores the gold answer behind
every rationale with the rollout's own cache, and makes the record (docs/method.md §4).

Compaction is a layer on it, for rollouts that are long enough: once few enough rows still run, the finished ones are
scored and retired, and the others continue in fewer rows. Refill is another: where only some of the prompts are rolled
out at a time, the next batch starts when three quarters of the rows are finished; what is left of four batches is
merged and ends together, in as many rows as one of them had.

`decode`, `scoring` and `compaction` hold the programs, `schedule` the arithmetic; here it is decided which program
runs when.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from tsallis_rl.models import Architecture
from tsallis_rl.sampler import compaction, decode, scoring
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.compaction import Leftover, Retired
from tsallis_rl.sampler.decode import DecodeInputs, DecodeShape, DecodeState, cache_length
from tsallis_rl.sampler.record import Rollouts, record_of
from tsallis_rl.sampler.sampling import Sampling
from tsallis_rl.sampler.schedule import DecodeSchedule, ScheduleLimits

PROGRAMS = (
    decode.gather_layers,
    decode.prefill,
    decode.decode_segment,
    decode.grow_cache,
    scoring.score_answers,
    compaction.retire,
    compaction.concatenate_rows,
    compaction.concatenate_prompts,
    compaction.merge_batches,
    compaction.restore_order,
)  # what is compiled; tests count


@dataclasses.dataclass(frozen=True)
class RolloutShape:
    """The compiled constants of a call of `roll_out`, besides the shapes of its arrays.

    Attributes:
      arch: the decoder's architecture.
      num_rollouts: M.
      max_rationale: tokens; the compiled maximum of `Rules.budget`.
      max_answer: 0: the sequence holds the gold answer. Otherwise answers of up to so many tokens, end-of-sequence
        included, are sampled, and the sequence holds them.
    """

    arch: Architecture
    num_rollouts: int
    max_rationale: int
    max_answer: int = 0


class Sampled(NamedTuple):
    """The result of `roll_out`.

    Attributes:
      rollouts: the record; T is max_rationale + 1 + J + (A or max_answer).
      computed_tokens: rows × steps that were computed, those of finished rows included.
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
    """Samples M rollouts for each of P prompts and scores the gold answers behind them.

    Args:
      params: the decoder's parameters.
      batch: prompts and gold answers.
      keys: [P] typed keys; see `keys.example_keys`.
      sampling: traced numbers and ids.
      shape: what is compiled.
      at_once: prompts that are rolled out at a time, which divide P; 0 is all of them. Changes memory and speed alone.
      limits: of the schedule; None is its defaults. With PLAIN no row is retired early, and the call can be traced.

    Raises:
      ValueError: `at_once` does not divide P.
    """
    prompts = len(batch.prompt_length)
    prompts_at_once = min(at_once or prompts, prompts)
    batches = prompts // prompts_at_once
    if batches * prompts_at_once != prompts:
        raise ValueError(f"at_once={at_once} does not divide the {prompts} prompts")
    limits = limits or ScheduleLimits()
    answer = sampling.rules.joint.shape[0] + shape.max_answer if shape.max_answer else 0
    total = shape.max_rationale + 1 + answer
    # The plain engine asks for no devices, so that it can be traced: each prompt is a shard of its own.
    compacts = total >= limits.compact_from
    shards = math.gcd(_devices(batch.prompt), prompts_at_once) if compacts else prompts_at_once
    schedule = DecodeSchedule(total, shape.num_rollouts, prompts=prompts_at_once // shards, limits=limits)
    engine = (Compacting if compacts else Plain)(params, sampling, shape, schedule, shards)
    records = list(engine.roll_out(_split(batch, keys, batches, shards)))
    record = records[0] if len(records) == 1 else compaction.concatenate_prompts(records, shards=shards)
    return Sampled(record, engine.computed_tokens)


@dataclasses.dataclass
class ActiveBatch:
    """A batch that is being decoded. Its state is replaced in place, so that no old cache is kept alive.

    Attributes:
      inputs: what its programs read.
      state: of the rows that are not retired.
    """

    inputs: DecodeInputs
    state: DecodeState

    def grow(self, length: int) -> None:
        """Grows the cache to `length` tokens layer by layer: one layer at a time is held twice."""
        layers = list(self.state.rows.cache)
        self.state = self.state._replace(rows=self.state.rows._replace(cache=()))
        for i, layer in enumerate(layers):
            if layer.values.shape[3] < length:
                layers[i] = decode.grow_cache(layer, length=length)
            del layer
        self.state = self.state._replace(rows=self.state.rows._replace(cache=tuple(layers)))


class Plain:
    """Rolls out batches one after the other, every rollout in a row of its own until the last one is finished.

    Nothing is asked of the device, so programs are sent off one behind the other.

    Attributes:
      computed_tokens: see `Sampled`.
    """

    def __init__(self, params: dict, sampling: Sampling, shape: RolloutShape, schedule: DecodeSchedule, shards: int):
        self.params = decode.decode_params(params, shape.arch)
        self.sampling, self.schedule = sampling, schedule
        self.shape = DecodeShape(
            arch=shape.arch,
            num_rollouts=shape.num_rollouts,
            shards=shards,
            total=schedule.total,
            max_answer=shape.max_answer,
            max_steps=schedule.max_steps,
        )
        self.computed_tokens: Array | int = 0

    def roll_out(self, batches: Iterator[tuple[PromptBatch, Array]]) -> Iterator[Rollouts]:
        """Yields the record of each batch of prompts and keys."""
        for batch, keys in batches:
            active = self.prefill(batch, keys)
            reached = 0
            for length in self.schedule.cache_lengths:
                active.grow(length)
                self.decode(active, length - reached, stop_at=0)
                reached = length
            self.computed_tokens += self.schedule.total * self.schedule.rows * self.shape.shards
            rows = scoring.score_answers(active.inputs, active.state, shape=self.shape, slots=0)
            yield record_of(batch, rows)

    def prefill(self, batch: PromptBatch, keys: Array) -> ActiveBatch:
        """Reads the prompts, with room for the first segment."""
        prompt, state = decode.prefill(self.params, batch, shape=self.shape, length=self.schedule.cache_lengths[0])
        return ActiveBatch(DecodeInputs(self.params, prompt, batch, keys, self.sampling), state)

    def decode(self, active: ActiveBatch, steps: int | Array, stop_at: int, slots: int = 0) -> None:
        """Decodes a segment; see `decode.decode_segment`."""
        active.state = decode.decode_segment(active.inputs, active.state, steps, stop_at, shape=self.shape, slots=slots)


@dataclasses.dataclass
class CompactedBatch(ActiveBatch):
    """A batch of which finished rows are retired.

    Attributes:
      since: [n] the position of each merged batch from which on the state has had as many rows as now.
      retired: rows that were retired.
    """

    since: np.ndarray
    retired: list[Retired]


class Reached(NamedTuple):
    """How far a batch has come, asked of the device: the fields of `DecodeState` on the host."""

    position: np.ndarray
    running: int
    most_running: int
    most_done: int


class Compacting(Plain):
    """Rolls out batches in fewer and fewer rows, and merges what is left of several to end together."""

    def roll_out(self, batches: Iterator[tuple[PromptBatch, Array]]) -> Iterator[Rollouts]:
        """Yields the record of as many batches as end together."""
        batches = list(batches)
        refills = len(batches) > 1 and self.schedule.leftover > 0
        leftover = self.schedule.leftover if refills else 0
        merged = self.schedule.limits.refill_share if refills else 1
        waiting: list[CompactedBatch] = []
        for i, (batch, keys) in enumerate(batches):
            active = self.start(batch, keys)
            self.decode_until(active, leftover)
            if refills:
                self.retire(active, leftover)
            waiting.append(active)
            if len(waiting) == merged or i == len(batches) - 1:
                active = self.merge(waiting)
                waiting = []
                self.decode_until(active, 0)
                yield self.record(active)

    def start(self, batch: PromptBatch, keys: Array) -> CompactedBatch:
        """Reads the prompts and decodes the first segment, or until fewer rows would do."""
        active = self.prefill(batch, keys)
        steps = min(self.schedule.cache_lengths[0], self.schedule.total)
        self.decode(active, steps, self.schedule.stop_at(self.schedule.rows))
        return CompactedBatch(active.inputs, active.state, since=np.zeros(1, int), retired=[])

    def decode_until(self, active: CompactedBatch, leftover: int) -> None:
        """Decodes until at most `leftover` rollouts of each shard still run, in fewer and fewer rows."""
        schedule = self.schedule
        while True:
            reached = self.reached(active)
            if reached.running <= leftover or (reached.position == schedule.total).all():
                return
            fitting = schedule.rows_for(reached.running)
            if fitting < self.rows(active):
                self.retire(active, fitting)
            furthest, length = reached.position[reached.position < schedule.total].max(), cache_length(active.state)
            if furthest == length:
                length = schedule.next_length(length)
                active.grow(length)
            rows = self.rows(active)
            slots = schedule.slots(rows, self.prompts(active), reached.most_running)
            self.decode(active, length - furthest, schedule.stop_at(rows, leftover), slots)

    def retire(self, active: CompactedBatch, keep: int) -> None:
        """Scores and records finished rows, and keeps `keep` rows of each shard."""
        reached, rows = self.reached(active), self.rows(active)
        self.computed_tokens += int((reached.position - active.since).max()) * self.shape.shards * rows
        slots = self.schedule.slots(rows - keep, self.prompts(active), reached.most_done)
        active.state, retired = compaction.retire(active.inputs, active.state, shape=self.shape, slots=slots, keep=keep)
        active.since = reached.position
        active.retired.append(retired)

    def merge(self, batches: list[CompactedBatch]) -> CompactedBatch:
        """Merges what is left of batches, which have as many rows each."""
        if len(batches) == 1:
            return batches[0]
        length = max(cache_length(active.state) for active in batches)
        leftovers = []
        for active in batches:
            active.grow(length)
            retired = compaction.concatenate_rows(active.retired)
            inputs = active.inputs
            leftovers.append(Leftover(inputs.batch, inputs.keys, inputs.prompt, active.state, retired))
        merged = compaction.merge_batches(leftovers, shape=self.shape)
        inputs = DecodeInputs(self.params, merged.prompt, merged.batch, merged.keys, self.sampling)
        since = np.concatenate([active.since for active in batches])
        return CompactedBatch(inputs, merged.state, since, [merged.retired])

    def record(self, active: CompactedBatch) -> Rollouts:
        """Retires the last rows and makes the record of the batch."""
        in_order = not active.retired
        self.retire(active, 0)
        if in_order:
            return record_of(active.inputs.batch, active.retired[0].rows)
        retired = compaction.concatenate_rows(active.retired)
        return record_of(active.inputs.batch, compaction.restore_order(retired, num_rollouts=self.shape.num_rollouts))

    def reached(self, active: CompactedBatch) -> Reached:
        """Asks the device how far the batch has come."""
        state = active.state
        found = jax.device_get((state.position, state.running, state.most_running, state.most_done))
        return Reached(found[0], *map(int, found[1:]))

    def rows(self, active: CompactedBatch) -> int:
        """Counts the rows of each shard in the state."""
        return active.state.rows.rollout.size // self.shape.shards

    def prompts(self, active: CompactedBatch) -> int:
        """Counts the prompts of each shard, those of merged batches included."""
        return len(active.inputs.keys) // self.shape.shards


def _split(batch: PromptBatch, keys: Array, batches: int, shards: int) -> Iterator[tuple[PromptBatch, Array]]:
    """Splits prompts and keys into batches that each hold as many prompts of every shard."""
    if batches == 1:
        yield batch, keys
        return

    def part(x: Array, i: int) -> Array:
        of_shards = x.reshape(shards, batches, -1, *x.shape[1:])
        return of_shards[:, i].reshape(-1, *x.shape[1:])

    for i in range(batches):
        yield jax.tree.map(functools.partial(part, i=i), (batch, keys))


def _devices(prompts: Array) -> int:
    """Counts the devices over which prompts [P, T0] are split."""
    return len(prompts) // prompts.sharding.shard_shape(prompts.shape)[0] if isinstance(prompts, Array) else 1
