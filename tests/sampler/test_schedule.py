"""Buckets and schedules, which are plain integers, compared with their definitions."""

import itertools

import pytest

from tsallis_rl.models.shapes import largest_divisor
from tsallis_rl.sampler.buckets import (
    halving_bucket,
    length_bucket,
    quarter_bucket,
    sixteenth_buckets,
    smallest_bucket,
)
from tsallis_rl.sampler.schedule import NO_COMPACTION, DecodeSchedule, ScheduleLimits


def test_the_schedule_of_the_docstring():
    schedule = DecodeSchedule(total=200, num_rollouts=32, prompts=4)
    assert schedule.compacts and schedule.rows == 128 and schedule.leftover == 32
    assert schedule.cache_lengths == (33, 66, 99, 132, 165, 201) and schedule.max_steps == 36
    assert schedule.row_counts == (8, 16, 32, 48, 64, 96, 128)
    assert schedule.segment_end(98) == 99 and schedule.segment_end(99) == schedule.cache_length(100) == 132
    assert [schedule.rows_for(n) for n in (1, 8, 9, 97)] == [8, 8, 16, 128]
    assert [schedule.stop_at(n) for n in (128, 16, 8)] == [96, 8, 0] and schedule.stop_at(8, leftover=5) == 5


@pytest.mark.parametrize("total", [1, 5, 31, 32, 33, 47, 48, 127, 128, 200, 1000, 4097])
def test_caches_grow_to_one_place_more_than_there_are_tokens_and_never_by_little(total):
    lengths = DecodeSchedule(total, num_rollouts=4, prompts=1).cache_lengths
    assert lengths[-1] == total + 1 and len(lengths) <= 8
    steps = [b - a for a, b in itertools.pairwise((0, *lengths))]
    assert min(steps) > 0 and all(step >= 16 for step in steps[:-1])


def test_slots_hold_the_rows_of_any_prompt_and_some_more_than_an_even_share():
    schedule = DecodeSchedule(total=200, num_rollouts=32, prompts=4)
    assert schedule.slots(rows=128, prompts=4, most=32) == 32
    assert schedule.slots(rows=32, prompts=4, most=3) == 12  # 1.25 × 8 = 10 of 2, 4, 8, 12, 16, 24, 32
    assert schedule.slots(rows=8, prompts=16, most=9) == 12


def test_short_or_plain_schedules_keep_every_row():
    short, plain = DecodeSchedule(127, 32, 4), DecodeSchedule(4096, 32, 4, limits=NO_COMPACTION)
    for schedule in (short, plain):
        assert not schedule.compacts and schedule.row_counts == (128,) and schedule.stop_at(128) == 0
    assert DecodeSchedule(128, 32, 4).compacts
    assert DecodeSchedule(50, 32, 4, limits=ScheduleLimits(compact_from=50)).compacts


def test_buckets_hold_what_is_needed_and_are_few():
    assert sixteenth_buckets(32) == [2, 4, 8, 12, 16, 24, 32] and sixteenth_buckets(4) == [1, 2, 3, 4]
    assert smallest_bucket([2, 4, 8], 3) == 4
    assert [quarter_bucket(64, n) for n in (64, 17, 16, 5, 4, 1)] == [64, 64, 16, 16, 4, 1]
    assert quarter_bucket(64, 1, multiple=4) == 4
    assert [halving_bucket(32, n) for n in (32, 25, 24, 17, 16, 13, 12, 1, 0)] == [32, 32, 24, 24, 16, 16, 12, 1, 1]
    assert [largest_divisor(12, n) for n in (0, 1, 5, 12, 100)] == [12, 1, 4, 12, 12]


@pytest.mark.parametrize("longest", [1, 63, 64, 65, 200, 641, 4097])
def test_lengths_of_an_update_are_at_most_eight_and_hold_what_is_needed(longest):
    found = {length_bucket(longest, needed) for needed in range(longest + 1)}
    assert max(found) == longest and len(found) <= 8
    assert all(length_bucket(longest, needed) >= needed for needed in range(longest + 1))
