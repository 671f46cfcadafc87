"""pass@k and majority votes against enumeration and hand-worked cases."""

from itertools import combinations

import numpy as np
import pytest

from tsallis_rl.evaluation.accuracy import Vote, majority, pass_at_k
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


def votes(*answers: str | None) -> list[Vote | None]:
    return [None if text is None else Vote(text.lower(), text) for text in answers]


def test_majority_goes_to_the_first_sampled_on_a_tie_and_no_answer_does_not_vote():
    assert majority(votes("b", "a", "a", "b")) == 0
    assert majority(votes(None, None, None, "a")) == 3
    assert majority(votes("a", "b", "b")) == 1
    assert majority(votes(None, None)) is None


def test_majority_stands_for_its_most_common_form_in_whatever_order_forms_were_sampled():
    assert majority(votes("new york", *["New York"] * 15)) == 1
    assert majority(votes(*["New York"] * 15, "new york")) == 0
    assert majority(votes("Rome", "new york", "New York", "Rome", "New York")) == 2
    assert majority(votes("new york", "New York", "NEW YORK")) == 0  # a tie of forms: the first

    right, wrong = {"exact": 1.0}, {"exact": 0.0}
    ordered = votes("new york", *["New York"] * 15)
    for order, grades in ((ordered, [wrong, *[right] * 15]), (ordered[::-1], [*[right] * 15, wrong])):
        assert summarize([grades], [order], "exact")["maj@16"] == 1


def test_summary_counts_missing_answers_as_wrong():
    right, wrong = {"exact": 1.0, "f1": 1.0}, {"exact": 0.0, "f1": 0.5}
    grades = [[right, wrong, wrong, {}], [wrong, {}, {}, {}]]
    cast = [votes("a", "b", "b", None), votes("c", None, None, None)]
    assert summarize(grades, cast, "exact") == {
        "pass@1": 0.125,
        "pass@4": 0.5,
        "maj@4": 0.0,
        "mean_exact": 0.125,
        "mean_f1": 2.5 / 8,
    }
