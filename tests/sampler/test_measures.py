"""Measures of rationales, compared with counts of the record's tokens and flat log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backends import close
from tests.support.rollouts import ARCH, BATCH, JOINT, PARAMS, THINK_END, A, M, P, flat_log_probs, sample, with_rules
from tsallis_rl.sampler.measures import Measures, measures_of, rationale_figures
from tsallis_rl.sampler.record import NEVER, Rollouts
from tsallis_rl.sampler.rules import Rules
from tsallis_rl.sampler.sampler import score_without_rationale


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return sample(max_answer=A)


def measured(rollouts: Rollouts) -> Measures:
    return jax.device_get(measures_of(rollouts))


def test_a_rationale_is_new_where_no_earlier_one_of_the_prompt_has_its_tokens(rollouts):
    found = measured(rollouts)
    for p in range(P):
        texts = [tuple(rollouts.targets[p, m, : rollouts.rationale_length[p, m]].tolist()) for m in range(M)]
        assert found.is_first[p].tolist() == [text not in texts[:m] for m, text in enumerate(texts)]
    assert 0 < found.is_first.mean() < 1
    same = rollouts.targets.copy()
    same[:, :, 0] = THINK_END  # what comes behind the end of a rationale makes it no other one
    closed = rollouts._replace(targets=same, rationale_length=np.ones_like(rollouts.rationale_length))
    assert rationale_figures(measured(closed))["unique_rationales"] == 1 / M


def test_token_entropies_are_means_over_the_sampled_tokens_alone(rollouts):
    nats, answers, lengths = [], [], rollouts.rationale_length
    for p in range(P):
        prompt = BATCH.prompt[p, : BATCH.prompt_length[p]]
        for m in range(M):
            length, start = lengths[p, m], rollouts.answer_start[p, m]
            end = length if rollouts.closing[p, m] == NEVER else start + rollouts.answer_length[p, m]
            log_p = flat_log_probs(prompt, rollouts.targets[p, m, :end]).astype(float)
            is_sampled = rollouts.sampled[p, m, :end]
            nats += (-log_p[:length][is_sampled[:length]]).tolist()
            answers += (-log_p[start:][is_sampled[start:]]).tolist()
    found = rationale_figures(measured(rollouts))
    assert len(nats) < lengths.sum()  # some were forced
    assert found["rationale_token_entropy"] == pytest.approx(np.mean(nats), rel=close(1e-5))
    assert found["answer_token_entropy"] == pytest.approx(np.mean(answers), rel=close(1e-5))
    assert found["rationale_length"] == lengths.mean()
    assert found["rationale_length_median"] == np.median(lengths)
    assert found["rationale_length_p10"] <= found["rationale_length_median"] <= found["rationale_length_p90"]


def test_the_spread_is_of_log_w_over_the_different_rationales_with_weight(rollouts):
    first = np.array([[True, True, False, True], [True, False, False, False], [True, True, True, True]])
    log_w = np.array([[-1.0, -3.0, -50.0, -np.inf], [-7.0, -9.0, -9.0, -9.0], [-2.0, -2.0, -2.0, -2.0]])
    written = measured(rollouts)._replace(is_first=first, log_w=log_w)
    assert rationale_figures(written)["rationale_spread"] == (1.0 + 0.0) / 2  # the second prompt has one rationale
    assert np.isnan(rationale_figures(written._replace(is_first=first & False))["rationale_spread"])
    np.testing.assert_array_equal(measured(rollouts).log_w, rollouts.log_w)


def test_what_was_not_sampled_has_no_entropy():
    gold = rationale_figures(measured(sample(sampling=with_rules(budget=jnp.int32(0)))))
    assert np.isnan(gold["rationale_token_entropy"]) and "answer_token_entropy" not in gold
    assert gold["unique_rationales"] == 1 / M and gold["rationale_length"] == gold["rationale_length_p90"] == 1


@pytest.mark.parametrize("markers", [((THINK_END,), JOINT), ((2, 7, 8), ()), ((7, 2), (1,))], ids=str)
def test_an_answer_without_a_rationale_is_scored_right_behind_the_prompt(markers):
    end, joint = markers
    rules = with_rules(end_of_think=jnp.array(end, jnp.int32), joint=jnp.array(joint, jnp.int32)).rules
    found = direct(rules)
    for p in range(P):
        prompt, gold = BATCH.prompt[p, : BATCH.prompt_length[p]], BATCH.gold[p, : BATCH.gold_length[p]]
        log_p = flat_log_probs(np.concatenate([prompt, end, joint]).astype(np.int32), gold)
        assert found[p] == pytest.approx(log_p.sum(), rel=close(1e-5))
    np.testing.assert_array_equal(direct(rules, at_once=2), found)


def direct(rules: Rules, **options) -> np.ndarray:
    return jax.device_get(score_without_rationale(PARAMS, BATCH, rules, ARCH, **options))
