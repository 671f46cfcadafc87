"""Rationales of a proposal, scored after the plain prompt by the real decoder; what is refused; a run by name."""

import functools

import jax
import numpy as np
import pytest

from tests.support.backends import close
from tests.support.rollouts import ARCH, BATCH, PARAMS, RULES, SAMPLING, flat_log_probs, sample, with_rules
from tests.support.runs import small
from tsallis_rl import objectives
from tsallis_rl.runs.errors import UserError
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.record import NEVER, REPLACED
from tsallis_rl.training import proposals
from tsallis_rl.training.checks import check
from tsallis_rl.training.control import initial_control
from tsallis_rl.training.loop import train
from tsallis_rl.training.reference import rescore, sum_log_ratio
from tsallis_rl.training.regeneration import regenerate
from tsallis_rl.training.replay import load, replay
from tsallis_rl.training.setup import initial_state, prepare
from tsallis_rl.training.step import TrainingStep

OTHER = PromptBatch(
    prompt=np.random.default_rng(1).integers(9, size=(4, 9)).astype(np.int32),
    prompt_length=np.array([9, 4, 7, 2], np.int32),
    gold=BATCH.gold,
    gold_length=BATCH.gold_length,
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize("sampling", [SAMPLING, with_rules(close_unclosed=np.array(True))], ids=["drop", "close"])
def test_rollouts_behind_the_plain_prompt_have_the_log_probabilities_of_one_flat_sequence(sampling):
    """Token by token of what was read: the last token of the plain prompt, and end-of-think for a stop id."""
    drawn = sample(OTHER, num_rollouts=4, sampling=sampling)
    behind = proposals.after_prompts(BATCH, drawn)
    scored = rescore(PARAMS, PARAMS, behind, sampling.rules, arch=ARCH, answers=True)
    plain = jax.device_get(proposals.rescored(BATCH, drawn, scored))
    ratio = np.asarray(-sum_log_ratio(drawn.log_prob, scored, drawn))
    closings, largest = set(), 0.0
    for p in range(4):
        prompt = BATCH.prompt[p, : BATCH.prompt_length[p]]
        other = OTHER.prompt[p, : OTHER.prompt_length[p]]
        for m in range(4):
            length, closing = int(drawn.rationale_length[p, m]), int(drawn.closing[p, m])
            read = drawn.inputs[p, m, 1 : length + 1]
            answer = [*RULES.joint, *BATCH.gold[p, : BATCH.gold_length[p]]]
            flat = [flat_log_probs(start, np.array([*read, *answer], np.int32)) for start in (prompt, other)]
            n = length if closing not in (NEVER, REPLACED) else length - 1  # what was read there is not the target
            came = drawn.sampled[p, m, :n]
            mine = [np.where(came, x[:n], 0) for x in flat]
            np.testing.assert_allclose(plain.log_prob[p, m, :n], mine[0], atol=close(1e-5))
            np.testing.assert_allclose(drawn.log_prob[p, m, :n], mine[1], atol=close(1e-5))
            if n == length:
                np.testing.assert_allclose(ratio[p, m], mine[0].sum() - mine[1].sum(), atol=close(1e-4))
                largest = max(largest, abs(ratio[p, m]))
            want = -np.inf if closing == NEVER else flat[0][length + len(RULES.joint) :].sum()
            np.testing.assert_allclose(plain.log_w[p, m], want, atol=close(1e-4))
            closings.add(closing)
    assert len(closings) > 2 and largest > 0.1


def test_the_same_tokens_score_as_a_rollout_of_the_plain_prompt_itself():
    """Rollouts drawn after the plain prompt, moved to the other and back, are what the sampler recorded."""
    drawn = sample(num_rollouts=4)
    back = proposals.after_prompts(BATCH, proposals.after_prompts(OTHER, drawn))
    np.testing.assert_array_equal(back.inputs, drawn.inputs)
    scored = rescore(PARAMS, PARAMS, back, RULES, arch=ARCH, answers=True)
    plain = proposals.rescored(BATCH, drawn, scored)
    np.testing.assert_allclose(plain.log_w, drawn.log_w, atol=close(1e-4))
    np.testing.assert_allclose(plain.log_prob, drawn.log_prob, atol=close(1e-5))
    np.testing.assert_allclose(sum_log_ratio(drawn.log_prob, scored, drawn), 0.0, atol=close(1e-4))


RUN = {
    "base__steps": 0, "estimator__name": "paft", "proposal__name": "mixture", "train__steps": 2, "evaluate__every": 2,
    "train__save_rollouts_every": 1, "train__save_rollouts_prompts": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of PAFT on a mixture: its folder and its records."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSALLIS_RL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return folder, train(small("start=warm", **RUN), folder)


def test_a_run_by_name_logs_its_proposal_and_updates_behind_the_plain_prompt(run):
    steps = [record for record in run[1] if "train/importance_ess" in record]
    assert len(steps) == 2
    for record in steps:
        assert 1 <= record["train/importance_ess"] <= 4 and 0 < record["train/hinted_share"] < 1
        assert {"train/hinted_gain", "train/hinted_answer_gain"} <= record.keys()
        assert record["train/log_prob_gap"] < 1e-4 and not record["train/skipped"]
    rows = load(run[0], 1).rows
    assert [row["hinted"] for row in rows[:4]] == [False, False, True, True]
    assert not any(" = " in row["prompt"] for row in rows)
    groups = np.array([row["weight"] for row in rows]).reshape(-1, 4).sum(1)
    assert all(np.isclose(total, 1) or total == 0 for total in groups)


def test_saved_rollouts_replay_with_their_importance_weights(run):
    saved = load(run[0], 1)
    found = replay(saved, "paft").coefficients
    np.testing.assert_array_equal(found.score, saved.coefficients.score)
    log_w = [[-np.inf if row[name] is None else row[name] for row in saved.rows] for name in ("log_w", "log_rho")]
    assert np.abs(log_w[1]).max() > 1e-4
    np.testing.assert_allclose(saved.log_w.ravel(), np.sum(log_w, axis=0), rtol=1e-6)
    assert replay(saved, "garl@0").coefficients.score.sum() == pytest.approx(
        np.exp(saved.log_w).mean(1).sum(), rel=1e-5
    )
    with pytest.raises(UserError, match=r"mixture: the expectation of estimator rb_rloo is right for rationales"):
        replay(saved, "rb_rloo")


def test_a_rollout_of_a_proposal_is_made_again_to_the_last_bit(run):
    assert regenerate(run[0], step=1, example=2, rollout=3) == load(run[0], 1).rows[11]


def test_half_of_a_mixture_is_the_plain_prompt_s_and_weights_are_of_both_densities(run):
    setup = prepare(small("start=warm", **RUN))
    state = initial_state(setup)
    one_step = TrainingStep(setup, state)
    weighed = one_step.sample_and_weigh(state, 0, np.arange(4), initial_control(setup.config))
    drawn = jax.device_get(weighed.rollouts)
    shown = setup.splits["hinted"]
    of_step = one_step.batches(0)[0]
    for p in range(4):
        prompts = [
            setup.splits["train"].prompts.row(of_step[p]),
            shown.prompts.row(of_step[p]),
        ]
        np.testing.assert_array_equal(drawn.prompt[p, : drawn.prompt_length[p]], prompts[0])
        assert len(prompts[1]) == len(prompts[0]) + 2
    under = [
        rescore(state.params, state.params, x, one_step.sampling.rules, arch=setup.arch)
        for x in (drawn, _behind(drawn, shown, of_step))
    ]
    log_p, log_r = (np.asarray(x, np.float64).sum(-1) for x in under)
    want = log_p - np.log((np.exp(log_p) + np.exp(log_r)) / 2)
    np.testing.assert_allclose(weighed.log_rho, want, atol=close(1e-4))
    expected = objectives.proposal_figures(drawn.log_w, log_p - log_r, np.zeros(4), "mixture")
    for name in ("importance_ess", "hinted_share"):
        np.testing.assert_allclose(weighed.measured[name], expected[name], rtol=1e-3)


def _behind(rollouts, split, indices):
    batch = PromptBatch(
        prompt=split.prompt_at(indices, split.max_prompt),
        prompt_length=split.prompt_length[indices],
        gold=split.answer_at(indices),
        gold_length=split.answer_length[indices],
    )
    return proposals.after_prompts(batch, rollouts)


PAFT = functools.partial(small, "estimator=paft", proposal__name="hinted")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rollouts__temperature": 0.9}, r"temperature=0\.9 beside config\.proposal\.name=hinted: importance"),
        ({"rollouts__top_k": 5}, r"config\.rollouts\.top_k=5 beside .* leave it at 0"),
        ({"rollouts__min_p": 0.1}, r"config\.rollouts\.min_p=0\.1 beside"),
        ({"regularizer__entropy": 0.1}, r"regularizer\.entropy=0\.1 beside .* its expectation is over rationales"),
        ({"shadow__every": 5}, r"shadow\.every=5 beside .* the gradient comparison draws its rationales after the"),
        ({"proposal__template": "{prompt}"}, r"proposal\.template='\{prompt\}': write \{prompt\} and \{answer\} where"),
        ({"proposal__name": "prior", "proposal__template": "x"}, r"template=x: prior does not read it; leave"),
        ({"proposal__name": "shown"}, r"config\.proposal\.name='shown': choose from prior, hinted, mixture"),
        ({"estimator__name": "garl"}, r"the leave-one-out baseline needs .* config\.estimator\.baseline=none"),
        ({"estimator__name": "grpo"}, r"name=hinted: the expectation of estimator grpo is right for"),
    ],
)  # fmt: skip
def test_what_is_not_exact_beside_a_proposal_is_refused_in_a_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        check(PAFT(**changes), 1)
    check(PAFT(), 1)


def test_hinted_prompts_that_do_not_fit_the_context_are_refused():
    context = prepare(small("start=warm")).arch.context
    config = PAFT(proposal__template="{prompt}" + " ann" * context + " {answer}")
    with pytest.raises(UserError, match=r"proposal\.name=hinted: hinted prompts have up to \d+ tokens .* lower"):
        prepare(config)


def test_what_merely_restates_is_said_with_its_numbers():
    said = proposals.restating_advice({"train/hinted_answer_gain": 11.9, "train/hinted_gain": -2.1})
    assert "restate the answer: after them it is 11.9 nats likelier than at once" in said
    assert "together are 2.1 nats less likely" in said and "config.proposal.template" in said
    for answer_gain, gain in ((11.9, 0.5), (0.2, -3.0), (float("nan"), float("nan"))):
        assert not proposals.restating_advice({"train/hinted_answer_gain": answer_gain, "train/hinted_gain": gain})
    assert not proposals.restating_advice({"train/loss": 1.0})
