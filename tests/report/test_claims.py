"""The paper's tables and claims: what they say, and how runs of several tasks and starts judge them."""

import html
import json
import re

import pytest

from tests.support.written_runs import STEPS, append, evaluated, make_run
from tsallis_rl.report.claims import BASE, CLAIMS, PAPER, SETS, Claim, cold, warm
from tsallis_rl.report.figures import draw
from tsallis_rl.report.merit import figures_of_merit
from tsallis_rl.report.orderings import RULES, UNTESTED, by_seed, leaders, orderings
from tsallis_rl.report.page import write_page
from tsallis_rl.report.runs import methods, read, settings
from tsallis_rl.report.summary import summary


@pytest.mark.parametrize(
    ("one", "other", "figure", "ahead"),
    [
        (cold("garl", 0.75), cold("garl", 1.0), "p@1", "1111"),  # on FinQA, HotPotQA, MuSiQue, and on a task of no set
        (cold("garl", 0.75), cold("garl", 1.0), "p@n", "121-"),  # p@16 at q = 1 is above on HotPotQA only
        (cold("garl", 0.75), cold("garl", 1.0), "m@n", "1111"),
        (cold("garl", 0.75), warm("garl", 0.75), "m@n", "1111"),  # cold beats warm
        (cold("garl", 0.75), warm("grpo"), "p@1", "1111"),
        (cold("garl", 0.75), warm("garl", 0.0), "m@n", "-11-"),  # 38.3 both on FinQA
        (warm("garl", 0.0), warm("grpo"), "m@n", "122-"),
        (warm("garl", 0.0), warm(BASE), "m@n", "121-"),
        (warm("paft", 0.25), warm(BASE), "m@n", "1111"),
        (warm("paft", 0.25), warm("grpo"), "m@n", "212-"),  # slow on FinQA and MuSiQue
        (warm("paft", 0.25), warm("paft", 0.75), "m@n", "2222"),
        (cold("garl", 0.5), warm("grpo"), "m@n", "2---"),  # of two sets the paper tabulates no zeros
    ],
)
def test_who_is_ahead_follows_from_the_papers_tables_set_by_set(one, other, figure, ahead):
    claim = Claim("compare", (one, other), figure)
    expected = {"1": (one, other), "2": (other, one), "-": None}
    sets = [leaders(claim, task) for task in SETS]
    assert sets == [expected[x] for x in ahead[:3]]
    assert leaders(claim, "hops") == expected[ahead[3]]


def test_the_papers_numbers_are_those_that_its_text_repeats():
    """The first version has the best stable method 14.4 points above GRPO on HotPotQA."""
    m = {arm: row["hotpotqa"][2] for arm, row in PAPER.items() if arm.start == "warm"}
    assert max(m[arm] for arm in m if arm.estimator == "paft") - m[warm("grpo")] == pytest.approx(14.4)
    assert all(0 <= x <= 100 for row in PAPER.values() for of_set in row.values() for x in of_set if x is not None)
    assert all(p1 <= p16 and m16 <= p16 for arm in PAPER if arm.start == "cold" for p1, p16, m16 in PAPER[arm].values())
    assert {claim.kind for claim in CLAIMS} == set(RULES)


# Validation m@n, warm, on HotPotQA; and the steps of figure 3.
CURVES = {("garl", 0.25): (0.1, 0.306, 0.0), ("garl", 0.75): (0.2, 0.468, 0.0), ("grpo", None): (0.2, 0.374, 0.05)}
ADVANTAGE = {0.75: (0.0, 0.0, 0.3), 1.0: (0.3, 0.3, 0.3)}


def reproduce(folder, task, seed):
    """Runs whose test figures are the paper's, and whose prompts differ by task and start as real ones do."""
    base = PAPER[warm(BASE)][task]
    for (start, estimator, q), row in PAPER.items():
        if estimator == BASE or task not in row:
            continue
        fields = {"task.name": task, "task.start": start, "task.max_prompt": 100 + 10 * len(task) + len(start)}
        falls = (task, start) == ("hotpotqa", "warm")
        curves = {"validation": CURVES.get((estimator, q), (0.1, 0.3)) if falls else (0.1, 0.3)}
        curves["advantage"] = ADVANTAGE.get(q, (0.0, 0.0, 0.0))
        curves["log_p"] = [-1.0 if a else -40.0 for a in curves["advantage"]]
        out = make_run(folder / f"{task}-{start}-{estimator}-{q}-{seed}", estimator, q or 0.0, seed, **curves, **fields)
        before = (0.0, 0.0, 0.0) if start == "cold" else (0.01, 0.2, base[2] / 100)
        after = [0.2 if x is None else x / 100 for x in row[task]]
        append(out, evaluated(0, *before), evaluated(STEPS, *after) | {"eval/test/checkpoint_step": 2})


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """A sweep over the paper's three sets and both starts that ends where the paper ends."""
    folder = tmp_path_factory.mktemp("paper")
    for task in SETS:
        for seed in (0, 1):
            reproduce(folder, task, seed)
    return folder


def judged(runs, task):
    return {x.claim: x for x in orderings([run for run in runs if run.config["task.name"] == task])}


def test_runs_that_end_where_the_paper_ends_agree_with_all_that_they_can_judge(paper):
    runs = read(paper)
    assert [(name, len(some)) for name, some in settings(runs).items()] == [
        ("finqa, cold start", 12), ("finqa, warm start", 12), ("hotpotqa, cold start", 4),
        ("hotpotqa, warm start", 12), ("musique, cold start", 4), ("musique, warm start", 12),
    ]  # fmt: skip
    assert not runs[0].varied  # prompts of other lengths do not make a variant of a task's runs
    found = {task: judged(runs, task) for task in SETS}
    verdicts = {(task, x.claim): x.verdict for task in SETS for x in found[task].values() if x.verdict != UNTESTED}
    assert {key for key, verdict in verdicts.items() if verdict != "holds"} == set() and len(verdicts) > 60
    assert found["finqa"]["cold GARL q = 0.75 is at or above warm GARL q = 0.75 (m@n)"][1:] == (
        "FinQA 0.383 against 0.376", "holds", "2 of 2 runs: 0.383 against 0.376; 0.383 against 0.376",
    )  # fmt: skip
    dates = "warm start: GARL q = 0.25 peaks and is zero by step 100 (validation m@n)"
    assert found["hotpotqa"][dates].detail.endswith("seed 1: 0.306 at step 2, zero at 4")
    assert "warm start: GARL q = 0.2 peaks and is zero by step 150 (validation m@n)" in found["hotpotqa"]
    assert not any("zero by step" in claim for claim in (*found["finqa"], *found["musique"]))
    assert "cold start: GARL q = 1 is at or above GARL q = 0.75 (p@n)" in found["hotpotqa"]
    assert found["musique"]["cold start: GRPO stays at zero"][1:3] == ("", UNTESTED)


def test_a_task_of_none_of_the_sets_is_judged_by_the_claims_that_name_none(tmp_path):
    for seed, cold_m in ((0, 0.25), (1, 0.5)):
        made = {"task.start": "warm"}
        make_run(tmp_path / f"warm{seed}", seed=seed, p1=0.375, **made)
        make_run(tmp_path / f"grpo{seed}", "grpo", seed=seed, p1=0.375, **made)
        make_run(tmp_path / f"cold{seed}", seed=seed, p1=cold_m)
    found = judged(read(tmp_path), "hops")
    cold_warm = found["cold GARL q = 0.75 is at or above warm GARL q = 0.75 (m@n)"]
    assert cold_warm.verdict == "holds in part"
    assert cold_warm.detail == "1 of 2 runs: 0.250 against 0.375; 0.500 against 0.375"
    assert cold_warm.paper == "FinQA 0.383 against 0.376; HotPotQA 0.572 against 0.468; MuSiQue 0.348 against 0.197"
    assert found["warm start: GARL q = 0.75 is at or above GRPO (m@n)"].verdict == "only ties"
    assert found["warm start: GARL q = 0.75 is at or above the base model (m@n)"].verdict == UNTESTED
    assert not any("GARL q = 0 is" in claim or "is at or above GARL q = 0 " in claim for claim in found)


def test_the_base_model_is_the_one_whose_evaluation_sampled_rationales(tmp_path):
    """Every run tests it before the first step; those of sft test it without a rationale."""
    for estimator, before, after in (("garl", 0.25, 0.5), ("sft", 0.0, 0.75), ("grpo", 0.25, 0.5)):
        made = make_run(tmp_path / estimator, estimator, **{"task.start": "warm"})
        append(made, evaluated(0, *[before] * 3), evaluated(STEPS, *[after] * 3) | {"eval/test/checkpoint_step": 2})
    claim = "warm start: GARL q = 0.75 is at or above the base model (m@n)"
    for methods_there in (("garl", "sft"), ("sft", "grpo")):
        runs = [run for run in read(tmp_path) if run.estimator in methods_there]
        assert 'before training</td><td></td><td><span class="whole"><b>0.250</b>' in figures_of_merit(runs)
        details = [x.detail for x in orderings(runs) if x.claim == claim and x.detail]
        assert details == ["1 of 1 run: 0.500 against 0.250"] * ("garl" in methods_there)


def test_a_schedule_of_q_is_not_the_papers_method_and_a_variant_is_compared_with_its_own_alone(tmp_path):
    for eps, p1 in ((1e-8, 0.5), (1e-12, 0.25)):
        for q in (0.75, 1.0):
            make_run(tmp_path / f"{eps}-{q}", q=q, p1=p1, **{"optimizer.eps": eps})
            make_run(
                tmp_path / f"{eps}-{q}-falling", q=q, p1=p1, **{"optimizer.eps": eps, "estimator.schedule": "linear"}
            )
    page = html.unescape(write_page(tmp_path, read(tmp_path), [], {}).read_text()).partition('<section id="claims">')[2]
    plain, title, other = page.partition('<p class="note">eps=1e-12</p>')
    assert title and "1 of 1 run: 0.500 against 0.500" in plain and "1 of 1 run: 0.250 against 0.250" in other
    assert "0.250 against" not in plain and "0.500 against" not in other
    assert '<p class="note">schedule=linear' not in page


def test_a_floor_beside_powers_is_drawn_and_not_taken_for_the_papers_method(tmp_path):
    for estimator in ("garl", "paft"):
        for name, fields in (("power", {}), ("floor", {"estimator.commitment": "floor", "estimator.tau": 0.05})):
            make_run(tmp_path / f"{estimator}-{name}", estimator, p1=0.5, **fields)
    runs = read(tmp_path)
    assert [run.folder.name for run in by_seed({"cold": runs}, cold("paft")).values()] == ["paft-power"]
    (drawn,) = draw(runs, tmp_path / "figures", ["stability"])
    assert drawn.caption.startswith("GARL and PAFT at the same q")


def test_fields_that_differ_within_one_start_name_the_runs_of_all_and_pair_them(tmp_path):
    for start, eps in (("cold", 1e-8), ("cold", 1e-12), ("warm", 1e-8)):
        fields = {"task.start": start, "optimizer.eps": eps, "task.max_prompt": 100 + len(start)}
        make_run(tmp_path / f"{start}{eps}", p1=0.5, **fields)
    runs = read(tmp_path)
    assert {run.variant for run in runs} == {"", "eps=1e-12"}  # the default's value goes without saying
    sentence = "cold GARL q = 0.75 is at or above warm GARL q = 0.75 (m@n)"
    found = {name: judged([run for run in runs if run.variant == name], "hops") for name in ("", "eps=1e-12")}
    assert found[""][sentence].verdict == "only ties"
    assert (
        sentence not in found["eps=1e-12"]
        and "cold start: GARL q = 0.75 leaves zero (here: p@1 ≥ 0.05)" in found["eps=1e-12"]
    )


def test_a_run_from_before_a_setting_is_compared_with_those_that_have_it_off(tmp_path):
    make_run(tmp_path / "new", seed=1, p1=0.5, **{"evaluate.kl": True, "evaluate.rationale": "sampled"})
    old = make_run(tmp_path / "old", p1=0.5)
    settings_then = json.loads((old / "config.json").read_text())
    del settings_then["regularizer"], settings_then["evaluate"]["kl"], settings_then["evaluate"]["rationale"]
    del settings_then["guards"]["vanished_share"], settings_then["task"]["hint"]
    (old / "config.json").write_text(json.dumps(settings_then))
    runs = read(tmp_path)
    assert runs[0].varied == () and list(methods(runs)) == ["GARL q = 0.75"]


def test_an_option_that_an_estimator_does_not_read_keeps_it_from_no_comparison(tmp_path):
    """A sweep leaves such an option at its default there."""
    warm_start = {"task.start": "warm"}
    make_run(tmp_path / "garl", p1=0.5, **{"estimator.normalize": False}, **warm_start)
    make_run(tmp_path / "paft", "paft", p1=0.5, **{"estimator.normalize": False}, **warm_start)
    make_run(tmp_path / "grpo", "grpo", p1=0.25, **warm_start)
    runs = read(tmp_path)
    assert [run.method for run in runs] == ["GARL q = 0.75", "PAFT q = 0.75", "GRPO"]
    assert judged(runs, "hops")["warm start: GARL q = 0.75 is at or above GRPO (m@n)"].verdict == "holds"
    make_run(tmp_path / "other", p1=0.5, **warm_start)
    assert [run.method for run in read(tmp_path)][:2] == ["GARL q = 0.75", "GARL q = 0.75, normalize=False"]


def test_a_mixed_start_is_judged_by_its_cold_half_beside_a_cold_one(tmp_path):
    make_run(tmp_path / "cold", p1=0.5)
    mixed = make_run(tmp_path / "mixed", **{"task.start": "mixed"})
    half = {f"eval/test/cold/{name}": 0.0 for name in ("pass@1", "maj@4")}
    append(mixed, {"step": STEPS, "eval/test/checkpoint_step": 2, "eval/test/pass@1": 0.4} | half)
    found = judged(read(tmp_path), "hops")
    assert found["cold start: GARL q = 0.75 leaves zero (here: p@1 ≥ 0.05)"].verdict == "holds"
    assert found["mixed start's cold half: GARL q = 0.75 leaves zero (here: p@1 ≥ 0.05)"].verdict == "does not hold"


@pytest.mark.parametrize(
    ("curve", "verdict"),
    [
        ((0.1, 0.4, 0.0, 0.0), "holds"),
        ((0.1, 0.4, 0.2, 0.1), "does not hold"),
        ((0.1, 0.4, 0.2, 0.1, 0.0), "does not hold"),  # later than the paper's
        ((0.1, 0.4, 0.2), "not tested"),  # not so far yet
        ((0.0, 0.0, 0.0, 0.0), "not tested"),  # never rose
    ],
)
def test_a_collapse_is_dated(tmp_path, curve, verdict):
    out = make_run(tmp_path / "run", q=0.2, validation=(), **{"task.name": "hotpotqa", "task.start": "warm"})
    append(out, *({"step": 50 * i, "eval/validation/maj@4": x} for i, x in enumerate(curve)))
    found = judged(read(tmp_path), "hotpotqa")
    assert found["warm start: GARL q = 0.2 peaks and is zero by step 150 (validation m@n)"].verdict == verdict


def rows_of(page, *begin):
    """The cells of the rows of any table that open with `begin`, as text."""
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    texts = [[html.unescape(re.sub("<[^>]*>", "", cell)) for cell in row] for row in rows]
    return [row for row in texts if tuple(row[: len(begin)]) == begin]


def test_the_papers_tables_stand_filled_and_what_was_not_run_is_named(paper, tmp_path):
    (paper / "musique-warm-grpo-None-0").rename(tmp_path / "kept")
    try:
        page = html.unescape(write_page(paper, read(paper), [], {}).read_text())
    finally:
        (tmp_path / "kept").rename(paper / "musique-warm-grpo-None-0")
    assert rows_of(page, "FinQA", "GARL q = 0.75") == [
        ["FinQA", "GARL q = 0.75", "0.305", "0.305 ± 0.000 (2)", "0.611", "0.611 ± 0.000 (2)", "0.383",
         "0.383 ± 0.000 (2)"],
        ["FinQA", "GARL q = 0.75", "–", "0.200 ± 0.000 (2)", "–", "0.200 ± 0.000 (2)", "0.376", "0.376 ± 0.000 (2)"],
    ]  # fmt: skip
    assert rows_of(page, "MuSiQue", "the base model") == [
        ["MuSiQue", "the base model", "–", "0.010 ± 0.000 (2)", "–", "0.200 ± 0.000 (2)", "0.089", "0.089 ± 0.000 (2)"]
    ]
    assert rows_of(page, "MuSiQue", "GRPO")[0][-1] == "0.158 (1)"
    assert "Without a finished run here:" not in page
    assert page.count("<h3>hotpotqa, cold start</h3>") == 2  # figures of merit, stability


def test_rows_and_sets_without_a_run_are_named(tmp_path):
    made = {"task.name": "musique", "task.start": "cold", "task.test_examples": 4}
    make_run(tmp_path / "one", p1=0.25, **made)
    page = html.unescape(write_page(tmp_path, read(tmp_path), [], {}).read_text())
    assert "Without a finished run here: FinQA; HotPotQA; MuSiQue GARL q = 1.</p>" in page
    assert rows_of(page, "MuSiQue", "GARL q = 0.75")[0][2:4] == ["0.268", "0.250 (1)"]
    make_run(tmp_path / "hops", p1=0.25)
    only = write_page(tmp_path / "hops", read(tmp_path / "hops"), [], {}).read_text()
    assert "The paper's tables" not in only


def test_runs_of_several_tasks_have_figures_of_their_own(tmp_path):
    for task, start in (("hops", "cold"), ("hops", "warm"), ("finqa", "cold")):
        fields = {"task.name": task, "task.start": start}
        make_run(tmp_path / f"{task}{start}", p1=0.25, advantage=(0.0, 0.1), log_p=(-3.0, -2.0), **fields)
    runs = read(tmp_path)
    drawn = draw(runs, tmp_path / "report", ["advantage"])
    assert [(x.file.name, x.setting) for x in drawn] == [
        ("advantage-1.png", "finqa, cold start"),
        ("advantage-2.png", "hops, cold start"),
        ("advantage-3.png", "hops, warm start"),
    ]
    page = write_page(tmp_path, runs, drawn, {}).read_text()
    assert page.count('<section id="figure-advantage">') == 1 and page.count("<img ") == 3
    assert list(methods(runs)) == ["GARL q = 0.75"]  # who pools by method takes one task and start at a time


def test_the_last_checkpoint_stands_beside_the_best(tmp_path):
    for seed in (0, 1):
        out = make_run(tmp_path / str(seed), seed=seed, p1=0.5)
        append(out, evaluated(STEPS, 0.25 * seed, 0.5, 0.25 * seed, split="test_last"))
    page = write_page(tmp_path, read(tmp_path), [], {}).read_text()
    assert rows_of(page, "GARL q = 0.75", "last")[0][2:] == ["0.000, 0.250", "0.500, 0.500", "0.000, 0.250"]
    assert rows_of(page, "GARL q = 0.75", "best")[0][2:] == ["0.500, 0.500", "1.000, 1.000", "0.500, 0.500"]
    records = [json.loads(line) for line in (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()]
    lines = summary(records).splitlines()
    assert lines[0].split() == ["test", "before", "after", "last"] and lines[1].split() == [
        "p@1",
        "–",
        "0.500",
        "0.250",
    ]
    assert summary(records[:-1]).splitlines()[0].split() == ["test", "before", "after"]
