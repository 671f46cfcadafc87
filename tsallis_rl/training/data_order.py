"""The order of the training examples, a function of (seed, step)."""

from collections.abc import Sequence

import numpy as np


def batch_indices(parts: Sequence[str], batch: int, seed: int, step: int) -> np.ndarray:
    """Returns the indices [P] of the examples that step `step` trains on.

    Epoch follows epoch, each in an order drawn from (seed, epoch). The examples' parts are spread evenly over the
    epoch, so that every batch holds them in the split's proportions.

    Args:
      parts: of each training example.
      batch: P.
      seed: config.seed.
      step: updates made so far.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = {epoch: _epoch_order(parts, seed, epoch) for epoch in set(positions // len(parts))}
    return np.array([epochs[i // len(parts)][i % len(parts)] for i in positions])


def _epoch_order(parts: Sequence[str], seed: int, epoch: int) -> np.ndarray:
    """Orders the examples of an epoch: the k-th of a part's n stands at (k + ½)/n of the way."""
    order = np.random.default_rng([seed, epoch]).permutation(len(parts))
    way, shuffled = np.empty(len(parts)), np.asarray(parts)[order]
    for part in set(parts):
        of_part = shuffled == part
        way[of_part] = (np.arange(of_part.sum()) + 0.5) / of_part.sum()
    return order[np.argsort(way, kind="stable")]
