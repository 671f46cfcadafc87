"""Computes figures of merit over sampled answers, as pure functions of lists and arrays."""

from collections import Counter
from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np


class Vote(NamedTuple):
    """A sampled answer as a majority vote counts it.

    Attributes:
      key: the same for answers that are counted together.
      form: the answer as it was written, without white space around it.
    """

    key: str
    form: str


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


def majority(votes: Sequence[Vote | None]) -> int | None:
    """Returns the index of the majority's answer: the most common form of the most common key.

    A tie, of keys or of forms, goes to the one sampled first.

    Args:
      votes: one a sample; None for no answer, which does not vote.

    Returns:
      The index of the form's first vote, or None if nobody voted.
    """
    counts = Counter(vote.key for vote in votes if vote is not None)
    if not counts:
        return None
    winner = counts.most_common(1)[0][0]
    forms = Counter(vote for vote in votes if vote is not None and vote.key == winner)
    return votes.index(forms.most_common(1)[0][0])
