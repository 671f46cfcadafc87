"""Bootstrap intervals against the normal approximation."""

import numpy as np
import pytest

from tsallis_rl.evaluation.intervals import bootstrap


def test_intervals_are_those_of_the_normal_approximation():
    rng = np.random.default_rng(1)
    one = (rng.random(400) < 0.3) * 1.0
    half = 1.96 * one.std() / np.sqrt(400)
    np.testing.assert_allclose(bootstrap(one), (one.mean() - half, one.mean() + half), atol=0.01)
    assert bootstrap(np.zeros(5)) == (0.0, 0.0)


def test_copies_of_a_run_narrow_nothing_and_runs_that_differ_do():
    rng = np.random.default_rng(1)
    runs = (rng.random((4, 400)) < 0.3) * 1.0
    np.testing.assert_allclose(bootstrap([runs[0]] * 4), bootstrap(runs[0]), atol=1e-12)
    assert width(runs) == pytest.approx(width(runs[0]) / 2, rel=0.15)


@pytest.mark.parametrize("runs", [1, 5])
def test_intervals_cover_the_mean_of_these_runs_over_all_prompts(runs):
    """Of 300 draws of 100 prompts, whose difficulty all runs share, 95% ± 3.8% (three standard errors) are covered."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        rates = rng.beta(0.5, 0.5, size=100)
        low, high = bootstrap(rng.binomial(16, rates, size=(runs, 100)) / 16)
        covered += low <= 0.5 <= high
    assert 0.91 < covered / 300 < 0.99


def test_prompts_that_only_some_runs_saw_count_in_these():
    rng = np.random.default_rng(3)
    first, second = (rng.random((2, 200)) < [[0.3], [0.6]]) * 1.0
    nothing = np.full(200, np.nan)
    apart = [np.append(first, nothing), np.append(nothing, second)]
    expected = (first.mean() + second.mean()) / 2
    half = 1.96 * np.sqrt((first.var() + second.var()) / 200) / 2
    np.testing.assert_allclose(bootstrap(apart), (expected - half, expected + half), atol=0.015)


def width(outcomes: np.ndarray) -> float:
    low, high = bootstrap(outcomes)
    return high - low
