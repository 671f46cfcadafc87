"""The control state: the guards, compared with numbers worked out by hand."""

import dataclasses
import json
import math

import pytest

from tests.support.runs import small
from tsallis_rl.runs.errors import UserError
from tsallis_rl.training.control import (
    ControlState,
    StepMeasurement,
    after_evaluation,
    after_step,
    control_from_dict,
    followed,
    initial_control,
    watch_rationales,
)

START = ControlState(estimator="garl", q=0.75)


@pytest.mark.parametrize(
    ("argument", "control", "found"),
    [
        ("", {"q": 0.375}, {"q": 0.375}),  # halved after a collapse
        ("tau=0.05", {"estimator": "paft"}, {"commitment": "floor", "tau": 0.05}),
        ("estimator=iwae", {}, {"q": 1.0}),
        ("estimator=grpo", {}, {}),
    ],
)
def test_what_a_step_commits_to_is_what_its_estimator_reads(argument, control, found):
    config = small(argument)
    assert followed(dataclasses.replace(initial_control(config), **control), config, 1) == found


def test_a_step_of_a_schedule_commits_to_the_q_that_it_has_reached():
    config = small(estimator__schedule="linear", estimator__schedule_steps=4)
    control = dataclasses.replace(initial_control(config), q=0.5)
    assert [followed(control, config, step) for step in (0, 1, 9)] == [
        {"q": q, "q_start": 0.5} for q in (0.5, 0.375, 0.0)
    ]
    by_floor = small("tau=0.05", estimator__schedule="linear", estimator__schedule_steps=4)
    assert followed(initial_control(by_floor), by_floor, 1) == {"commitment": "floor", "tau": 0.05}


def evaluated(config, *figures: tuple[float, float], control: ControlState | None = None):
    """Control behind evaluations with these maj@4 and closed shares, and what the last one said."""
    control, told = control or initial_control(config), None
    for step, (majority, closed) in enumerate(figures, start=control.evaluated_at + 1):
        control, told = after_evaluation(control, config, step, {"maj@4": majority, "closed_sampled": closed})
    return control, told


def test_a_collapse_is_a_set_share_lost_from_the_best_since_the_last_one():
    config = small()
    assert evaluated(config, (0.8, 1.0), (0.4, 1.0))[1] is None
    control, told = evaluated(config, (0.2, 1.0), (0.8, 1.0), (0.39, 1.0))
    assert told == "eval/validation/maj@4 fell from 0.800 at step 1 to 0.390"
    assert "closed_sampled fell from 1.000 at step 0" in evaluated(config, (0.0, 1.0), (0.0, 0.4))[1]
    assert evaluated(config, (0.09, 0.0), (0.0, 0.0))[1] is None
    fallen, _ = evaluated(config, (0.8, 1.0), (0.3, 1.0))
    assert evaluated(config, (0.2, 1.0), control=fallen)[1] is None
    assert evaluated(config, (0.1, 1.0), control=fallen)[1]
    assert control.evaluated_at == 2 and control.collapses == 1


def test_a_collapse_changes_what_decides_the_steps_behind_it():
    twice = ((0.8, 1.0), (0.3, 1.0), (0.8, 1.0), (0.3, 1.0))
    lower, paft = small(guards__on_collapse="lower_q"), small(guards__on_collapse="paft")
    assert [evaluated(lower, *twice[:n])[0].q for n in (1, 2, 3, 4)] == [0.75, 0.375, 0.375, 0.1875]
    assert [evaluated(paft, *twice[:n])[0].estimator for n in (1, 2)] == ["garl", "paft"]
    said = evaluated(small(), *twice)[0]
    assert (said.estimator, said.q) == ("garl", 0.75)


STARTS = ("rationale_length", "unique_rationales", "rationale_gain", "log_p_hat", "pass@1")


def watched(*figures: tuple[float, ...], share: float = 0.25, closing: int = 1):
    """Control behind evaluations with these lengths, unique shares, gains, log P̂ and pass@1, and what each said."""
    config, told = small(guards__vanished_share=share), []
    control = initial_control(config)
    for step, (length, unique, gain, log_p_hat, *pass_at_1) in enumerate(figures):
        control = control_from_dict(json.loads(json.dumps(control.to_dict())))  # as a run that was stopped has it
        scores = {"rationale_length": length, "unique_rationales": unique, "rationale_gain": gain}
        scores |= {"log_p_hat": log_p_hat, "pass@1": pass_at_1[0] if pass_at_1 else 0.5}
        control, said = watch_rationales(control, config, 10 * step, scores, closing)
        told.append(said)
    return control, told


def test_rationales_vanish_where_a_set_share_of_the_starts_is_left_while_log_p_hat_or_pass_at_1_rises():
    start, short = (37.0, 0.8, 2.0, -27.6), (10.0, 0.8, 5.0, -6.0)
    control, told = watched(start, start, short, short)
    assert told == [
        None, None,
        "rationales vanished between steps 0 and 20: on validation rationale_length went from 37 to 10, "
        "log_p_hat went from -27.6 to -6, pass@1 went from 0.5 to 0.5, rationale_gain went from 2 to 5",
        None,
    ]  # fmt: skip
    assert (control.start_step, control.vanished_at) == (0, 20)
    assert watched(start, (10.1, 0.8, 5.0, -6.0))[1] == [None, None]
    assert watched(start, (10.0, 0.8, 5.0, -28.0))[1] == [None, None]  # log P̂ fell
    hinted = (2.54, 0.32, 0.29, -0.54, 0.84), (1.0, 0.06, 0.0, -0.94, 0.91)  # GRPO on hops with hints
    assert watched(*hinted)[1][-1] and not watched(*[figures[:4] for figures in hinted])[1][-1]
    assert watched((1.0, 0.8, 0.0, -9.0), (1.0, 0.8, 0.0, -6.0))[1] == [None, None]  # there were none at the start
    assert watched((12.0, *start[1:]), (4.0, *short[1:]), closing=4)[1][-1]  # nothing but the text that closes them
    assert watched((4.0, *start[1:]), (4.0, *short[1:]), closing=4)[1] == [None, None]
    assert watched(start, short, share=0.2)[1] == watched(start, short, share=0.0)[1] == [None, None]


def test_a_single_rationale_has_vanished_only_where_it_gains_nothing():
    start = (4.0, 0.8, 39.0, -math.inf)
    for gain in (30.0, 0.9, 0.09, -2.0, -math.inf, math.nan):
        told = watched(start, (4.0, 0.2, gain, -2.0))[1][-1]
        assert bool(told) != (gain > 0.1) and (not told or "unique_rationales went from 0.8 to 0.2" in told), gain
    assert watched(start, (4.0, 0.21, 0.0, -2.0))[1] == [None, None]


def test_evaluations_without_rationales_are_not_watched_and_older_control_states_start_later():
    config, control = small(), initial_control(small())
    assert watch_rationales(control, config, 3, {"maj@4": 0.5, "log_p_hat": -1.0}) == (control, None)
    saved = control.to_dict()
    del saved["start"], saved["start_step"], saved["vanished_at"]
    assert control_from_dict(saved) == control


def test_updates_left_out_are_counted_in_a_row_and_stop_the_run_in_a_sentence():
    config = small(guards__max_skipped=3)
    left_out = StepMeasurement(skipped=True, bad_examples=["7", "9"])
    control = initial_control(config)
    for step in range(2):
        control = after_step(control, config, step, left_out)
    assert after_step(control, config, 2, StepMeasurement(skipped=False)).skipped == 0
    with pytest.raises(UserError, match=r"steps 0 to 2: .*not finite.*examples of the last: 7, 9; .*from before"):
        after_step(control, config, 2, left_out)


def test_what_is_saved_is_the_same_state_again():
    control, _ = evaluated(small(), (0.2, 1.0), (0.8, math.inf))
    saved = json.loads(json.dumps(control.to_dict()))
    assert control_from_dict(saved) == control


@pytest.mark.parametrize(
    "other",
    [
        {"q": "x"}, {"q": None}, {"estimator": "none"}, {"estimator": []}, {"tested_at": "4"},
        {"evaluated_at": None}, {"skipped": True}, {"best": []}, {"best": None}, {"best": {"m": 5}},
        {"best": {"m": {"value": "x", "step": 1}}}, {"best": {"m": {"value": 0.5}}}, {"later": 1},
        {"start": dict.fromkeys(STARTS, "x")},
        {"start": {"log_p_hat": 0.5}}, {"start": None}, {"start": []}, {"start_step": "1"}, {"vanished_at": None},
    ],
)  # fmt: skip
def test_a_control_state_that_no_run_writes_is_one_sentence(other):
    saved = ControlState(estimator="garl", q=0.5).to_dict() | other
    with pytest.raises(UserError, match=r"control state is not one that this version .*finish that run with"):
        control_from_dict(saved)
