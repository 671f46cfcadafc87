"""Quantities that also depend on earlier batches, and the histories that are kept for them.

A history is a list of plain numbers, which is saved with the control state. A step reads the history of the batches
before it. So a group's coefficients depend on that group and the history alone, and one rollout can be sampled again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

KEPT_SHARE = 0.99  # decay per batch of the moving average of standard deviations (RLPR)
WINDOW = 10  # batches whose pass rates are counted (CurveRL)


class History(NamedTuple):
    """A quantity with a history.

    Attributes:
      needs: names of the quantities that it is made from.
      read: (history, the batch's other quantities [P, M]) → the quantity [P, M], float64.
      extend: (history, the batch's other quantities [P, M]) → the history after the batch.
    """

    needs: tuple[str, ...]
    read: Callable[[Sequence, Mapping[str, np.ndarray]], np.ndarray]
    extend: Callable[[Sequence, Mapping[str, np.ndarray]], list]


def usual_std(history: Sequence[float], group: Mapping[str, np.ndarray]) -> np.ndarray:
    """Reads the moving average of the standard deviations of RLPR's rewards → [P, M]; 0 before the first batch."""
    return np.full(group["gold_prob"].shape, history[0] if history else 0.0)


def _extend_usual_std(history: Sequence[float], group: Mapping[str, np.ndarray]) -> list[float]:
    """Updates the average with the mean standard deviation of a batch's groups → [average], or [] if there is none."""
    gain = group["gold_prob"].astype(np.float64) - group["gold_prob_without"]
    std = np.maximum(gain, 0.0).std(-1)
    std = std[np.isfinite(std)]
    if not len(std):
        return list(history)
    mean = float(std.mean())
    return [KEPT_SHARE * history[0] + (1 - KEPT_SHARE) * mean] if history else [mean]


def rank_weight(history: Sequence[Sequence[int]], group: Mapping[str, np.ndarray]) -> np.ndarray:
    """Computes mass over cumulative mass of the histogram of earlier pass rates, at each group's pass rate → [P, M].

    This is the derivative of log F, where F is the distribution of pass rates. The group itself is counted with the
    earlier ones, so that a new pass rate has a weight above 0, and all weights of the first batch are 1.
    """
    counts = _successes(group)
    seen = np.array([sum(batch) for batch in zip(*history, strict=True)] or np.zeros(group["rewards"].shape[1] + 1))
    weight = (seen[counts] + 1.0) / (np.cumsum(seen)[counts] + 1.0)
    return np.repeat(weight[:, None], group["rewards"].shape[1], axis=1)


def _extend_pass_rates(history: Sequence[Sequence[int]], group: Mapping[str, np.ndarray]) -> list[list[int]]:
    """Appends a batch's histogram [M + 1] of correct answers per group, and keeps the last WINDOW batches.

    Groups with no correct answer, or only correct ones, are not counted.
    """
    m = group["rewards"].shape[1]
    counts = _successes(group)
    found = np.bincount(counts[(counts > 0) & (counts < m)], minlength=m + 1)
    return [*map(list, history), found.tolist()][-WINDOW:]


def _successes(group: Mapping[str, np.ndarray]) -> np.ndarray:
    """Sums the rewards of each group, rounded to a whole number → [P]."""
    return np.rint(group["rewards"].astype(np.float64).sum(-1)).astype(int)


HISTORIES: dict[str, History] = {
    "usual_std": History(("gold_prob", "gold_prob_without"), usual_std, _extend_usual_std),
    "rank_weight": History(("rewards",), rank_weight, _extend_pass_rates),
}


def extended(histories: Mapping[str, Sequence], group: Mapping[str, Any]) -> dict[str, list]:
    """Extends by a batch the histories of the quantities in its `group` → {name: history}."""
    arrays = {name: np.asarray(x) for name, x in group.items()}
    return {name: HISTORIES[name].extend(histories.get(name, ()), arrays) for name in arrays if name in HISTORIES}
