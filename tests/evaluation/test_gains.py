"""The gains of rationales, including answers without probability."""

import numpy as np
import pytest

from tsallis_rl.evaluation.gains import gain_scores, gains

INF, NAN = np.inf, np.nan


def test_the_gain_of_each_prompt_is_a_difference_of_logs_with_its_limits():
    with_, without = np.array([-2.0, -INF, -3.0, -INF, NAN, -1.0]), np.array([-5.0, -5.0, -INF, -INF, -1.0, NAN])
    np.testing.assert_array_equal(gains(with_, without), [3.0, -INF, INF, 0.0, NAN, NAN])
    assert gain_scores(with_, without)["rationale_helps"] == 2 / 6


def test_a_mean_is_finite_where_all_prompts_are():
    found = gain_scores(np.array([-2.0, -1.0, -4.0]), np.array([-3.0, -3.0, -4.0]))
    assert found == pytest.approx(
        {"rationale_gain": 1.0, "rationale_gain_se": 3**-0.5, "rationale_helps": 2 / 3, "log_p_without": -10 / 3}
    )
    assert gain_scores(np.array([-2.0, -INF]), np.array([-3.0, -3.0]))["rationale_gain"] == -INF
    unknown = gain_scores(np.array([-INF, -1.0]), np.array([-3.0, -INF]))
    assert np.isnan(unknown["rationale_gain"]) and np.isnan(unknown["rationale_gain_se"])
    one = gain_scores(np.array([-1.0]), np.array([-3.0]))
    assert one["rationale_gain"] == 2.0 and np.isnan(one["rationale_gain_se"])
