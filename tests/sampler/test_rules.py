"""The rules of a rollout on cases worked out by hand: one row, one token at a time."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsallis_rl.sampler.record import FORCED, NEVER, OPEN, REPLACED, SAMPLED
from tsallis_rl.sampler.rules import Progress, Rules, advance, barred_counts, match_ids, start_progress

END, STOP, OTHER_STOP, JOINT = 2, 3, 4, (5, 6)


def rules(
    budget: int = 4,
    *,
    end_of_think: tuple[int, ...] = (END,),
    joint: tuple[int, ...] = JOINT,
    close: bool = False,
    least: int = 0,
) -> Rules:
    return Rules(
        budget=jnp.int32(budget),
        end_of_think=jnp.array(end_of_think),
        stop_ids=jnp.array([STOP, OTHER_STOP]),
        joint=jnp.array(joint, jnp.int32),
        close_unclosed=jnp.array(close),
        min_rationale=jnp.int32(least) if least else None,
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
    return tuple(x.item() for x in progress._replace(matched=None) if x is not None)


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


LONG = (END, 7, END, 8)


def test_several_ids_close_the_rationale_where_they_stand_behind_each_other():
    long = rules(budget=9, end_of_think=LONG)
    steps, progress = walk([7, END, 7, END, 7, END, 8, 9, 9, 7, STOP], long, max_answer=5)
    assert [target for target, _, _ in steps] == [7, END, 7, END, 7, END, 8, *JOINT, 7, STOP]
    assert ended(progress) == (7, SAMPLED, 2, True)


def test_the_budget_forces_the_ids_that_are_missing():
    for sampled, forced in (([7, 7, 7], LONG), ([7, END, 7], LONG[2:]), ([END, 7, END], LONG[3:])):
        steps, progress = walk([*sampled, *[9] * 6], rules(budget=3, end_of_think=LONG), max_answer=0)
        assert [target for target, _, _ in steps] == [*sampled, *forced]
        assert [was_forced for _, _, was_forced in steps] == [False] * 3 + [True] * len(forced)
        assert ended(progress) == (3 + len(forced), FORCED, 0, True)


def test_a_stop_id_is_read_as_the_first_missing_id_and_the_others_are_forced():
    steps, progress = walk([END, STOP, 9, 9, 9], rules(budget=9, end_of_think=LONG, close=True), max_answer=0)
    assert steps == [(END, END, False), (STOP, 7, False), (END, END, True), (8, 8, True)]
    assert ended(progress) == (4, REPLACED, 0, True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.lists(st.integers(0, 2), max_size=24))
def test_matched_ids_are_the_longest_beginning_of_the_marker_that_the_text_ends_with(marker, text):
    matched = 0
    for n, token in enumerate(text, 1):
        matched = int(match_ids(jnp.int8(matched), jnp.int32(token), jnp.array(marker)))
        ends = [i for i in range(len(marker) + 1) if i <= n and text[n - i : n] == marker[:i]]
        assert matched == max(ends)
        if matched == len(marker):
            break


def test_barred_ids_are_the_stop_ids_and_the_id_that_would_close():
    given_rules = rules(end_of_think=LONG, least=3)
    assert given_rules.barred_ids.tolist() == [STOP, OTHER_STOP, 8]
    progress, counts = start_progress((1, 1)), []
    for t, token in enumerate([END, 7, END, 9]):
        counts.append(int(barred_counts(progress, jnp.full((1, 1), t), given_rules)[0, 0]))
        progress = advance(progress, jnp.full((1, 1), token), jnp.full((1, 1), t), given_rules, max_answer=0).progress
    assert counts == [2, 2, 2, 0]
    late = rules(budget=9, end_of_think=LONG, least=9)
    assert int(barred_counts(progress._replace(matched=jnp.full((1, 1), 3)), jnp.full((1, 1), 4), late)[0, 0]) == 3


def test_an_empty_joint_goes_straight_to_the_answer():
    steps, _ = walk([END, 7, STOP], rules(joint=()), max_answer=3)
    assert steps == [(END, END, False), (7, 7, False), (STOP, STOP, False)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 9), min_size=20, max_size=20),
    st.integers(0, 6),
    st.booleans(),
    st.sampled_from([0, 3]),
    st.sampled_from([(END,), (7, 7), LONG]),
)
def test_every_rollout_is_done_in_time_and_rows_that_are_done_stay_as_they_are(
    tokens, budget, close, max_answer, marker
):
    given_rules = rules(budget, end_of_think=marker, close=close)
    steps, progress = walk(tokens, given_rules, max_answer)
    longest = budget + len(marker) + (len(JOINT) + max_answer if max_answer else 0)
    assert bool(progress.done[0, 0]) and len(steps) <= longest
    length, closing = int(progress.rationale_length[0, 0]), int(progress.closing[0, 0])
    assert length <= budget + len(marker) and closing != OPEN
    read = [read for _, read, _ in steps[:length]]
    assert (closing == NEVER) == (tuple(read[-len(marker) :]) != marker)
    assert any(was_forced for _, _, was_forced in steps[:length]) <= (closing in (FORCED, REPLACED))
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
