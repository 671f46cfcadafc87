"""The program predicted to follow a segment is the one that follows it."""

import dataclasses
import functools
from concurrent.futures import wait

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.compiled import counted_programs
from tests.support.rollouts import BATCH, M, P, Z, sample, sampled, with_rules
from tsallis_rl.runs.compile_ahead import CompileAhead, described
from tsallis_rl.sampler import compacting_engine
from tsallis_rl.sampler.compacting_engine import CompactingEngine
from tsallis_rl.sampler.compaction import retire, take_cache_rows
from tsallis_rl.sampler.decode import decode_segment
from tsallis_rl.sampler.likely_programs import after_segment
from tsallis_rl.sampler.schedule import DecodeSchedule, ScheduleLimits

LIMITS = ScheduleLimits(min_segment=2, max_segments=3, compact_from=1, row_shares=(16, 8))


@dataclasses.dataclass
class Followed(CompileAhead):
    """Compiles nothing ahead; keeps which calls were made, and which were taken to follow."""

    def __init__(self):
        super().__init__(threads=0)
        self.made, self.likely = [], set()

    def make(self, call, likely=tuple):
        self.made.append(call)
        self.likely |= {other.key for other in likely()}
        return super().make(call)


@pytest.fixture
def followed(monkeypatch) -> Followed:
    followed = Followed()
    monkeypatch.setattr(compacting_engine, "compile_ahead", lambda threads: followed)
    return followed


def test_of_rollouts_that_all_run_on_every_program_is_known_from_the_first(followed):
    sampled(sampling=with_rules(min_rationale=jnp.int32(Z)), limits=LIMITS)
    first, *others = followed.made
    schedule = DecodeSchedule(Z + 1, M, P, LIMITS)
    known = {call.key for call in after_segment(first, schedule)}
    assert len(others) == len(schedule.cache_lengths) and {call.key for call in others} <= known


def test_fewer_rows_of_a_prompt_are_known_before_they_are_decoded(followed):
    sampled(jax.tree.map(lambda x: x[:1], BATCH), limits=dataclasses.replace(LIMITS, min_segment=Z + 2))
    decoded = [call for call in followed.made if call.program is decode_segment]
    assert len({call.args[1].rows.rollout.size for call in decoded}) == 2  # all rows, then half of them
    assert {call.key for call in decoded[1:]} <= followed.likely


def test_rows_that_continue_take_their_caches_layer_by_layer(followed):
    sampled(limits=LIMITS)
    retiring, *later = [call for call in followed.made if call.program in (retire, take_cache_rows)]
    (inputs, state), static = retiring.args, retiring.kwargs
    cache = jax.tree.leaves(state.rows.cache)
    continuing, _ = jax.eval_shape(functools.partial(retire, **static), inputs, jax.tree.map(described, state))
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(continuing)) < cache[0].size * cache[0].dtype.itemsize
    assert [call.program for call in later[: len(state.rows.cache)]] == [take_cache_rows] * len(state.rows.cache)


def test_a_batch_whose_rows_are_all_retired_holds_no_cache(monkeypatch):
    record, recorded = CompactingEngine.record, []

    def kept(engine, active, progress):
        recorded.append(active)
        return record(engine, active, progress)

    monkeypatch.setattr(CompactingEngine, "record", kept)
    sampled(limits=LIMITS)
    assert [active.state for active in recorded] == [None]


def test_rollouts_are_the_same_and_no_program_is_compiled_twice(monkeypatch):
    limits, ahead = dataclasses.replace(LIMITS, row_shares=(16,)), CompileAhead(threads=2)
    with counted_programs() as compiled:
        with monkeypatch.context() as patched:
            patched.setattr(compacting_engine, "compile_ahead", lambda threads: ahead)
            together = sample(limits=limits, max_rationale=Z - 2)
        wait(ahead._begun.values())
        jax.tree.map(np.testing.assert_array_equal, together, sample(limits=limits, max_rationale=Z - 2))
    counts = [count for (name, _), count in compiled.items() if name in ("decode_segment", "retire", "take_cache_rows")]
    assert sum(counts) == len(ahead._begun) > 3
