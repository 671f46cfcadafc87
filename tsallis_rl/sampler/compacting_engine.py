"""Compaction and merging: a layer on the plain engine, for rollouts that are long enough.

Once few enough rows still run, the finished ones are scored and retired, and the others continue in fewer rows. Where
prompts are rolled out in several batches, the next batch starts when three quarters of the rows are finished. The
remaining rows of four batches are merged and finish together, in as many rows as one batch had.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from tsallis_rl.models import Context, KeyValues, RowCache
from tsallis_rl.models.backends import compile_threads
from tsallis_rl.runs.compile_ahead import Call, CompileAhead, compile_ahead
from tsallis_rl.sampler import compaction
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.compaction import Continuing, Leftover, Retired
from tsallis_rl.sampler.decode import cache_length
from tsallis_rl.sampler.engine import ActiveBatch, PlainEngine
from tsallis_rl.sampler.likely_programs import after_segment
from tsallis_rl.sampler.record import Rollouts, record_of


class Caches(NamedTuple):
    """The layers of a batch's caches: of its prompts, and of its rows' own keys."""

    prompt: list[KeyValues | RowCache]
    own: list[KeyValues | RowCache]


@dataclasses.dataclass
class CompactedBatch(ActiveBatch):
    """A batch whose finished rows are retired.

    Attributes:
      since: [n] position of each merged batch when the row count last changed.
      retired: rows that were retired.
    """

    since: np.ndarray
    retired: list[Retired]

    def keep(self, continuing: Continuing | None, ahead: CompileAhead) -> None:
        """Keeps the rows that continue; if none do, drops the cache, which the next batch's would be held beside."""
        if continuing is None:
            self.state = None
            return
        rows = continuing.state.rows._replace(cache=self.state.rows.cache)
        self.state = continuing.state._replace(rows=rows)
        self.change_layers(lambda layer: ahead.make(Call(compaction.take_cache_rows, (layer, continuing.index), {})))

    def take_caches(self) -> Caches:
        """Takes the caches out of the batch, which no longer holds them."""
        prompt, rows = self.inputs.prompt, self.state.rows
        self.inputs = self.inputs._replace(prompt=prompt._replace(kv=[]))
        self.state = self.state._replace(rows=rows._replace(cache=()))
        return Caches(prompt=list(prompt.kv), own=list(rows.cache))


class BatchProgress(NamedTuple):
    """The progress of a batch, read from the device: the fields of `DecodeState` on the host."""

    position: np.ndarray
    running: int
    most_running: int
    most_done: int


class CompactingEngine(PlainEngine):
    """Rolls out batches in fewer and fewer rows, and merges the remaining rows of several to finish together."""

    @property
    def ahead(self) -> CompileAhead:
        """Returns the compile threads of this host."""
        return compile_ahead(compile_threads())

    def roll_out(self, batches: Iterator[tuple[PromptBatch, Array]]) -> Iterator[Rollouts]:
        """Yields one record for each set of merged batches."""
        batches = list(batches)
        merges = len(batches) > 1 and self.schedule.leftover > 0
        leftover = self.schedule.leftover if merges else 0
        merged = self.schedule.limits.merged_batches if merges else 1
        waiting: list[CompactedBatch] = []
        for i, (batch, keys) in enumerate(batches):
            active = self.start(batch, keys)
            progress = self.decode_until(active, leftover)
            if merges:
                self.retire(active, leftover, progress)
            waiting.append(active)
            if len(waiting) == merged or i == len(batches) - 1:
                active = self.merge(waiting)
                waiting = []
                progress = self.decode_until(active, 0)
                yield self.record(active, progress)

    def start(self, batch: PromptBatch, keys: Array) -> CompactedBatch:
        """Prefills the prompts and decodes until the first segment ends or a smaller row count suffices."""
        active = self.prefill(batch, keys)
        steps = min(self.schedule.segment_ends[0], self.schedule.total)
        self.decode(active, steps, self.schedule.stop_at(self.schedule.rows), slots=self.shape.num_rollouts)
        return CompactedBatch(inputs=active.inputs, state=active.state, since=np.zeros(1, int), retired=[])

    def decode_until(self, active: CompactedBatch, leftover: int) -> BatchProgress:
        """Decodes until at most `leftover` rollouts of each shard still run, in fewer and fewer rows.

        Returns:
          the batch's progress at that point.
        """
        schedule = self.schedule
        while True:
            progress = self.progress(active)
            if progress.running <= leftover or (progress.position == schedule.total).all():
                return progress
            fitting = schedule.rows_for(progress.running)
            if fitting < self.rows(active):
                self.retire(active, fitting, progress)
            furthest = progress.position[progress.position < schedule.total].max()
            end = schedule.segment_end(furthest)
            active.grow(schedule.cache_length(end))
            rows = self.rows(active)
            slots = schedule.slots(rows, self.prompts(active), progress.most_running)
            self.decode(active, end - furthest, schedule.stop_at(rows, leftover), slots)

    def decode(self, active: ActiveBatch, steps: int, stop_at: int, slots: int = 0) -> None:
        """Decodes a segment, while threads may compile the programs that are likely to follow it."""
        segment = self.segment(active, steps, stop_at, slots)
        active.state = self.ahead.make(segment, lambda: after_segment(segment, self.schedule))

    def retire(self, active: CompactedBatch, keep: int, progress: BatchProgress) -> None:
        """Scores and records finished rows of a batch at the given progress; keeps `keep` rows of each shard."""
        rows = self.rows(active)
        self.computed_tokens += int((progress.position - active.since).max()) * self.shape.shards * rows
        slots = self.schedule.slots(rows - keep, self.prompts(active), progress.most_done)
        static = {"shape": self.shape, "slots": slots, "keep": keep}
        continuing, retired = self.ahead.make(Call(compaction.retire, (active.inputs, active.state), static))
        active.since = progress.position
        active.retired.append(retired)
        active.keep(continuing, self.ahead)

    def merge(self, batches: list[CompactedBatch]) -> CompactedBatch:
        """Merges the remaining rows of batches, equally many in each, which give up their caches layer by layer."""
        if len(batches) == 1:
            return batches[0]
        length = max(cache_length(active.state.rows) for active in batches)
        caches, leftovers = [], []
        for active in batches:
            active.grow(length)
            caches.append(active.take_caches())
            retired = compaction.concatenate_rows(active.retired)
            inputs = active.inputs
            leftovers.append(Leftover(batch=inputs.batch, keys=inputs.keys, state=active.state, retired=retired))
        merged = compaction.merge_batches(leftovers, shape=self.shape)
        prompt, own = [], []
        for _ in range(self.shape.arch.layers):  # only one layer is held twice
            layers = [cache.prompt.pop(0) for cache in caches]
            prompt.append(compaction.concatenate_prompts(layers, shards=self.shape.shards))
            layers = [cache.own.pop(0) for cache in caches]
            own.append(compaction.concatenate_rows(layers))
        context = Context(prompt, merged.batch.prompt_length - 1)  # as `Decoder.read_prompt` makes it
        state = merged.state._replace(rows=merged.state.rows._replace(cache=tuple(own)))
        inputs = batches[0].inputs._replace(prompt=context, batch=merged.batch, keys=merged.keys)
        since = np.concatenate([active.since for active in batches])
        return CompactedBatch(inputs=inputs, state=state, since=since, retired=[merged.retired])

    def record(self, active: CompactedBatch, progress: BatchProgress) -> Rollouts:
        """Retires the last rows and makes the record of the batch."""
        in_order = not active.retired
        self.retire(active, 0, progress)
        if in_order:
            return record_of(active.inputs.batch, active.retired[0].rows)
        retired = compaction.concatenate_rows(active.retired)
        return record_of(active.inputs.batch, compaction.restore_order(retired, num_rollouts=self.shape.num_rollouts))

    def progress(self, active: CompactedBatch) -> BatchProgress:
        """Reads the progress of the batch from the device."""
        state = active.state
        asked = (state.position, state.running, state.most_running, state.most_done)
        position, running, most_running, most_done = jax.device_get(asked)
        return BatchProgress(position, int(running), int(most_running), int(most_done))

    def rows(self, active: CompactedBatch) -> int:
        """Counts the rows of each shard in the state."""
        return active.state.rows.rollout.size // self.shape.shards

    def prompts(self, active: CompactedBatch) -> int:
        """Counts the prompts of each shard, those of merged batches included."""
        return len(active.inputs.keys) // self.shape.shards
