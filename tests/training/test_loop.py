"""Whole runs on small settings: what a run directory holds, and that stopping loses nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing, nullcontext
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.checkpoints import saved_state
from tests.support.compiled import counted_programs
from tests.support.metrics_table import documented, never_logged, unknown
from tests.support.paths import ROOT
from tests.support.runs import SMALL, small, without_clocks
from tsallis_rl import objectives
from tsallis_rl.report.summary import summary
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_directory import RunDirectory, finite
from tsallis_rl.runs.run_lock import hold_run_lock
from tsallis_rl.runs.signals import Interrupted
from tsallis_rl.sampler.keys import TEST
from tsallis_rl.tasks.tokenizers import WordTokenizer
from tsallis_rl.training import loop
from tsallis_rl.training.gradient_comparison import Moments, compare
from tsallis_rl.training.loop import begin, finish, resume, save, train
from tsallis_rl.training.setup import prepare
from tsallis_rl.training.step import OF_PARTS
from tsallis_rl.training.telling import closing_advice


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_a_second_run_of_a_process_compiles_nothing_that_the_first_one_has(tmp_path):
    config = small("start=warm", train__steps=1)
    first = train(config, tmp_path / "first")
    config.estimator.q = 0.25
    with counted_programs() as counts:
        second = train(config, tmp_path / "second")
    assert not counts
    (before,), (after,) = ([r for r in records if "train/loss" in r] for records in (first, second))
    assert before["train/q"] == 0.75 and after["train/q"] == 0.25
    assert after["train/loss"] != before["train/loss"]
    assert after["train/compile_seconds"] == after["train/cached_program_seconds"] == 0


def names_of_options() -> set[str]:
    """Names that a run logs with other options, or when something goes wrong."""
    terms, one = dict.fromkeys(("kl", "entropy", "length", "min_length"), 0.1), np.ones((1, 2), np.float32)
    found = {f"train/{x}" for x in objectives.regularize(terms, log_prob=one, length=one, log_ratio=one)[1]}
    found |= {f"train/{x}" for x in objectives.proposal_figures(-one, -one, -one[:, 0], "hinted")}
    found |= {f"train/{x}" for x in objectives.diagnostics(-one, 0.5)} | {f"train/cold/{x}" for x in OF_PARTS}
    moments = Moments(jnp.ones(2), jnp.float32(3), jnp.float32(1))
    found |= compare({"garl@0.5": moments, "grpo@0": moments}, {"garl@0.5": moments, "grpo@0": moments}, 2).keys()
    source = "".join(file.read_text() for file in (ROOT / "tsallis_rl").rglob("*.py"))
    seldom = [name for name in documented() if re.match(SELDOM, name)]
    return found | {name.replace("SPLIT", "test") for name in seldom if f'{name.split("/")[-1]}"' in source}


SELDOM = "train/q$|train/refill_|train/peak_memory|shadow/(grader|seconds)|guard/|skipped_examples|.*kl_to_start"


@pytest.mark.parametrize("estimator", ["garl", "paft", "grpo", "sft"])
def test_a_run_leaves_metrics_rollouts_and_checkpoints(tmp_path, estimator, capfd):
    config = small(f"estimator={estimator},start=warm", guards__vanished_share=1.0)
    # So that no other run of this process has compiled its update.
    config.optimizer.b1 = {"garl": 0.91, "paft": 0.92, "grpo": 0.93, "sft": 0.94}[estimator]
    records = train(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["estimator"]["name"] == estimator
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert [r["step"] for r in records if "train/loss" in r] == [0, 1, 2, 3]
    assert [r["step"] for r in records if "eval/validation/pass@1" in r] == [0, 2, 4]
    before, after = [r for r in records if "eval/test/maj@4" in r]
    assert (before["step"], after["step"]) == (0, 4)
    assert after["eval/test/checkpoint_step"] in (0, 2, 4)
    steps = [r for r in records if "train/loss" in r]
    for r in steps:
        assert 0 <= r["train/log_prob_gap_mean"] <= r["train/log_prob_gap_p99"] <= r["train/log_prob_gap"] < 1e-4
        assert ("train/unique_rationales" in r) == ("train/rationale_token_entropy" in r) == (estimator != "sft")
        assert ("train/answer_token_entropy" in r) == (estimator == "grpo")
        assert ("train/q" in r) == ("train/max_advantage" in r) == (estimator in ("garl", "paft"))
    evaluations = {r["step"]: r for r in records if "eval/validation/pass@1" in r}
    assert all(("eval/validation/rationale_gain" in r) == (estimator != "sft") for r in evaluations.values())
    begun, told = capfd.readouterr()
    assert [begun.count(f"\n{name}:") for name in ("test", "run", "devices", "parameters", "estimator")] == [1] * 5
    assert re.findall(r"^ +step (\d+) ", told, re.MULTILINE) == ["0", "2", "4"]  # under one heading
    assert told.count("validation") == 1 + told.count("on validation")
    if estimator == "grpo":  # it learns nothing, so that log P̂ does not rise
        assert "rationales vanished" not in told
    elif estimator != "sft":  # as short as at the start, log P̂ higher: with a share of 1 that is said, once
        (vanished,) = [r for r in records if "guard/rationales_vanished" in r]
        length, log_p = (evaluations[2][f"eval/validation/{name}"] for name in ("rationale_length", "log_p_hat"))
        assert vanished["step"] == 2 and told.count("rationales vanished") == 1
        assert f"and 2: on validation rationale_length went from {length:.3g} to {length:.3g}, unique_rationale" in told
        assert f"to {log_p:.3g}, pass@1 went from" in told and "config.rollouts.min_rationale" in told
    assert steps[0]["train/compile_seconds"] + steps[0]["train/cached_program_seconds"] > 0

    names = {name for record in records for name in record}
    assert unknown(names) == []
    if estimator == "grpo":  # docs/metrics.md, the other way round
        assert never_logged(names | names_of_options()) == []

    rows = [json.loads(line) for line in (tmp_path / "rollouts" / "step_000003.jsonl").read_text().splitlines()]
    assert [row["rollout"] for row in rows] == [0, 1, 2, 3] * 2
    assert all(row["prompt"].startswith("<bos> ") for row in rows)  # special tokens are visible
    assert all(("sampled" in row) == (estimator == "grpo") for row in rows)
    for group in (rows[:4], rows[4:]):
        weight = np.exp([row["log_w"] if row["log_w"] is not None else -np.inf for row in group])
        np.testing.assert_allclose([row["weight"] for row in group], weight / weight.sum(), rtol=1e-3)
    kept = {int(folder.name) for folder in (tmp_path / "checkpoints").iterdir() if folder.name.isdigit()}
    assert kept == {4, after["eval/test/checkpoint_step"]}
    files = (tmp_path / "evaluations").glob("validation*.jsonl")
    rationales = {json.loads(line)["rationale"] for file in files for line in file.open()}
    assert (rationales == {"</think>"}) == (estimator == "sft")  # as it was trained


@pytest.mark.parametrize(
    ("estimator", "forced", "unclosed", "says"),
    [("garl", 0.4, 0.2, "40% of the rationales .* 20% ended"), ("garl", 0.3, 0.2, None), ("sft", 1.0, 0.0, None)],
)
def test_rationales_of_which_most_do_not_close_by_themselves_name_the_settings(estimator, forced, unclosed, says):
    setup = prepare(small(f"estimator={estimator},start=warm"))
    advice = closing_advice(setup, {"train/closed_forced": forced, "train/unclosed": unclosed})
    assert re.search(says, advice) if says else advice == ""
    if says:
        for field in ("max_rationale=4", "min_rationale=0", "unclosed='drop'", "start='warm'", "end_of_think='auto'"):
            assert field in advice


def test_the_settings_of_rationales_that_do_not_close_are_named_once_a_run(tmp_path, capfd):
    train(small("start=warm", base__steps=0, rollouts__max_rationale=2), tmp_path)
    assert capfd.readouterr().err.count("of the rationales were closed by the budget") == 1


def validation_answers(folder, step):
    file = folder / "evaluations" / f"validation_{step:06d}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_sampled_answers_of_validation_are_kept_as_text_that_adds_up_to_its_figures(tmp_path):
    records = train(small("start=warm", train__save_rollouts_every=0), tmp_path)
    for record in (r for r in records if "eval/validation/pass@1" in r):
        rows = validation_answers(tmp_path, record["step"])
        assert [row["rollout"] for row in rows] == [0, 1, 2, 3] * 6 and len({row["example"] for row in rows}) == 6
        assert np.mean([row["correct"] for row in rows]) == pytest.approx(record["eval/validation/pass@1"])
        assert np.mean([row["grades"].get("exact", 0) for row in rows]) == record["eval/validation/mean_exact"]
        log_w = np.array([-np.inf if row["log_w"] is None else row["log_w"] for row in rows]).reshape(6, 4)
        log_p_hat = (np.logaddexp.reduce(log_w, axis=1) - np.log(4)).mean()
        if np.isfinite(log_p_hat):
            assert log_p_hat == pytest.approx(record["eval/validation/log_p_hat"], rel=1e-5)
        for row in rows:
            assert row["prompt"].startswith("<bos> ")
            if row["closed"] == "never":
                assert row["answer"] is None is row["sampled"] and row["correct"] == 0 and row["grades"] == {}
            else:
                assert row["rationale"].endswith("</think>") and "</think>" not in row["answer"]
                kept = [word for word in row["sampled"].split() if word not in WordTokenizer.SPECIAL]
                assert row["answer"].split() == kept
    assert any(row["sampled"] and row["sampled"].endswith("<eos>") for row in rows)


def test_a_subset_is_validated_and_fewer_texts_are_kept_and_training_is_the_same(tmp_path):
    whole = train(small(), tmp_path / "whole")
    records = train(small(evaluate__examples=3, evaluate__save_prompts=2), tmp_path / "some")
    none = train(small(evaluate__save_prompts=0), tmp_path / "none")
    assert without_clocks(none) == without_clocks(whole)
    assert not list((tmp_path / "none" / "evaluations").glob("validation_*"))
    some, every = (validation_answers(tmp_path / name, 0) for name in ("some", "whole"))
    assert len(some) == 2 * 4 and [row for row in every if row["example"] in {r["example"] for r in some}] == some
    steps, of_whole = ([r["train/loss"] for r in found if "train/loss" in r] for found in (records, whole))
    assert steps == of_whole
    before, _ = [r for r in records if "eval/test/pass@1" in r]
    assert before["eval/test/log_p_hat"] == next(r for r in whole if "eval/test/pass@1" in r)["eval/test/log_p_hat"]


def test_texts_of_steps_after_the_checkpoint_are_gone_when_a_run_goes_on(tmp_path):
    directory = RunDirectory(tmp_path, small())
    for name in ("rollouts/step", "evaluations/validation", "evaluations/test"):
        for step in (0, 2, 4):
            directory.write_rows(name, step, [{"a": float("nan"), "grades": {"b": float("inf")}}])
    (tmp_path / "rollouts" / "step_000004.html").write_text("a page of the report")
    (tmp_path / "rollouts" / "step_000004 (copy).jsonl").write_text("a person's own")
    (tmp_path / "evaluations" / "test-step4-n16").mkdir()
    assert (tmp_path / "rollouts" / "step_000000.jsonl").read_text() == '{"a": null, "grades": {"b": null}}\n'
    directory.rewind(2)
    assert {file.relative_to(tmp_path).as_posix() for file in tmp_path.glob("*/*")} == {
        "rollouts/step_000000.jsonl",  # step 2 is made again by the update of step 2
        "rollouts/step_000004 (copy).jsonl",
        "evaluations/validation_000000.jsonl",
        "evaluations/validation_000002.jsonl",  # made before the checkpoint of step 2
        *(f"evaluations/test_{step:06d}.jsonl" for step in (0, 2, 4)),
        "evaluations/test-step4-n16",
    }


# A run whose coefficients depend on the batches before, and some of whose groups are replaced.
CONTROLLED = {
    "estimator__name": "curverl", "train__refill": 1, "rollouts__answer_needs_end": False,
    "task__reward": "tests.support.own_reward.rare",
}  # fmt: skip
GUARDED = {"guards__on_collapse": "paft", "guards__collapse_share": 0.0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of two runs that nothing stopped, and the records of each."""
    root, runs = tmp_path_factory.mktemp("whole"), {"controlled": CONTROLLED, "guarded": GUARDED}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSALLIS_RL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return root, {name: train(small(**changes), root / name) for name, changes in runs.items()}


@pytest.mark.processes
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_run_that_ended_early_goes_on_as_if_it_had_not(tmp_path, whole, signum):
    command = [sys.executable, "-m", "tsallis_rl.main", f"--workdir={tmp_path / 'early'}"]
    flags = SMALL | {name.replace("__", "."): value for name, value in CONTROLLED.items()}
    command += [f"--config.{name}={value}" for name, value in flags.items()]
    command += ["--config.log.to=('tests.support.own_logger.Lines',)"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "early" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"step": 2, "train/' in metrics.read_text()):
        time.sleep(0.01)
    process.send_signal(signum)
    _, told = process.communicate()
    if process.returncode:  # else the signal came after the last step
        assert process.returncode == {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL}[signum]
        assert ("stopped by SIGTERM: the state is saved" in told) == (signum == signal.SIGTERM)
    if signum == signal.SIGKILL:
        with metrics.open("a") as file:
            file.write('{"step": 3, "train/lo')  # cut while it was written
    resumed = train(small(log__to=("tests.support.own_logger.Lines",), **CONTROLLED), tmp_path / "early")
    assert without_clocks(resumed) == without_clocks(whole[1]["controlled"])
    logged = [json.loads(line) for line in (tmp_path / "early" / "lines.jsonl").read_text().splitlines()]
    assert [what for what, *_ in logged if what != "table"] == ["begin", *["scalars"] * len(resumed), "close"]
    numbers = [{name: x for name, x in r.items() if isinstance(x, int | float)} for r in resumed]
    assert [{"step": line[1]} | line[2] for line in logged if line[0] == "scalars"] == numbers
    files = sorted((tmp_path / "early" / "rollouts").glob("*.jsonl"))
    tables = [[json.loads(line) for line in file.open()] for file in files]
    assert [line[2] for line in logged if line[0] == "table"] == tables
    assert train(small(**CONTROLLED), tmp_path / "early") == resumed


def test_a_run_stopped_in_its_last_step_leaves_the_test_to_the_next_start(monkeypatch):
    saved = []
    monkeypatch.setattr(loop, "TrainingStep", lambda *_: None)
    monkeypatch.setattr(loop, "evaluation_is_due", lambda *_: False)
    monkeypatch.setattr(loop, "save", lambda run, quality: saved.append(run.step))
    run = SimpleNamespace(setup=SimpleNamespace(config=small(train__steps=3)), step=3, state=None, control=None)
    run.telling = SimpleNamespace(progress=lambda step: nullcontext())
    run.checkpoints = SimpleNamespace(wait=lambda: None)
    with pytest.raises(Interrupted):
        loop.loop(run, SimpleNamespace(agreed=lambda: signal.SIGTERM))
    assert saved == [3]


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_run_without_its_metrics_trains_on_the_same_and_says_what_is_missing(tmp_path, whole, damage, capfd):
    config = small(**GUARDED)
    signals = iter([signal.SIGTERM])

    def stop_once() -> None:
        if signum := next(signals, None):
            os.kill(os.getpid(), signum)

    with pytest.raises(Interrupted):
        train(config, tmp_path / "early", stop_once)  # behind the first checkpoint
    metrics = tmp_path / "early" / "metrics.jsonl"
    steps = sum('"train/loss"' in line for line in metrics.read_text().splitlines())
    metrics.unlink()
    if damage == "damaged":
        metrics.write_text('{"step": 0, "train/lo\n[1]\n\x00')
    capfd.readouterr()
    resumed = train(config, tmp_path / "early")
    assert summary(resumed).splitlines()[1].split()[1] == "–"  # the figures before are lost, and that is all
    if steps:
        assert f"metrics.jsonl lacks the records of {steps} of the {steps} steps so far" in capfd.readouterr().err
    later = [record for record in resumed if "train/loss" in record]
    assert [record["step"] for record in later] == list(range(steps, 4))
    assert without_clocks(later) == without_clocks([r for r in whole[1]["guarded"] if "train/loss" in r][steps:])
    states = (saved_state(folder, 4) for folder in (whole[0] / "guarded", tmp_path / "early"))
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(("quality", "best"), [((0.0, 0.0), 0), ((1.0, 1.0), 4)])
def test_the_last_checkpoint_is_tested_beside_the_best_once(tmp_path, quality, best):
    setup, directory = prepare(small("start=warm")), RunDirectory(tmp_path, small("start=warm"))
    with hold_run_lock(tmp_path), closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        run = begin(setup, directory, checkpoints, None)
        save(run, (0.5, 0.5))
        expected = {0: setup.evaluator(run.state.params, setup.splits["test"], TEST)}
        run.state, run.step = run.state._replace(params=jax.tree.map(lambda x: 2 * x, run.state.params)), 4
        save(run, quality)
        expected[4] = setup.evaluator(run.state.params, setup.splits["test"], TEST)
        finish(run)
        finish(resume(setup, directory, checkpoints, 4))
    (record,) = directory.records()
    assert record["step"] == 4 and record.pop("eval/test/checkpoint_step") == best
    assert expected[0].scores["log_p_hat"] != expected[4].scores["log_p_hat"]
    for name, step in (("test", best), ("test_last", 4)):
        found = {key.removeprefix(f"eval/{name}/"): x for key, x in record.items() if key.startswith(f"eval/{name}/")}
        assert found == json.loads(json.dumps(finite(expected[step].scores)))
        lines = (tmp_path / "evaluations" / f"{name}_000004.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == json.loads(json.dumps(expected[step].outcomes))


def test_a_folder_of_another_config_is_refused_by_the_field_that_differs(tmp_path):
    RunDirectory(tmp_path, small()).claim()
    RunDirectory(tmp_path, small(optimizer__eps=1e-3)).claim()  # nothing has begun there
    RunDirectory(tmp_path, small()).claim()
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    RunDirectory(tmp_path, small())
    with pytest.raises(UserError, match=r"config.optimizer.eps = 1e-08, this one has 1e-12; choose another --workdir"):
        RunDirectory(tmp_path, small(optimizer__eps=1e-12))
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["evaluate"]["rationale"]  # as a version without it wrote it
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"from before there was config\.evaluate\.rationale: finish it with"):
        RunDirectory(tmp_path, small())


def test_a_mixed_run_under_sgd_tells_the_figures_of_each_part(tmp_path):
    records = train(small("start=mixed", optimizer__name="sgd"), tmp_path)
    for record in (r for r in records if "eval/test/pass@1" in r):
        for figure in (
            "pass@1",
            "pass@4",
            "maj@4",
            "log_p_hat",
            "closed_forced",
            "rationale_gain",
            "unique_rationales",
        ):
            halves = [record[f"eval/test/{part}/{figure}"] for part in ("cold", "warm")]
            assert record[f"eval/test/{figure}"] == pytest.approx(np.mean(halves), abs=1e-9)
        assert record["eval/test/cold/log_p_hat"] < record["eval/test/warm/log_p_hat"]
    for record in (r for r in records if "train/loss" in r):
        for figure, whole_of in (("log_p_hat_mean", np.mean), ("max_advantage", max), ("dead_groups", sum)):
            halves = [record[f"train/{part}/{figure}"] for part in ("cold", "warm")]
            assert record[f"train/{figure}"] == pytest.approx(whole_of(halves), rel=1e-6)
        assert record["train/cold/log_p_hat_mean"] < record["train/warm/log_p_hat_mean"]
    assert not any("train/below_eps" in record for record in records)
