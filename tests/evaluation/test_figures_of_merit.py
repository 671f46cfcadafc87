"""pass@k and maj@k for several k, compared with enumeration; intervals cover the truth as often as they claim."""

from itertools import permutations

import numpy as np
import pytest

from tsallis_rl.evaluation.accuracy import Vote, majority
from tsallis_rl.evaluation.evaluator import Graded
from tsallis_rl.evaluation.figures_of_merit import by_example, figures_of_merit, majority_at_k
from tsallis_rl.tasks.base import Example


def graded(answers: list[str | None], gold: str = "a", log_p_hat: float = -1.0) -> Graded:
    return Graded(
        example=Example("x", "", gold),
        grades=[{} if text is None else {"exact": float(text == gold), "f1": 0.5} for text in answers],
        votes=[text and Vote(text, text) for text in answers],
        log_p_hat=log_p_hat,
        closing=np.zeros(len(answers)),
        answer_length=np.ones(len(answers)),
        truncated=np.zeros(len(answers)),
    )


def test_figures_of_one_k_after_the_other_by_hand():
    some = [graded(["a", "b", "b", "a"]), graded([None, "a", "b", "b"], log_p_hat=-3.0)]
    found = figures_of_merit(some, [1, 2, 4], "exact")
    values = {name: figure.value for name, figure in found.items()}
    assert values == {
        "pass@1": pytest.approx((2 / 4 + 1 / 4) / 2),
        "pass@2": pytest.approx((1 - 1 / 6 + 1 - 3 / 6) / 2),
        "pass@4": 1.0,
        "maj@1": pytest.approx((2 / 4 + 1 / 4) / 2),
        "maj@2": pytest.approx((1 / 2 + 1 / 2) / 2),  # a, b of "ab", "ba"; a, b of "–a", "bb"
        "maj@4": 0.5,  # a tie goes to the first; b has more
        "mean_exact": pytest.approx(3 / 8),
        "mean_f1": pytest.approx(0.5 * 7 / 8),
        "log_p_hat": -2.0,
    }
    assert all(figure.low <= figure.value <= figure.high for figure in found.values())


def test_majorities_of_k_are_unbiased_for_every_k_that_does_not_divide_the_samples():
    votes = [text and Vote(text, text) for text in ("a", "b", "a", None, "b")]
    for k in (1, 2, 3, 4, 5):
        orders = [list(order) for order in permutations(votes)]
        found = np.mean([majority_at_k(np.array([v == ("a", "a") for v in order]), order, k) for order in orders])
        first = [majority(order[:k]) for order in orders]
        wins = [w is not None and order[w].key == "a" for w, order in zip(first, orders, strict=True)]
        assert found == pytest.approx(np.mean(wins), abs=1e-12), k


def test_an_example_without_weight_has_a_mean_of_minus_infinity_and_no_interval():
    found = figures_of_merit([graded(["a"]), graded(["b"], log_p_hat=-np.inf)], [1], "exact")
    assert found["log_p_hat"] == (-np.inf, None, None) and found["pass@1"].value == 0.5


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        some = [graded(["a" if x < 0.3 else "b" for x in rng.random(4)]) for _ in range(60)]
        _, low, high = figures_of_merit(some, [2], "exact")["pass@2"]
        held += low <= 1 - 0.7**2 <= high
    assert 88 <= held <= 100
    assert by_example([graded(["a", "b"])], [1], "exact")["pass@1"].tolist() == [0.5]
