"""Reference parameters: rollouts rescored under them, runs that hold them, and what such runs log."""

import itertools
import shutil

import jax
import numpy as np
import pytest

from tests.support.backends import close
from tests.support.checkpoints import saved_state
from tests.support.reference import learner_log_probs
from tests.support.rollouts import ARCH, PARAMS, RULES, A, sample, with_rules
from tests.support.runs import small, without_clocks
from tsallis_rl.training.control import initial_control
from tsallis_rl.training.loop import train
from tsallis_rl.training.reference import held_references, rescore, rescoring_slices, sum_log_ratio
from tsallis_rl.training.replay import load, replay, table
from tsallis_rl.training.setup import initial_state, prepare
from tsallis_rl.training.step import TrainingStep

log_probs = jax.jit(learner_log_probs, static_argnums=2)
MOVED = jax.tree.map(lambda x: x * 1.3, PARAMS)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def rescored(rollouts, rules, **options) -> np.ndarray:
    return np.asarray(rescore(PARAMS, MOVED, rollouts, rules, arch=ARCH, **options))


def test_rescored_targets_have_the_log_probabilities_of_the_reference():
    rollouts = sample(num_rollouts=4, max_answer=A)
    slices = rescoring_slices(small(train__micro_batch=2, train__micro_rollouts=3), len(rollouts.prompt), 1)
    assert (slices.micro_batches, slices.micro_rollouts) == (2, 3)
    own, expected = (np.asarray(log_probs(params, rollouts, ARCH)) for params in (PARAMS, MOVED))
    for answers in (False, True):
        found = rescored(rollouts, RULES, slices=slices, answers=answers)
        mask = np.asarray(rollouts.score_mask | rollouts.path_mask if answers else rollouts.score_mask)
        np.testing.assert_allclose(found, np.where(mask, expected, 0.0), atol=close(1e-5))
        ratio = np.where(mask, own - expected, 0.0).sum(-1)
        assert np.abs(ratio).max() > 0.1
        np.testing.assert_allclose(sum_log_ratio(own, found, rollouts, answers=answers), ratio, atol=close(1e-4))


def test_what_could_not_be_sampled_has_no_probability_under_the_reference_either():
    sampling = with_rules(min_rationale=np.int32(3))
    rollouts = sample(num_rollouts=4, sampling=sampling)
    own = np.asarray(rescore(PARAMS, PARAMS, rollouts, sampling.rules, arch=ARCH))
    np.testing.assert_allclose(own, np.where(rollouts.score_mask, rollouts.log_prob, 0), atol=close(1e-5))
    without = rescored(rollouts, None)
    assert (rescored(rollouts, sampling.rules) - without)[np.asarray(rollouts.score_mask)].max() > 0.01


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, ()),
        ({"evaluate__kl": True}, ("start",)),
        ({"regularizer__entropy": 0.1}, ()),
        ({"regularizer__kl": 0.1}, ("start",)),
        ({"regularizer__kl": 0.1, "regularizer__reference": "average"}, ("average",)),
        ({"regularizer__kl": 0.1, "regularizer__reference": "average", "evaluate__kl": True}, ("start", "average")),
    ],
)
def test_a_run_holds_the_references_that_its_settings_read(changes, held):
    assert held_references(small(**changes)) == held


ALL = {
    "estimator__name": "paft", "regularizer__kl": 0.05, "regularizer__reference": "average", "regularizer__decay": 0.75,
    "regularizer__entropy": 0.01, "regularizer__length": 0.5, "regularizer__min_length": 3, "evaluate__kl": True,
    "base__steps": 0, "train__keep_checkpoints": 9, "evaluate__every": 1, "train__steps": 2,
    "train__save_rollouts_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of PAFT with every remedy: its folder and its records."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSALLIS_RL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return folder, train(small("start=warm", **ALL), folder)


def test_the_references_of_a_run_are_its_start_and_the_average_of_its_steps(run):
    folder, _ = run
    states = [saved_state(folder, step) for step in range(3)]
    for before, after in itertools.pairwise(states):
        expected = jax.tree.map(lambda a, x: 0.75 * a + 0.25 * x, before["references"]["average"], after["params"])
        jax.tree.map(lambda a, x: np.testing.assert_allclose(a, x, atol=1e-7), after["references"]["average"], expected)
        jax.tree.map(np.testing.assert_array_equal, after["references"]["start"], states[0]["params"])
    moved = jax.tree.map(lambda a, x: np.abs(a - x).max(), states[2]["params"], states[2]["references"]["average"])
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_a_run_that_ended_early_goes_on_with_the_same_average(run, tmp_path):
    folder, whole = run
    shutil.copytree(folder, tmp_path / "early")
    (tmp_path / "early" / "checkpoints" / "2.manifest").unlink()
    shutil.rmtree(tmp_path / "early" / "checkpoints" / "2")
    assert without_clocks(train(small("start=warm", **ALL), tmp_path / "early")) == without_clocks(whole)
    jax.tree.map(np.testing.assert_array_equal, *(saved_state(f, 2) for f in (folder, tmp_path / "early")))


def test_what_is_on_is_logged(run):
    steps = [record for record in run[1] if "train/kl" in record]
    assert len(steps) == 2 and steps[0]["train/kl"] == 0 and abs(steps[1]["train/kl"]) > 1e-4
    assert all(r["train/sequence_entropy"] > 0 and 0 <= r["train/length_shortfall"] < 1 for r in steps)
    to_start = [r["eval/validation/kl_to_start"] for r in run[1] if "eval/validation/kl_to_start" in r]
    assert len(to_start) == 3 and to_start[0] == 0 and abs(to_start[2]) > 1e-4


@pytest.mark.parametrize("reference", ["start", "average"])
def test_rounding_is_no_kl(reference):
    """While all rewards are 0 and nothing has moved, a run with a KL learns nothing, in bfloat16 as well."""
    changes = {"model__dtype": "bfloat16", "regularizer__kl": 0.1, "regularizer__reference": reference}
    setup = prepare(small("estimator=grpo", base__steps=0, **changes))
    state = initial_state(setup)
    rescore.clear_cache()
    weighed = TrainingStep(setup, state).sample_and_weigh(state, 0, np.arange(4), initial_control(setup.config))
    assert not weighed.group["rewards"].any()
    assert not any(np.any(x) for x in weighed.total)
    assert rescore._cache_size() == 1  # one program for both
    rollouts = weighed.rollouts
    under_start = setup.rescore(state.params, rollouts, reference=state.references[reference])
    gap = np.abs(rollouts.log_prob - under_start)[np.asarray(rollouts.score_mask)]
    assert gap.max() > 1e-3  # the sampler rounds otherwise


def test_rollouts_hold_the_estimator_s_coefficients_and_what_is_added_beside_them(run):
    saved = load(run[0], 1)
    found = replay(saved, "paft").coefficients
    np.testing.assert_array_equal(found.score, saved.coefficients.score)  # draws and all
    added = np.array([row["regularizer_score"] for row in saved.rows]).reshape(found.score.shape)
    np.testing.assert_allclose(added.sum(1), 0, atol=1e-6)
    assert np.abs(added).max() > 1e-4 and not any(row["regularizer_path"] for row in saved.rows)
    assert "what config.regularizer added stands as regularizer_score" in table(saved, {})


def test_the_kl_of_sampled_answers_has_coefficients_for_both_parts_and_grpo_its_lengths():
    """Of the group's own log-ratios, rescored and summed here; a rollout without weight has them as well."""
    changes = {"base__steps": 0, "regularizer__kl": 0.1, "estimator__length_norm": "rollout"}
    setup = prepare(small("estimator=grpo,start=warm", **changes))
    state = initial_state(setup)
    state = state._replace(references={"start": jax.tree.map(lambda x: 1.2 * x, state.params)})
    control = initial_control(setup.config)
    weighed = TrainingStep(setup, state).sample_and_weigh(state, 0, np.arange(4), control)
    rollouts, added = weighed.rollouts, weighed.regularizer
    scored = np.asarray(rollouts.score_mask | rollouts.path_mask)
    differ = [log_probs(params, rollouts, setup.arch) for params in (state.params, state.references["start"])]
    ratio = np.where(scored, differ[0] - differ[1], 0).sum(-1)
    others = (ratio.sum(1, keepdims=True) - ratio) / 3
    np.testing.assert_allclose(added.score, -0.1 * (ratio - others) / 4, atol=1e-5)
    np.testing.assert_array_equal(added.path, added.score)
    assert np.abs(added.score)[np.isneginf(rollouts.log_w)].min() > 1e-4
    rewards = np.eye(4, dtype=np.float32)
    group = {"rewards": rewards, "lengths": weighed.group["lengths"]}
    coefficients, _ = TrainingStep(setup, state).weigh(rollouts, group, 0, np.arange(4), control)
    advantage = (rewards - 0.25) / (rewards.std(1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(coefficients.score, advantage / scored.sum(-1) / 4, rtol=1e-5)
    total = weighed._replace(coefficients=coefficients).total
    np.testing.assert_allclose(total.path, coefficients.path + added.path, rtol=1e-6)
