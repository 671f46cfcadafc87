"""The controller's rule, by numbers worked out by hand."""

import math

import pytest

from tsallis_rl.objectives import Decision, decide

START = Decision(q=0.75)


def after(log_p_hat: float, ess: float = 32.0, previous: Decision = START, **changes) -> Decision:
    rule = {"num_rollouts": 32, "nats": 5.0, "max_variance": 0.0, "collapse_nats": 0.0}
    shadows = changes.pop("shadows", {})
    metrics = {"log_p_hat_mean": log_p_hat, "effective_sample_size": ess, **shadows}
    return decide(previous, metrics, **rule | changes)


def test_q_attenuates_by_the_granted_nats_and_no_more():
    assert after(-50.0).q == pytest.approx(0.9)
    for log_p_hat in (-5.1, -12.0, -400.0):
        assert (1 - after(log_p_hat).q) * log_p_hat == pytest.approx(-5.0)
    for log_p_hat in (-5.0, -1.0, 0.0):
        assert after(log_p_hat).q == 0.0


def test_an_estimate_that_rests_on_few_rollouts_counts_for_their_share():
    discounted = -20.0 + math.log(2 / 32)
    assert after(-20.0, ess=2.0).q == pytest.approx(1 + 5.0 / discounted)
    assert after(-20.0, ess=2.0).q > after(-20.0, ess=16.0).q


def test_q_is_the_least_whose_shadow_is_quiet_enough_and_stays_until_the_next_measurement():
    shadows = {f"shadow/garl@{q}/variance": x for q, x in {0: 60.0, 0.25: 30.0, 0.5: 9.0, 1: 8.0}.items()}
    shadows |= {"shadow/paft@0.25/variance": 1.0, "shadow/garl@0.25/cosine": 1.0}
    measured = after(-1.0, shadows=shadows, max_variance=10.0)
    assert measured.q == 0.5
    assert after(-1.0, previous=measured, max_variance=10.0).q == 0.5
    assert after(-50.0, previous=measured, max_variance=10.0).q == pytest.approx(0.9)
    assert after(-1.0, shadows=shadows, max_variance=5.0).q == 1.0
    assert after(-1.0, shadows=shadows).q == 0.0


def test_paft_takes_over_for_good_once_the_running_mean_has_fallen():
    decision = after(-1.0, collapse_nats=2.0)
    assert (decision.level, decision.best, decision.paft) == (-1.0, -1.0, 0.0)
    decision = after(-20.0, previous=decision, collapse_nats=2.0)
    assert decision.level == pytest.approx(-2.9) and decision.best == -1.0 and decision.paft == 0.0
    decision = after(-20.0, previous=decision, collapse_nats=2.0)  # level -4.61
    assert decision.paft == 1.0 and decision.q == pytest.approx(0.75)
    assert after(0.0, previous=decision, collapse_nats=2.0)[:2] == (0.75, 1.0)
    assert after(-20.0, previous=after(-1.0)).paft == 0.0


def test_a_step_without_any_weight_changes_no_decision():
    decision = after(-30.0, collapse_nats=2.0)
    for nothing in (None, math.nan):
        assert after(nothing, ess=0.0, previous=decision, collapse_nats=2.0) == decision
