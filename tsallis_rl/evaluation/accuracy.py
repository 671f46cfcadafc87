"""Computes figures of merit over sampled answers, pure functions of lists and arrays."""

from collections import Counter
from collections.abc import Sequence
from math import comb

import numpy as np


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Estimates without bias the chance that at least one of k answers is right, 1 − C(n−c, k) / C(n, k).

    Args:
      correct: [P, n] booleans.
      k: at most n.

    Returns:
      [P] float64 (Chen et al. 2021, arXiv 2107.03374).
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples a prompt, found {n}")
    return np.array([1 - comb(n - int(c), k) / comb(n, k) for c in correct.sum(axis=1)])


def majority(votes: Sequence[str | None]) -> int | None:
    """Returns the index of the majority's first vote; a tie goes to the answer that was sampled first.

    Args:
      votes: one key a sample, None where there is no answer: those do not vote.

    Returns:
      The index, or None if nobody voted.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    return votes.index(counts.most_common(1)[0][0]) if counts else None
