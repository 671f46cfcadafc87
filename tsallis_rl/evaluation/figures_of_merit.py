"""Computes pass@k and maj@k for several k, with intervals over examples, from graded answers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tsallis_rl.evaluation.accuracy import Vote, majority, pass_at_k
from tsallis_rl.evaluation.evaluator import Graded
from tsallis_rl.evaluation.gains import gains
from tsallis_rl.evaluation.intervals import bootstrap
from tsallis_rl.tasks.grading import is_correct


class Figure(NamedTuple):
    """The mean of a figure over examples.

    Attributes:
      value: the mean; not finite if an example's value is not, such as log P̂ = −∞.
      low, high: a 95% bootstrap interval over examples; None if the mean is not finite.
    """

    value: float
    low: float | None
    high: float | None


def figures_of_merit(graded: Sequence[Graded], ks: Sequence[int], metric: str) -> dict[str, Figure]:
    """Computes pass@k and maj@k of `metric` for every k, the mean of every grade, and log P̂ in nats.

    If rationales were sampled, also computes their gain in nats (`gains.gains`).

    Args:
      graded: n graded answers of each example.
      ks: at most n.
      metric: the grade that counts as correct where it is 1.
    """
    return {name: _figure(values) for name, values in by_example(graded, ks, metric).items()}


def by_example(graded: Sequence[Graded], ks: Sequence[int], metric: str) -> dict[str, np.ndarray]:
    """Computes the figures of each example: name → [P]; see `figures_of_merit`."""
    correct = np.array([[is_correct(grades, metric) for grades in x.grades] for x in graded])
    found = {f"pass@{k}": pass_at_k(correct, k) for k in ks}
    for k in ks:
        pairs = zip(correct, graded, strict=True)
        found[f"maj@{k}"] = np.array([majority_at_k(row, x.votes, k) for row, x in pairs])
    for name in dict.fromkeys(name for x in graded for grades in x.grades for name in grades):
        found[f"mean_{name}"] = np.array([np.mean([grades.get(name, 0.0) for grades in x.grades]) for x in graded])
    found["log_p_hat"] = np.array([float(x.log_p_hat) for x in graded])
    if graded[0].log_p_without is not None:
        found["rationale_gain"] = gains(found["log_p_hat"], np.array([float(x.log_p_without) for x in graded]))
    return found


def majority_at_k(correct: np.ndarray, votes: Sequence[Vote | None], k: int) -> float:
    """Estimates without bias the chance that the majority of k answers is right, from n of them.

    The n answers are cut, in sampling order, into ⌊n/k⌋ blocks of k; the estimate is the share of blocks whose majority
    is right. At k = n it is whether the majority of all is right, at k = 1 the share of right answers.

    Args:
      correct: [n] booleans.
      votes: one an answer, None for no answer.
      k: at most n.
    """
    blocks = range(0, len(votes) - k + 1, k)
    winners = [(first, majority(votes[first : first + k])) for first in blocks]
    return float(np.mean([winner is not None and correct[first + winner] for first, winner in winners]))


def _figure(values: np.ndarray) -> Figure:
    """Computes mean and interval of values [P]."""
    finite = np.isfinite(values).all()
    low, high = bootstrap(values) if finite else (None, None)
    return Figure(float(values.mean()), low, high)
