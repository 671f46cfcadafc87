"""The rules of a rollout on paper cases: one row, one token at a time."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsallis_rl.sampler.record import FORCED, NEVER, OPEN, REPLACED, SAMPLED
from tsallis_rl.sampler.rules import Progress, Rules, advance, start_progress

END, STOP, OTHER_STOP, JOINT = 2, 3, 4, (5, 6)


def rules(budget: int = 4, *, joint: tuple[int, ...] = JOINT, close: bool = False) -> Rules:
    return Rules(
        budget=jnp.int32(budget),
        end_of_think=jnp.int32(END),
        stop_ids=jnp.array([STOP, OTHER_STOP]),
        joint=jnp.array(joint, jnp.int32),
        close_unclosed=jnp.array(close),
    )


def walk(sampled: list[int], given: Rules, max_answer: int) -> tuple[list[tuple[int, int, bool]], Progress]:
    """(target, read, forced) of every step until the rollout is done, and its progress then."""
    progress, steps = start_progress((1, 1)), []
    for t, token in enumerate(sampled):
        found = advance(progress, jnp.full((1, 1), token), jnp.full((1, 1), t), given, max_answer=max_answer)
        steps.append((int(found.target[0, 0]), int(found.read[0, 0]), bool(found.forced[0, 0])))
        progress = found.progress
        if progress.done[0, 0]:
            break
    return steps, progress


def ended(progress: Progress) -> tuple[int, int, int, bool]:
    return tuple(x.item() for x in progress)


def test_rationale_joint_and_answer_follow_each_other():
    steps, progress = walk([7, 8, END, 9, 9, 7, STOP, 8], rules(), max_answer=5)
    assert [target for target, _, _ in steps] == [7, 8, END, *JOINT, 7, STOP]
    assert [forced for _, _, forced in steps] == [False, False, False, True, True, False, False]
    assert all(target == read for target, read, _ in steps)
    assert ended(progress) == (3, SAMPLED, 2, True)


def test_the_budget_forces_end_of_think():
    steps, progress = walk([7] * 12, rules(budget=2), max_answer=3)
    assert [target for target, _, _ in steps] == [7, 7, END, *JOINT, 7, 7, 7]
    assert [forced for _, _, forced in steps] == [False, False, True, True, True, False, False, False]
    assert ended(progress) == (3, FORCED, 3, True)  # the longest answer ends it


def test_a_stop_id_inside_the_rationale_ends_it_without_an_answer():
    steps, progress = walk([7, OTHER_STOP, 7], rules(), max_answer=3)
    assert steps == [(7, 7, False), (OTHER_STOP, OTHER_STOP, False)]
    assert ended(progress) == (2, NEVER, 0, True)


def test_a_stop_id_can_be_read_as_end_of_think_and_stays_what_was_sampled():
    steps, progress = walk([7, STOP, 9, 9, STOP], rules(close=True), max_answer=3)
    assert steps[1] == (STOP, END, False)
    assert ended(progress) == (2, REPLACED, 1, True)


def test_without_sampled_answers_a_closed_rationale_is_done():
    for tokens, closing in (([7, END], SAMPLED), ([7] * 9, FORCED), ([STOP], NEVER)):
        steps, progress = walk(tokens, rules(), max_answer=0)
        assert ended(progress) == (len(steps), closing, 0, True)


def test_an_empty_joint_goes_straight_to_the_answer():
    steps, _ = walk([END, 7, STOP], rules(joint=()), max_answer=3)
    assert steps == [(END, END, False), (7, 7, False), (STOP, STOP, False)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 9), min_size=20, max_size=20),
    st.integers(0, 6),
    st.booleans(),
    st.sampled_from([0, 3]),
)
def test_every_rollout_is_done_in_time_and_rows_that_are_done_stay_as_they_are(tokens, budget, close, max_answer):
    given_rules = rules(budget, close=close)
    steps, progress = walk(tokens, given_rules, max_answer)
    longest = budget + 1 + (len(JOINT) + max_answer if max_answer else 0)
    assert bool(progress.done[0, 0]) and len(steps) <= longest
    assert progress.rationale_length[0, 0] <= budget + 1 and int(progress.closing[0, 0]) != OPEN
    later = advance(progress, jnp.full((1, 1), STOP), jnp.full((1, 1), 19), given_rules, max_answer=max_answer)
    for before, after in zip(progress, later.progress, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("token", [END, STOP, 7])
def test_rows_do_not_see_each_other(token):
    progress = start_progress((2, 3))
    sampled = jnp.array([[7, token, 7], [token, 7, 7]])
    found = advance(progress, sampled, jnp.zeros((2, 3), int), rules(), max_answer=0)
    alone = advance(start_progress((1, 1)), jnp.full((1, 1), token), jnp.zeros((1, 1), int), rules(), max_answer=0)
    for at in ((0, 1), (1, 0)):
        assert found.progress.closing[at] == alone.progress.closing[0, 0]
    assert (np.asarray(found.progress.closing)[0, [0, 2]] == OPEN).all()
