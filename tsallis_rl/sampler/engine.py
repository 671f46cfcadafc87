"""The plain engine: prefill, decode segment by segment while the cache grows, score, record.

It reads nothing back from the device, so programs are dispatched one after the other, and a call can be traced.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np
from jax import Array

from tsallis_rl.models import Architecture, KeyValues, RowCache
from tsallis_rl.runs.compile_ahead import Call
from tsallis_rl.sampler import decode, scoring
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.decode import DecodeInputs, DecodeShape, DecodeState
from tsallis_rl.sampler.record import Rollouts, record_of
from tsallis_rl.sampler.sampling_settings import Sampling
from tsallis_rl.sampler.schedule import DecodeSchedule


@dataclasses.dataclass(frozen=True)
class RolloutShape:
    """The compiled constants of a call of `roll_out`, besides the shapes of its arrays.

    Attributes:
      arch: the decoder's architecture.
      num_rollouts: M.
      max_rationale: tokens; the compiled maximum of `Rules.budget`.
      max_answer: most tokens of a sampled answer, end-of-sequence included; the sequence holds that answer. With 0 no
        answer is sampled, and the sequence holds the gold answer.
    """

    arch: Architecture
    num_rollouts: int
    max_rationale: int
    max_answer: int = 0


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
        """Grows the cache to `length` tokens."""
        if decode.cache_length(self.state.rows) < length:
            self.change_layers(functools.partial(decode.grow_cache, length=length))

    def change_layers(self, change: Callable[[KeyValues | RowCache], KeyValues | RowCache]) -> None:
        """Changes the cache layer by layer, so that only one layer at a time is held twice."""
        layers = list(self.state.rows.cache)
        self.state = self.state._replace(rows=self.state.rows._replace(cache=()))
        for i, layer in enumerate(layers):
            layers[i] = change(layer)
            del layer
        self.state = self.state._replace(rows=self.state.rows._replace(cache=tuple(layers)))


class PlainEngine:
    """Rolls out one batch after the other; every rollout keeps its own row until all are finished.

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
            for length, steps in self.schedule.segments:
                active.grow(length)
                self.decode(active, steps, stop_at=0)
            self.computed_tokens += active.state.position[0] * self.schedule.rows * self.shape.shards
            rows = scoring.score_answers(active.inputs, active.state, shape=self.shape, slots=0)
            yield record_of(batch, rows)

    def prefill(self, batch: PromptBatch, keys: Array) -> ActiveBatch:
        """Prefills the prompts, with room in the cache for the first segment."""
        prompt, state = decode.prefill(self.params, batch, shape=self.shape, length=self.schedule.cache_lengths[0])
        inputs = DecodeInputs(params=self.params, prompt=prompt, batch=batch, keys=keys, sampling=self.sampling)
        return ActiveBatch(inputs, state)

    def decode(self, active: ActiveBatch, steps: int, stop_at: int, slots: int = 0) -> None:
        """Decodes a segment; see `decode.decode_segment`."""
        active.state = self.segment(active, steps, stop_at, slots).make()

    def segment(self, active: ActiveBatch, steps: int, stop_at: int, slots: int) -> Call:
        """Returns the call that decodes a segment."""
        numbers = np.int32(steps), np.int32(stop_at)  # another type would compile another program
        args, static = (active.inputs, active.state, *numbers), {"shape": self.shape, "slots": slots}
        return Call(decode.decode_segment, args, static)
