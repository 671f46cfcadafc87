"""The evaluator on an untrained model: its own sampling, its subsets, and its order, which batches do not change."""

import jax
import numpy as np
import pytest

from tests.support.runs import small
from tsallis_rl.models import initialize
from tsallis_rl.runs.errors import UserError
from tsallis_rl.sampler.keys import VALIDATION
from tsallis_rl.training.setup import Setup, prepare


def evaluated(setup: Setup, **wanted):
    params = initialize(setup.arch, jax.random.key(0))
    return setup.evaluator(params, setup.splits["validation"], VALIDATION, **wanted)


def texts(found) -> list[tuple]:
    return [(row["example"], row["rollout"], row["rationale"], row["sampled"]) for row in found.answers]


@pytest.fixture(scope="module")
def whole():
    setup = prepare(small("start=warm", rollouts__max_rationale=6, rollouts__unclosed="close"))
    return evaluated(setup, texts=None)


def test_training_settings_stay_the_trainings(whole):
    setup = prepare(
        small(
            "start=warm", rollouts__max_rationale=6, rollouts__unclosed="close", rollouts__temperature=0.0,
            rollouts__top_k=1, rollouts__top_p=0.5, rollouts__min_p=0.5,
        )
    )  # fmt: skip
    assert texts(evaluated(setup, texts=None)) == texts(whole)


@pytest.mark.parametrize("greedy", [{"greedy": True}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_greedy_is_temperature_zero_is_one_token_to_choose_from(greedy):
    changes = {f"evaluate__{name}": value for name, value in greedy.items()}
    setup = prepare(small("start=warm", rollouts__max_rationale=6, evaluate__samples=1, **changes))
    one, other = evaluated(setup, texts=None), prepare(small("start=warm", rollouts__max_rationale=6, seed=7))
    assert len(one.answers) == 6
    setup.config.seed = other.config.seed  # other draws, the same tokens
    assert texts(evaluated(setup, texts=None)) == texts(one)


def test_a_subset_has_the_answers_that_it_has_in_the_whole_and_batches_change_none(whole):
    setup = prepare(small("start=warm", rollouts__max_rationale=6, rollouts__unclosed="close", evaluate__prompts=3))
    some = evaluated(setup, examples=4, texts=3)
    ids = [row["example"] for row in some.outcomes]
    assert ids == sorted(ids, key=int) and len(ids) == 4
    assert len(some.answers) == 3 * 4 and {row["example"] for row in some.answers} < set(ids)
    assert set(texts(some)) <= set(texts(whole))
    log_w = {(row["example"], row["rollout"]): row["log_w"] for row in whole.answers}
    assert [log_w[row["example"], row["rollout"]] for row in some.answers] == pytest.approx(
        [row["log_w"] for row in some.answers], rel=1e-5
    )
    by_id = {row["example"]: row for row in whole.outcomes}
    assert some.outcomes == [by_id[id] for id in ids]
    assert evaluated(setup, examples=99, texts=0).outcomes == whole.outcomes


def test_rationales_are_measured_against_answers_without_one(whole):
    scores = whole.scores
    groups = [[row["rationale"] for row in whole.answers[i : i + 4]] for i in range(0, len(whole.answers), 4)]
    assert scores["unique_rationales"] == pytest.approx(np.mean([len(set(group)) / 4 for group in groups]))
    assert 1 <= scores["rationale_length_p10"] <= scores["rationale_length_median"] <= scores["rationale_length_p90"]
    assert scores["rationale_length_p90"] <= 7
    assert 0 < scores["rationale_token_entropy"] < np.log(100) and 0 < scores["answer_token_entropy"] < np.log(100)

    setup = prepare(
        small("start=warm", rollouts__max_rationale=6, rollouts__unclosed="close", evaluate__rationale="none")
    )
    without = evaluated(setup)
    assert scores["log_p_without"] == pytest.approx(without.scores["log_p_hat"], rel=1e-5)
    assert scores["rationale_gain"] == pytest.approx(scores["log_p_hat"] - scores["log_p_without"], rel=1e-4)
    of_each = [x.log_p_hat - y.log_p_hat for x, y in zip(whole.graded, without.graded, strict=True)]
    assert scores["rationale_gain_se"] == pytest.approx(np.std(of_each, ddof=1) / 6**0.5, rel=1e-3)
    assert scores["rationale_helps"] == np.mean(np.array(of_each) > 0)
    assert not [name for name in without.scores if "rationale" in name or "entropy" in name or "without" in name]


def test_what_would_sample_one_text_over_and_over_is_refused_by_its_field():
    with pytest.raises(UserError, match=r"greedy=True: the 4 samples .* would all be the same; set config"):
        prepare(small(evaluate__greedy=True))
    with pytest.raises(UserError, match=r"config.evaluate.temperature=0: the 4 samples"):
        prepare(small(evaluate__temperature=0.0))
    with pytest.raises(UserError, match=r"config.evaluate.top_p=0.5: config.evaluate.greedy takes .*; leave it at 1.0"):
        prepare(small(evaluate__greedy=True, evaluate__samples=1, evaluate__top_p=0.5))
    assert np.isfinite(prepare(small(evaluate__temperature=0.0, evaluate__samples=1)).config.evaluate.top_p)
