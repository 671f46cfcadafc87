"""Counts correct sampled answers: figures of merit of a split, and the outcome of each example."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tsallis_rl.evaluation.accuracy import Vote, majority, pass_at_k
from tsallis_rl.tasks.grading import is_correct

Grades = Sequence[Sequence[dict[str, float]]]
Votes = Sequence[Sequence[Vote | None]]


def summarize(grades: Grades, votes: Votes, metric: str) -> dict[str, float]:
    """Computes pass@1, pass@n and maj@n of `metric`, and the mean of every grade, from answers [P][n].

    Args:
      grades: the task's grades of each answer, {} for no answer.
      votes: one an answer, None for no answer.
      metric: the grade that counts as correct where it is 1.
    """
    n = len(votes[0])
    correct, majority_correct = _correct(grades, votes, metric)
    totals: Counter[str] = Counter()
    for row in grades:
        for answer in row:
            totals.update(answer)
    return {
        "pass@1": float(pass_at_k(correct, 1).mean()),
        f"pass@{n}": float(pass_at_k(correct, n).mean()),
        f"maj@{n}": float(majority_correct.mean()),
        **{f"mean_{name}": total / correct.size for name, total in totals.items()},
    }


def outcomes(ids: Sequence[str], grades: Grades, votes: Votes, metric: str) -> list[dict[str, Any]]:
    """Lists for each example its id, the numbers of correct and of all answers, and whether the majority is correct."""
    correct, majority_correct = _correct(grades, votes, metric)
    return [
        {"example": name, "correct": int(row.sum()), "samples": row.size, "majority": bool(won)}
        for name, row, won in zip(ids, correct, majority_correct, strict=True)
    ]


def _correct(grades: Grades, votes: Votes, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Marks correct answers [P, n], and examples whose majority is correct [P]."""
    correct = np.array([[is_correct(answer, metric) for answer in row] for row in grades])
    winners = [majority(row) for row in votes]
    return correct, np.array([w is not None and row[w] for row, w in zip(correct, winners, strict=True)], bool)
