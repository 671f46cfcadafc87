"""Replayed coefficients, compared with those that runs saved, and with formulas on the saved log-weights."""

import json
import re
import shutil

import numpy as np
import pytest

from tests.support.command_line import call, refused
from tests.support.paths import ROOT
from tests.support.runs import SMALL, small
from tsallis_rl.main import main as train_command
from tsallis_rl.objectives import ESTIMATORS
from tsallis_rl.replay import main
from tsallis_rl.runs.errors import UserError
from tsallis_rl.training.loop import train
from tsallis_rl.training.regeneration import regenerate
from tsallis_rl.training.replay import check_out, load, replay

RUNS = {
    # q of a step is the schedule's; more groups to save than there are: all are.
    "garl": {"estimator__schedule": "linear", "estimator__schedule_steps": 4, "train__save_rollouts_prompts": 9},
    "paft": {"estimator__q": 0.5, "estimator__num_draws": 6},
    "grpo": {},
    # Of a group it needs more than weights, and of the steps before it their deviations.
    "rlpr": {"estimator__std_share": 0.1},
}
M = 16
OWN = "examples.estimator.tempered"
SHARED = {
    "evaluate__every": 4, "rollouts__num_rollouts": M, "task__start": "warm", "base__steps": 100, "base__batch": 32,
    "train__save_rollouts_prompts": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSALLIS_RL_CACHE", str(base / "cache"))
        for name, changes in RUNS.items():
            train(small(f"estimator={name}", **(SHARED | changes)), base / name)
    return base


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("step", [0, 3])
def test_a_runs_own_estimator_gives_the_coefficients_that_it_saved(runs, name, step):
    saved = load(runs / name, step)
    if name == "garl":  # the step's q, and what its schedule starts from
        assert {(row["q"], row["q_start"]) for row in saved.rows} == {(0.75 * (1 - step / 4), 0.75)}
    assert saved.log_w.shape == (4 if name == "garl" else 3, M) and np.abs(saved.coefficients.score).sum() > 0
    found = replay(saved, name).coefficients
    np.testing.assert_array_equal(found.score, saved.coefficients.score)
    np.testing.assert_array_equal(found.path, saved.coefficients.path)


def test_rlpr_keeps_what_it_needs_so_that_its_steps_can_be_replayed_and_computed_again(runs):
    saved = load(runs / "rlpr", 3)
    prob, without = saved.group["gold_prob"], saved.group["gold_prob_without"]
    length = np.array([len(row["gold"].split()) for row in saved.rows]).reshape(-1, M) + 1  # and its end
    assert (prob <= np.exp(saved.log_w / length) + 1).all() and (prob**length >= np.exp(saved.log_w) - 1e-6).all()
    assert (without == without[:, :1]).all() and (saved.group["usual_std"] == saved.group["usual_std"][0, 0]).all()
    assert saved.group["usual_std"][0, 0] > 0 == load(runs / "rlpr", 0).group["usual_std"].max()
    again, row = regenerate(runs / "rlpr", 3, 1, 5), saved.rows[M + 5]
    numbers = {name for name, value in row.items() if isinstance(value, float)} - {"usual_std"}  # one prompt rounds so
    assert {name: again[name] for name in numbers} == pytest.approx({name: row[name] for name in numbers}, rel=1e-4)
    assert {k: x for k, x in again.items() if k not in numbers} == {k: x for k, x in row.items() if k not in numbers}
    with pytest.raises(
        UserError, match=r"rlpr needs gold_prob, gold_prob_without, usual_std of each rollout, which this"
    ):
        replay(load(runs / "garl", 3), "rlpr")


def test_paft_draws_are_saved_and_are_what_its_coefficients_say(runs):
    saved = load(runs / "paft", 3)
    draws = np.array([row["draws"] for row in saved.rows]).reshape(-1, M)
    assert draws.sum(1).tolist() == [6, 6, 6]
    w = np.exp(saved.log_w.astype(float))
    expected = M**-0.5 * w.mean(1, keepdims=True) ** 0.5 * draws / 6
    np.testing.assert_allclose(saved.coefficients.score, expected, rtol=1e-5)
    assert replay(saved, "paft").diagnostics["used"] == (draws > 0).sum(1).mean()


def test_every_estimator_replays_from_a_run_that_sampled_answers(runs):
    saved = load(runs / "grpo", 3)
    rewards = np.array([row["reward"] for row in saved.rows]).reshape(-1, M)
    right = [row["answer"] == row["gold"] for row in saved.rows]
    np.testing.assert_array_equal(rewards.ravel() == 1, right)
    np.testing.assert_allclose(
        replay(saved, "dr_grpo").coefficients.score, (rewards - rewards.mean(1, keepdims=True)) / M, atol=1e-7
    )
    w = np.exp(saved.log_w.astype(float))
    mean = w.mean(1, keepdims=True)
    for q in (0.0, 0.75, 1.0):
        found, told = replay(saved, f"garl@{q}")
        centred = M**-q * (w / mean**q - ((w.sum(1, keepdims=True) - w) / (M - 1)) ** (1 - q))
        np.testing.assert_allclose(found.path, M ** (-q - 1) * w / mean**q, rtol=1e-4)
        np.testing.assert_allclose(found.score, centred / M, rtol=1e-3, atol=1e-6)
        assert told["q"] == q
        assert told["max_advantage"] == pytest.approx(centred.max(), rel=1e-3)
        assert told["negative_share"] == (centred < 0).mean()
        assert told["effective_sample_size"] == pytest.approx((w.sum(1) ** 2 / (w**2).sum(1)).mean(), rel=1e-4)


def test_what_cannot_be_replayed_is_told_in_a_sentence(runs, tmp_path):
    saved = load(runs / "paft", 0)
    with pytest.raises(UserError, match=r"grpo weighs sampled answers .* this run \(paft\) sampled none"):
        replay(saved, "grpo")
    for wrong in ("garlic@0", "garl@x", "garl@2", "garl@"):
        with pytest.raises(UserError, match=f"'{wrong}' is not NAME or NAME@Q"):
            replay(saved, wrong)
    with pytest.raises(UserError, match="the run saved rollouts of steps 0, 3"):
        load(runs / "paft", 1)
    with pytest.raises(UserError, match="is not the folder of a run"):
        load(runs / "nothing", 0)
    shutil.copytree(runs / "paft", tmp_path / "edited")
    file = tmp_path / "edited" / "rollouts" / "step_000003.jsonl"
    text = file.read_text()
    for other in ('"log w": 0', f'"log_w": {"9" * 400}', '"log_w": true', '"log_w": "-3"', '"log_w": -1e400'):
        damaged = re.sub(r'"log_w": [^,]+', other, text, count=1)
        file.write_text(damaged)
        with pytest.raises(UserError, match=r"step_000003.jsonl: a line has no number as its 'log_w': it was cut or"):
            load(tmp_path / "edited", 3)
    file.write_text(re.sub(r'"log_w": [^,]+', '"log_w": 500.0', text, count=1))
    with pytest.raises(UserError, match=r"step_000003.jsonl: a line has a number above 0 as its 'log_w': it was cut"):
        load(tmp_path / "edited", 3)


def test_what_is_replayed_is_not_written_over_what_the_run_keeps(runs, tmp_path):
    (tmp_path / "link").symlink_to(runs / "paft" / "rollouts")
    run = runs / "paft"
    for file in (run / "config.json", run / "rollouts" / "step_000003.jsonl", tmp_path / "link" / "step_000003.jsonl"):
        with pytest.raises(UserError, match=r"^--out=.*: the folder of the run keeps its own files; name another"):
            check_out(file, run)
    check_out(tmp_path / "step_000003.jsonl", run)


def test_the_command_prints_a_line_an_estimator_and_keeps_every_coefficient(runs, tmp_path, capsys):
    out = tmp_path / "replayed.jsonl"
    main([f"--run={runs / 'grpo'}", "--step=3", "--estimators=grpo,paft@1", f"--out={out}"])
    lines = capsys.readouterr().out.splitlines()
    assert "grpo, against what it saved: the same to the last bit" in lines[0]
    assert [line.split()[:2] for line in lines[1:]] == [["estimator", "q"], ["grpo", "–"], ["paft@1", "1"]]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(row["replayed"]["grpo"] == {"score": row["score"], "path": row["path"]} for row in rows)
    assert sum(row["replayed"]["paft@1"]["score"] for row in rows[:M]) == pytest.approx(1 / M)  # normalised by M^q


def test_an_estimator_of_ones_own_is_trained_replayed_and_regenerated_by_its_name(runs, monkeypatch, capsys):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(runs / "cache"))
    run, fields = runs / "own", SMALL | {name.replace("__", "."): value for name, value in SHARED.items()}
    fields |= {"train.steps": 2, "train.save_rollouts_every": 1, "evaluate.every": 2}
    train = [f"--config={ROOT}/configs/hops.py:estimator={OWN}", f"--workdir={run}"]
    train += [f"--config.{name}={value}" for name, value in fields.items()]
    assert call(train_command, *train, "--config.estimator.temperature=2") is None
    assert json.loads((run / "config.json").read_text())["estimator"]["temperature"] == 2.0
    saved = load(run, 1)
    weight = np.exp((saved.log_w - saved.log_w.max(-1, keepdims=True)) / 2)
    expected = weight / weight.sum(-1, keepdims=True)
    np.testing.assert_allclose(saved.coefficients.score, expected, rtol=1e-5, atol=1e-8)

    ESTIMATORS.pop(OWN)  # as in another process
    capsys.readouterr()
    assert call(main, f"--run={run}", "--step=1", f"--estimators={OWN},garl@0.5") is None
    assert f"{OWN}, against what it saved: the same to the last bit" in capsys.readouterr().out
    ESTIMATORS.pop(OWN)
    again, row = regenerate(run, 1, 0, 5), saved.rows[5]
    assert (again["rationale"], again["estimator"]) == (row["rationale"], OWN)
    assert again["score"] == pytest.approx(row["score"], rel=1e-4)
    told = refused(capsys, train_command, *train, "--config.estimator.temperature=3")
    assert "estimator.temperature" in told
    ESTIMATORS.pop(OWN)
