"""What a run prints: its opening, a line per evaluation, each warning once, and what to type next."""

import dataclasses

import pytest

from tests.support.runs import small
from tsallis_rl.runs.progress import width
from tsallis_rl.training.control import initial_control
from tsallis_rl.training.setup import prepare
from tsallis_rl.training.telling import Telling, evaluation_row, next_commands, opening, without

GIB = 1 << 30


@pytest.fixture(scope="module")
def setup():
    return prepare(small())


def test_an_opening_has_a_line_for_each_thing_and_says_from_where_a_run_goes_on(setup, tmp_path):
    lines = dict(line.split(":", 1) for line in opening(setup, tmp_path, 16 * GIB, 2).splitlines())
    assert {name: text.strip() for name, text in lines.items()} == {
        "run": f"{tmp_path}, continuing at step 2",
        "devices": "1 × cpu, 1 process",
        "precision": "float32",
        "parameters": "113,024, all trained",
        "memory": lines["memory"].strip(),
        "training": "4 steps of 4 prompts × 4 rollouts",
        "estimator": "garl, q = 0.75",
    }
    assert lines["memory"].endswith(" of a device's 16.0 GiB, by the count of --plan")
    assert {len(text) - len(text.lstrip()) + len(name) + 1 for name, text in lines.items()} == {13}
    told = opening(setup, tmp_path, None, 0)
    assert "continuing" not in told and " GiB on each device, by the count of --plan" in told


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"estimator.name": "grpo"}, "grpo"),
        ({"estimator.schedule": "linear", "estimator.q_end": 0.25}, "garl, q = 0.75 → 0.25 (linear)"),
        ({"estimator.commitment": "mixture", "estimator.tau": 0.05}, "garl, mixture τ = 0.05"),
        ({"estimator.name": "iwae"}, "iwae, q = 1"),
    ],
)
def test_an_opening_names_the_commitment_that_is_trained_with(setup, tmp_path, fields, says):
    with setup.config.unlocked():
        before = setup.config.estimator.to_dict()
        setup.config.update_from_flattened_dict(fields)
        told = opening(setup, tmp_path, None, 0).splitlines()[-1]
        setup.config.estimator.update(before)
    assert told == f"estimator:   {says}"


SCORES = {"pass@1": 0.53125, "maj@16": 0.55, "log_p_hat": -12.345, "rationale_length": 24.04}


@pytest.mark.parametrize(
    ("step", "scores", "numbers", "line"),
    [
        (
            50, SCORES, (0.5, 1234.5, 725.0),
            "   step 50  0.531    0.550  -12.35   0.50       24.0     1,234     12:05",
        ),
        (
            100_000, SCORES | {"log_p_hat": -12345.0, "rationale_length": 32768.0}, (1.0, 1_234_567.0, 360_000.0),
            "step 100000  0.531   0.550 -12345.00   1.00    32768.0 1,234,567 100:00:00",
        ),
        (
            0, {"pass@1": 0.0, "maj@16": 0.0, "log_p_hat": float("-inf")}, (None, None, None),
            "    step 0  0.000   0.000        –      –          –         –         –",
        ),
    ],
)  # fmt: skip
def test_a_line_of_an_evaluation_is_aligned_and_fits_a_terminal(step, scores, numbers, line):
    q, speed, left = numbers
    told = evaluation_row(step, scores, 16, q=q, speed=speed, left=left)
    assert told.split() == line.split() and width(told) <= 79
    if step < 100:
        assert width(told) == 75


def test_evaluations_stand_under_a_heading_and_a_warning_of_a_kind_is_said_once(setup, capfd):
    telling, control = Telling(setup), initial_control(setup.config)
    scores = SCORES | {"maj@4": 0.5}
    for step in (0, 2):
        telling.evaluation(step, scores, control)
        telling.warn(step, "of a kind", "kind")
        telling.warn(step, "of none")
    heading, first, kind, none, second, none_again = capfd.readouterr().err.splitlines()
    for estimator, measured, q in (
        *(("garl", None, "0.75"), ("iwae", None, "1.00"), ("grpo", None, "–")),
        ("garl", 0.5, "0.50"),
    ):
        telling._q = measured  # by the last step
        telling.evaluation(2, scores, dataclasses.replace(control, estimator=estimator))
        assert capfd.readouterr().err.split()[5] == q
    assert heading.split() == ["validation", "p@1", "m@4", "log", "P̂", "q", "rationale", "tokens/s", "left"]
    assert first.split() == ["step", "0", "0.531", "0.500", "-12.35", "0.75", "24.0", "–", "–"]
    assert {width(line) for line in (heading, first, second)} == {width(heading)}
    assert (kind, none, none_again) == (
        "WARNING: step 0: of a kind", "WARNING: step 0: of none", "WARNING: step 2: of none",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "flags", "left"),
    [
        (["--workdir=a", "--config=hops", "-workdir", "b", "--seed=1"], ["workdir"], "--config=hops --seed=1"),
        (["--workdirs=a", "workdir"], ["workdir"], "--workdirs=a workdir"),
        (["--workdir"], ["workdir"], ""),
    ],
)  # fmt: skip
def test_flags_are_left_out_however_they_are_written(arguments, flags, left):
    assert " ".join(without(arguments, flags)) == left


MAIN, REPORT, EVALUATE = (f"python -m tsallis_rl.{name}" for name in ("main", "report", "evaluate"))


@pytest.mark.parametrize(
    ("given", "fields", "processes", "told"),
    [
        (
            "runs/my run", {}, 1,
            [f"report:   {REPORT} 'runs/my run'",
             f"go on:    {MAIN} --config=hops:q=0.5 --config.train.steps=8 '--workdir=runs/my run'",
             f"evaluate: {EVALUATE} '--run=runs/my run'"],
        ),
        (
            "runs/x", {"optimizer.schedule": "cosine"}, 1,
            [f"report:   {REPORT} runs/x",
             f"go on:    {MAIN} --config=hops:q=0.5 --config.train.steps=4 --config.train.init=runs/x:latest "
             "--workdir=runs/x-on",
             f"evaluate: {EVALUATE} --run=runs/x"],
        ),
        (
            "s3://bucket/x", {}, 2,
            ["go on:    the same launch with --config.train.steps=8 --workdir=s3://bucket/x",
             f"evaluate: {EVALUATE} --run=s3://bucket/x --out=evaluations/x"],
        ),
        (
            "runs/x", {"model.size": "FOLDER"}, 1,
            [f"report:   {REPORT} runs/x",
             f"go on:    {MAIN} --config=hops:q=0.5 --config.train.steps=8 --workdir=runs/x",
             f"evaluate: {EVALUATE} --run=runs/x",
             "export:   python -m tsallis_rl.export --checkpoint=runs/x --out=models/x"],
        ),
        (  # only the first process tells, so nothing may ask the hub: the others would not join in
            "runs/x", {"model.size": "owner/model-that-nobody-has"}, 2,
            [f"report:   {REPORT} runs/x",
             "go on:    the same launch with --config.train.steps=8 --workdir=runs/x",
             f"evaluate: {EVALUATE} --run=runs/x",
             "export:   python -m tsallis_rl.export --checkpoint=runs/x --out=models/x"],
        ),
    ],
)  # fmt: skip
def test_the_end_names_commands_that_can_be_typed_as_they_stand(given, fields, processes, told, tmp_path):
    config = small()
    config.update_from_flattened_dict({k: str(tmp_path) if v == "FOLDER" else v for k, v in fields.items()})
    arguments = ["--config=hops:q=0.5", "--config.train.steps=4", "--workdir", "elsewhere"]
    found = next_commands(given, config, arguments, processes).splitlines()
    assert found == told
