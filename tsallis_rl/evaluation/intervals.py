"""Bootstrap intervals of figures that are means over prompts."""

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000


def bootstrap(outcomes: ArrayLike) -> tuple[float, float]:
    """Computes a 95% percentile interval of the mean over runs of the mean over prompts.

    The same prompts are resampled in all runs: what is hard for one seed is hard for the next. The interval says how
    well these test prompts measure these runs, not how runs of other seeds would turn out.

    Args:
      outcomes: [P] of one run or [R, P] of several; NaN where a run did not see a prompt.
    """
    runs = np.atleast_2d(np.asarray(outcomes, float))
    prompts = runs.shape[1]
    drawn = np.random.default_rng(0).integers(prompts, size=(RESAMPLES, prompts))
    drawn += prompts * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * prompts).reshape(RESAMPLES, prompts).astype(float)
    seen = ~np.isnan(runs)
    with np.errstate(invalid="ignore"):  # a run may have seen none of the prompts of a resample
        means = counts @ np.where(seen, runs, 0.0).T / (counts @ seen.T)
    low, high = np.nanquantile(means.mean(1), [0.025, 0.975])
    return float(low), float(high)
