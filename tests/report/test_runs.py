"""What a report reads from a run's folder: when it escaped, whether its test figures are current, how many prompts."""

import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.support.written_runs import STEPS, append, evaluated, make_run
from tsallis_rl.report.figures import FIGURES
from tsallis_rl.report.merit import figures_of_merit
from tsallis_rl.report.orderings import orderings
from tsallis_rl.report.runs import read

LOW, HIGH = math.log(0.01), math.log(0.2)
MIXED = {"task.start": "mixed"}


def test_a_step_with_a_prompt_without_weight_is_no_escape(tmp_path):
    """Such a prompt is left out of the mean of log P̂, which is then that of the others alone."""
    folder = make_run(tmp_path / "run", advantage=[0.1] * 3, log_p=[LOW, HIGH, HIGH])
    (run,) = read(folder)
    assert run.escape_step == 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["step"] == 1:
            line["train/dead_groups"] = 1.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = read(folder)
    assert run.escape_step == 2


def test_a_run_that_goes_on_with_more_steps_has_no_test_figures_before_its_new_end(tmp_path):
    folder = make_run(tmp_path / "run", p1=0.5)
    append(folder, evaluated(STEPS, 0.25, 0.5, 0.25, split="test_last"))
    (run,) = read(folder)
    assert (run.metric_after("pass@1"), run.metric_last("pass@1")) == (0.5, 0.25)
    config = json.loads((folder / "config.json").read_text())
    config["train"]["steps"] = 2 * STEPS
    (folder / "config.json").write_text(json.dumps(config))
    (run,) = read(folder)
    assert run.metric_after("pass@1") is run.metric_last("pass@1") is None


def test_prompts_are_counted_where_they_were_tested_and_a_mixed_start_by_its_cold_half(tmp_path):
    """Four were tested, of which two are cold: a rate of 3/2 could be missed, whatever the config had asked for."""
    folder = make_run(tmp_path / "run", p1=0.0, **{"task.test_examples": 50})
    assert "4 test prompts, 4 samples each" in figures_of_merit(read(folder))
    folder = make_run(tmp_path / "mixed", p1=0.0, advantage=[0.1], log_p=[LOW], **MIXED)  # of an earlier version
    file = folder / "evaluations" / f"test_{STEPS:06d}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    parts = ("cold", "warm") * 2
    file.write_text("".join(json.dumps(r | {"part": p}) + "\n" for r, p in zip(rows, parts, strict=True)))
    runs = read(folder)
    told = figures_of_merit(runs)
    assert "2 test prompts of the cold half" in told and "Steps are those of both halves together" in told
    assert not any(
        "rises at once" in found.claim or "leaves its start first" in found.claim for found in orderings(runs)
    )


def test_the_figure_of_escapes_draws_updates_and_fits_every_run(tmp_path):
    """The metrics of step s are of a model of s updates; a run with a schedule of q is no run of the q it starts at."""
    escapes = {("a", 1.0): 2, ("b", 1.0): 4, ("c", 0.75): 8}
    for seed, ((name, q), step) in enumerate(escapes.items()):
        log_p = [LOW] * step + [HIGH]
        make_run(tmp_path / name, q=q, seed=seed, advantage=[0.1] * len(log_p), log_p=log_p)
    log_p = [LOW, HIGH]
    make_run(tmp_path / "moving", q=0.5, advantage=[0.1] * 2, log_p=log_p, **{"estimator.schedule": "linear"})
    figure = plt.figure()
    try:
        caption = FIGURES["escape"][1](read(tmp_path), figure)
        points = {tuple(np.ravel(line.get_data())) for line in figure.axes[0].lines if len(line.get_xdata()) == 1}
    finally:
        plt.close(figure)
    assert {y for _, y in points} == {2, 4, 8} and {x for x, _ in points} == {1.0, 0.75}
    time = {1.0: math.log(0.05 / 0.01), 0.75: (0.01**-0.25 - 0.05**-0.25) / 0.25}
    constant = np.exp(np.mean([np.log(step / time[q]) for (_, q), step in escapes.items()]))
    assert f"{constant:.2g} updates, fitted to the 3 runs that escaped" in caption
    assert "(q = 0.75) took 2.7 times as long as the fastest (q = 1)" in caption


@pytest.mark.parametrize("start", ["cold", "mixed"])
def test_claims_on_steps_count_seeds(tmp_path, start):
    for q in (0.0, 0.25, 0.5, 0.75, 1.0):
        more = {"task.start": start}
        make_run(tmp_path / f"q{q}", q=q, p1=0.5, advantage=[0.0] * 3, log_p=[LOW] * 3, **more)
    found = {x.claim: x.detail for x in orderings(read(tmp_path)) if "at once" in x.claim}
    assert [detail.startswith("0 of 1 seed: ") for detail in found.values()] == [True] * (start == "cold")


def test_steps_of_a_mixed_start_are_those_of_its_cold_half(tmp_path):
    """The warm half succeeds from the start, so that a whole batch leaves it before the cold half does."""
    for q in (0.0, 0.25, 0.5, 0.75, 1.0):
        folder = make_run(tmp_path / f"q{q}", q=q, p1=0.5, advantage=[0.9] * 3, log_p=[HIGH] * 3, **MIXED)
        left = {0.75: 2, 1.0: 1}.get(q, 3)  # by the cold half
        of_cold = [(HIGH, 0.9) if step >= left else (LOW, 0.0) for step in range(3)]
        append(folder, *({"step": i} | cold(*figures) for i, figures in enumerate(of_cold)))
    runs = read(tmp_path)
    assert [run.escape_step for run in runs] == [run.advantage_step for run in runs] == [None, None, None, 2, 1]
    claims = [found for found in orderings(runs) if "at once" in found.claim or "leaves its start first" in found.claim]
    assert [found.claim.startswith("mixed start's cold half") for found in claims] == [True, True]
    assert [found.verdict for found in claims] == ["holds"] * 2
    assert "both halves" not in figures_of_merit(runs)


def cold(log_p, advantage):
    return {"train/cold/log_p_hat_mean": log_p, "train/cold/max_advantage": advantage, "train/cold/dead_groups": 0}
