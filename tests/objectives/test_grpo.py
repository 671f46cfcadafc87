"""GRPO's options on one group, worked out by hand."""

import numpy as np
import pytest

from tsallis_rl import objectives
from tsallis_rl.runs.errors import UserError

REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
LENGTHS = np.array([[2, 4, 4, 10], [8, 1, 2, 1]])  # means 5 and 3
CENTRED = np.array([[0.5, -0.5, -0.5, 0.5], [0.75, -0.25, -0.25, -0.25]])
STD = np.array([[0.5], [3**0.5 / 4]])


@pytest.mark.parametrize(
    ("options", "advantage"),
    [
        ({}, CENTRED / STD),
        ({"scale_rewards": "none"}, CENTRED),
        ({"length_norm": "rollout"}, CENTRED / STD / LENGTHS),
        ({"length_norm": "group"}, CENTRED / STD / [[5], [3]]),
        (
            {"length_norm": "rollout", "scale_rewards": "none"},
            [[1 / 4, -1 / 8, -1 / 8, 1 / 20], [3 / 32, -1 / 4, -1 / 8, -1 / 4]],
        ),
    ],
    ids=str,
)
def test_its_coefficients_are_those_of_the_papers(options, advantage):
    found = objectives.grpo(REWARDS, LENGTHS, epsilon=0.0, **options)
    np.testing.assert_allclose(found.score, np.asarray(advantage) / 4, rtol=1e-6)
    np.testing.assert_array_equal(found.path, found.score)


def test_the_token_level_loss_weighs_every_token_of_a_group_alike():
    """DAPO's equation, Σ_m Σ_t A_m ∇log p / Σ_m |o_m|: a rollout's own length does not change its tokens' share."""
    found = objectives.grpo(REWARDS, LENGTHS, epsilon=0.0, length_norm="group")
    np.testing.assert_allclose(found.score * LENGTHS.sum(-1, keepdims=True), CENTRED / STD, rtol=1e-6)


def test_without_division_it_is_dr_grpo_bit_for_bit():
    found = objectives.grpo(REWARDS, scale_rewards="none")
    np.testing.assert_array_equal(found.score, objectives.dr_grpo(REWARDS).score)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "maxrl", "curverl"])
def test_rewards_that_are_all_the_same_give_no_coefficient_whatever_their_mean_is_rounded_to(name):
    rewards = np.tile(np.array([[0.1], [0.3], [0.7]], np.float32), 32)  # the mean of 32 is not 0.1, nor 0.7
    group = {"log_w": 0 * rewards, "rewards": rewards, "rank_weight": 1 + 0 * rewards}
    assert not np.any(objectives.coefficients(objectives.ESTIMATORS[name], {}, group))


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UserError, match="length_norm='batch': choose from none, rollout, group"):
        objectives.grpo(REWARDS, LENGTHS, length_norm="batch")
    with pytest.raises(UserError, match="scale_rewards='range': choose from std, none"):
        objectives.grpo(REWARDS, scale_rewards="range")
    with pytest.raises(ValueError, match=r"lengths have shape None: length_norm='rollout' needs \(2, 4\)"):
        objectives.grpo(REWARDS, length_norm="rollout")
