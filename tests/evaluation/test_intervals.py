"""Bootstrap intervals against the normal approximation."""

import numpy as np
import pytest

from tsallis_rl.evaluation.intervals import bootstrap


def test_bootstrap_intervals_are_those_of_the_normal_approximation_and_seeds_narrow_them():
    rng = np.random.default_rng(1)
    one = (rng.random(400) < 0.3) * 1.0
    half = 1.96 * one.std() / np.sqrt(400)
    np.testing.assert_allclose(bootstrap([one]), (one.mean() - half, one.mean() + half), atol=0.01)
    low, high = bootstrap([one] * 4)
    assert high - low == pytest.approx(half, rel=0.15)  # half of 2 × half
    assert bootstrap([np.zeros(5)]) == (0.0, 0.0)
