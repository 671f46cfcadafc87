"""The figures of the gaps between learner and sampler, compared with NumPy's for the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsallis_rl.training.log_prob_gaps import count_gaps, gap_figures, no_gaps


@pytest.mark.parametrize("scale", [1e-6, 0.02, 3.0])
@pytest.mark.parametrize("slices", [1, 4])
def test_mean_and_largest_are_exact_and_the_percentile_to_five_percent(scale, slices):
    rng = np.random.default_rng(0)
    gaps, counted = np.float32(scale * rng.exponential(size=(8, 500))), rng.random((8, 500)) < 0.3
    total = no_gaps(8 // slices)
    for some, of_some in zip(np.split(gaps, slices), np.split(counted, slices), strict=True):
        total = total.plus(jax.jit(count_gaps)(some, of_some))
    found, chosen = gap_figures(jax.device_get(total)), gaps[counted]
    assert found["log_prob_gap_mean"] == pytest.approx(chosen.mean(), rel=1e-5)
    assert found["log_prob_gap"] == chosen.max()
    exact = np.quantile(chosen, 0.99, method="inverted_cdf")
    assert exact * 0.999 <= found["log_prob_gap_p99"] <= exact * 1.06


def test_tokens_without_a_coefficient_count_for_nothing_and_a_nan_shows():
    gaps = jnp.array([[5.0, 0.5], [jnp.nan, 0.5]])
    chosen = jnp.array([[False, True], [False, True]])
    assert gap_figures(jax.device_get(count_gaps(gaps, chosen))) == pytest.approx(
        {"log_prob_gap_mean": 0.5, "log_prob_gap_p99": 0.5, "log_prob_gap": 0.5}
    )
    assert gap_figures(jax.device_get(count_gaps(gaps, ~chosen)))["log_prob_gap_mean"] != 0.5
    assert np.isnan(gap_figures(jax.device_get(count_gaps(gaps, ~chosen)))["log_prob_gap"])
    assert set(gap_figures(jax.device_get(no_gaps(2))).values()) == {0.0}
