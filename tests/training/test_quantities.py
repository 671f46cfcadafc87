"""Quantities that estimators need, compared with the tiny model's log-probabilities of one sequence at a time."""

import json

import jax
import numpy as np
import pytest

from tests.support.backends import close
from tests.support.rollouts import ARCH, BATCH, PARAMS, RULES, P, flat_log_probs, sample
from tests.support.runs import small
from tsallis_rl.objectives import ESTIMATORS, HISTORIES, Estimator
from tsallis_rl.objectives.form import constant
from tsallis_rl.runs.errors import UserError
from tsallis_rl.sampler.sampler import score_without_rationale
from tsallis_rl.training.checks import check
from tsallis_rl.training.control import ControlState, StepMeasurement, after_step, control_from_dict
from tsallis_rl.training.quantities import QUANTITIES, Sources, collect
from tsallis_rl.training.reference import held_references
from tsallis_rl.training.setup import initial_state, prepare
from tsallis_rl.training.step import TrainingStep


def test_there_is_a_function_for_whatever_an_estimator_declares():
    declared = {name for row in ESTIMATORS.values() for name in row.quantities}
    assert declared == {*QUANTITIES, *HISTORIES}


def test_probabilities_of_the_gold_answer_are_means_over_its_tokens():
    rollouts = sample(num_rollouts=4)
    without = score_without_rationale(PARAMS, BATCH, RULES, ARCH, mean_probability=True)
    sources = Sources(rollouts, None, lambda: BATCH, None, None)
    found = collect(("gold_prob", "gold_length", "rationale_length"), sources, {})
    between = [*RULES.end_of_think.tolist(), *RULES.joint.tolist()]
    for p in range(P):
        prompt, gold = BATCH.prompt[p, : BATCH.prompt_length[p]], BATCH.gold[p, : BATCH.gold_length[p]]
        log_probs = flat_log_probs(prompt, np.concatenate([between, gold]))[len(between) :]
        np.testing.assert_allclose(without[p], np.exp(log_probs).mean(), rtol=close(1e-5))
        assert (found["gold_length"][p] == len(gold)).all()
        for m in range(4):
            start, length = rollouts.answer_start[p, m], rollouts.answer_length[p, m]
            log_probs = flat_log_probs(prompt, rollouts.targets[p, m, : start + length])[start:]
            expected = np.exp(log_probs).mean() if length else 0.0
            np.testing.assert_allclose(found["gold_prob"][p, m], expected, rtol=close(1e-5))
    assert (rollouts.answer_length == 0).any()  # one that never closed


@pytest.mark.parametrize("name", ["garl_per_token", "latro", "nover", "curverl"])
def test_a_step_provides_what_is_declared_and_no_more(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    config = small(f"estimator={name},start=warm", base__steps=0, rollouts__max_rationale=6)
    setup = prepare(config)
    state = initial_state(setup)
    control = ControlState(estimator=name, q=0.5, histories={"usual_std": [1e-9], "rank_weight": [[1] * 5]})
    if name == "latro":
        state = state._replace(references={"start": jax.tree.map(lambda x: 1.2 * x, state.params)})
    weighed = TrainingStep(setup, state).sample_and_weigh(state, 0, np.arange(4), control)
    assert tuple(weighed.group) == ESTIMATORS[name].quantities
    assert {x.shape for x in weighed.group.values()} == {(4, 4)}
    assert np.isfinite(np.asarray(weighed.coefficients)).all()
    assert np.any(weighed.coefficients.score) or name == "curverl"
    if name == "latro":
        assert held_references(config) == ("start",) and np.abs(weighed.group["log_ratio"]).min() > 0


@pytest.mark.parametrize(("name", "answer"), [("usual_std", "gold"), ("rank_weight", "sampled")])
def test_an_estimator_may_declare_a_quantity_with_a_history_alone(name, answer, tmp_path, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    functions = {
        "usual_std": lambda log_w, usual_std: constant(usual_std, log_w),
        "rank_weight": lambda log_w, rank_weight: constant(rank_weight, log_w),
    }
    own = Estimator("own", functions[name], answer, "test")
    monkeypatch.setitem(ESTIMATORS, "own", own)
    config = small("start=warm", base__steps=0, rollouts__max_rationale=6, estimator__name="own")
    setup = prepare(config)
    state = initial_state(setup)
    control = ControlState(estimator="own", q=0.5, histories={"usual_std": [0.25], "rank_weight": [[1, 2, 0, 0, 0]]})
    output = TrainingStep(setup, state)(state, 0, control)
    read = {"usual_std": 0.25, "rank_weight": 1.0}  # no answer is right, and no pass rate is below 0
    np.testing.assert_array_equal(output.weighed.coefficients.score, np.full((4, 4), read[name], np.float32))
    assert output.measured.histories.keys() == {name}


def test_histories_are_saved_with_the_control_state_to_the_last_bit():
    config = small("estimator=rlpr,start=warm")
    histories = {"usual_std": [0.1 + 0.2], "rank_weight": [[0, 1, 2], [3, 0, 0]]}
    control = after_step(ControlState("rlpr", 0.75), config, 0, StepMeasurement(skipped=False, histories=histories))
    assert control_from_dict(json.loads(json.dumps(control.to_dict()))) == control
    old = control.to_dict()
    del old["histories"]
    assert control_from_dict(old).histories == {}
    for wrong in ({"usual_std": "0.1"}, {"usual_std": [None]}, {"rank_weight": [["1"]]}, [0.1]):
        with pytest.raises(UserError, match="control state is not one that this version"):
            control_from_dict(control.to_dict() | {"histories": wrong})


def test_what_only_a_run_of_its_own_keeps_is_not_compared(tmp_path, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    changes = {"base__steps": 0, "shadow__every": 1, "shadow__estimators": ("curverl@0",)}
    with pytest.raises(
        UserError, match="'curverl@0' needs rank_weight, which earlier batches decide and only a run of"
    ):
        prepare(small("estimator=grpo,start=warm", **changes))


def test_latro_reads_the_reference_and_no_other_estimator_does_without_the_kl():
    for name, changes in {"latro": {}, "garl": {"regularizer__kl": 0.1}}.items():
        config = small(f"estimator={name},start=warm", regularizer__reference="average", **changes)
        check(config, 1)
        assert held_references(config) == ("average",)
    with pytest.raises(UserError, match="estimator latro read it; set one of them as well"):
        check(small("estimator=garl,start=warm", regularizer__reference="average"), 1)
