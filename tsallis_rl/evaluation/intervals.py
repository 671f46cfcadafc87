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
    prompts = np.random.default_rng(0).integers(runs.shape[1], size=(RESAMPLES, runs.shape[1]))
    if np.isnan(runs).any():
        means = np.array([_mean_of_seen(run[prompts]) for run in runs])
    else:
        means = runs.mean(0)[prompts].mean(1)[None]
    low, high = np.nanquantile(means.mean(0), [0.025, 0.975])
    return float(low), float(high)


def _mean_of_seen(resampled: np.ndarray) -> np.ndarray:
    """Averages outcomes [resamples, P] over the prompts that were seen; NaN where none was."""
    seen = ~np.isnan(resampled)
    with np.errstate(invalid="ignore"):
        return np.where(seen, resampled, 0.0).sum(1) / seen.sum(1)
