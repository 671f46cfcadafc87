"""Bootstrap intervals of figures that are means over prompts."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def bootstrap(outcomes: Sequence[np.ndarray]) -> tuple[float, float]:
    """Computes a 95% percentile interval of the mean over runs of the mean over prompts.

    Prompts are resampled in each run. The interval says how well these test prompts measure these runs, not how runs of
    other seeds would turn out.

    Args:
      outcomes: one array [P] a run.
    """
    rng = np.random.default_rng(0)
    means = [x[rng.integers(len(x), size=(RESAMPLES, len(x)))].mean(1) for x in outcomes]
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return float(low), float(high)
