"""pass@k and majority votes against enumeration and hand-worked cases."""

from itertools import combinations

import numpy as np
import pytest

from tsallis_rl.evaluation.accuracy import majority, pass_at_k
from tsallis_rl.evaluation.outcomes import summarize


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_answer(k):
    correct = np.array([[c < n for c in range(6)] for n in range(7)])
    found = pass_at_k(correct, k)
    expected = [np.mean([any(subset) for subset in combinations(row, k)]) for row in correct]
    np.testing.assert_allclose(found, expected)


def test_pass_at_k_refuses_more_answers_than_were_sampled():
    with pytest.raises(ValueError, match="pass@7 needs at least 7"):
        pass_at_k(np.ones((1, 6), bool), 7)


def test_majority_goes_to_the_first_sampled_on_a_tie_and_no_answer_does_not_vote():
    assert majority(["b", "a", "a", "b"]) == 0
    assert majority([None, None, None, "a"]) == 3
    assert majority(["a", "b", "b"]) == 1
    assert majority([None, None]) is None


def test_summary_counts_missing_answers_as_wrong():
    right, wrong = {"exact": 1.0, "f1": 1.0}, {"exact": 0.0, "f1": 0.5}
    grades = [[right, wrong, wrong, {}], [wrong, {}, {}, {}]]
    votes = [["a", "b", "b", None], ["c", None, None, None]]
    assert summarize(grades, votes, "exact") == {
        "pass@1": 0.125,
        "pass@4": 0.5,
        "maj@4": 0.0,
        "mean_exact": 0.125,
        "mean_f1": 2.5 / 8,
    }
