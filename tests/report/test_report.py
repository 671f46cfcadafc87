"""The report on hand-written runs in every state, its numbers against independent ones, its pages in a real browser."""

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import scipy.integrate

from configs import hops
from tests.support.written_runs import STEPS, make_run
from tsallis_rl.report import rollout_page as rollout_page_module
from tsallis_rl.report.__main__ import main, report
from tsallis_rl.report.figures import style_of_run
from tsallis_rl.report.orderings import orderings
from tsallis_rl.report.rollout_page import rollout_page, write_evaluation_page, write_pages
from tsallis_rl.report.runs import Run, read
from tsallis_rl.report.statistics import fitted_constant, flow_time, largest_fall, summarize
from tsallis_rl.report.summary import draw_curves
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_lock import hold_run_lock

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><script>document.title='broken'</script> <!-- <script> & <b>bold</b>"


def saved_rows(prompts=2, m=3):
    rng = np.random.default_rng(0)
    return [
        {"example": f"ex{p}", "rollout": i, "prompt": f"{HOSTILE} prompt {p}",
         "rationale": f"{HOSTILE} thought {p} {i}",
         "closed": "never" if i == 2 else "sampled", "gold": "<i>42</i>", "answer": None if i == 2 else "42",
         "log_w": None if i == 2 else float(rng.normal(-40, 5)), "weight": float(rng.random()),
         "score": float(rng.normal()), "path": float(rng.random()), "draws": int(rng.integers(4))}
        for p in range(prompts) for i in range(m)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep with cells in every state, and its report."""
    out = tmp_path_factory.mktemp("sweep")
    rising = {"log_p": (-40.0, -30.0, -2.0, -0.5)}
    flat = {"advantage": (0.0, 0.0, 0.001, 0.0), "log_p": (-40.0, -41.0, -40.0, -40.0)}
    for seed in (0, 1, 2):
        make_run(out / f"garl-q0-seed{seed}", q=0.0, seed=seed, p1=0.0, validation=(0.0, 0.0), **flat)
        make_run(out / f"garl-q0.75-seed{seed}", seed=seed, p1=0.5, advantage=(0.0, 0.01, 0.3, 0.01), **rising)
        worse = 0.5 if seed == 2 else 0.375
        make_run(out / f"garl-q1-seed{seed}", q=1.0, seed=seed, p1=worse, advantage=(0.2, 0.1, 0.3, 0.01), **rising)
    make_run(out / "paft-q0.75-seed0", "paft", p1=0.5, advantage=(0.0, 0.1, 0.3, 0.01), **rising)
    make_run(out / "grpo-seed0", "grpo", p1=0.0, validation=(0.0, 0.0), **flat)
    running = make_run(out / "grpo-seed1", "grpo", seed=1, validation=(), **flat)
    with (running / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/max_adv')  # cut while it was written
    make_run(out / "grpo-seed2", "grpo", seed=2, **flat)
    (out / "paft-q1-seed0").mkdir()
    (out / "paft-q1-seed0" / "config.json").write_text('{"seed": 0, "tra')
    (out / "garl-q0.75-seed0" / "rollouts").mkdir()
    file = out / "garl-q0.75-seed0" / "rollouts" / "step_000002.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in saved_rows()))
    states = {"garl-q0-seed0": {"state": "done"}, "paft-q0-seed1": {"state": "failed", "error": "MemoryError: <none>"}}
    (out / "sweep.json").write_text(json.dumps(states | {"paft-q0-seed2": {"state": "waiting"}}))
    with hold_run_lock(running):
        report(out)
        yield out


def test_cells_are_shown_in_the_state_that_they_are_in(sweep):
    states = {run.folder.name: run.state for run in read(sweep)}
    assert states["garl-q0-seed0"] == "done"
    assert states["grpo-seed1"] == "running"
    assert states["grpo-seed2"] == "stopped"
    assert states["paft-q0-seed1"] == "failed" and states["paft-q0-seed2"] == "not begun"
    assert states["paft-q1-seed0"] == "failed"
    page = (sweep / "report.html").read_text()
    for text in ("failed: MemoryError: &lt;none&gt;", "config.json is not JSON", "not begun", "4 of 4"):
        assert text in page
    assert "16 runs: 11 done, 1 running, 1 stopped, 2 failed, 1 not begun." in page


@pytest.mark.parametrize(
    ("state", "last", "said"),
    [("running", 41, "not yet (step 41)"), ("stopped", 41, "not yet (step 41)"), ("stopped", 99, "never"),
     ("done", 41, "never"), ("running", None, "not yet")],
)  # fmt: skip
def test_a_run_that_goes_on_has_not_escaped_yet_and_one_at_its_end_never_has(tmp_path, state, last, said):
    records = [{"step": step, "train/loss": 1.0} for step in (0, last) if last is not None]
    run = Run(tmp_path, state, {"train.steps": 100}, records)
    assert run.when(run.escape_step) == said and run.when(7) == "7"


def test_the_page_needs_nothing_but_itself(sweep):
    page = (sweep / "report.html").read_text()
    assert "http" not in page and "<script" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert all(
        s.startswith(("#", "data:,", "data:image/png;base64,", "garl-q0.75-seed0/rollouts/step_")) for s in sources
    )
    drawn = {file.name for file in (sweep / "report").iterdir()}
    names = ("advantage", "success", "escape", "stability", "sample_size", "rationales", "optimizer")
    assert drawn == {f"{name}.png" for name in names}
    assert page.count("<img ") == len(drawn) == page.count("alt=")


def test_orderings_count_the_runs_that_agree(sweep):
    found = {ordering.claim: ordering for ordering in orderings([run for run in read(sweep) if run.config])}
    zero = found["cold start: GARL q = 0 stays at zero"]
    assert zero[1:] == ("FinQA 0.000", "holds", "3 of 3 runs: p@1: 0.000, 0.000, 0.000")
    assert found["cold start: GARL q = 0.25 stays at zero"].verdict == "not tested"
    assert found["cold start: GARL q = 0.75 leaves zero (here: p@1 ≥ 0.05)"].verdict == "holds"
    assert found["cold start: GRPO stays at zero"][2:] == ("holds", "1 of 1 run: p@1: 0.000")
    ahead = found["cold start: GARL q = 0.75 is at or above GARL q = 1 (p@1)"]
    assert ahead[2:] == ("holds", "3 of 3 runs: 0.500 against 0.375; 0.500 against 0.375; 0.500 against 0.500")
    assert found["cold start: GARL q = 0.75 is at or above GARL q = 1 (m@n)"].verdict == "holds"
    undefined = found["cold start: PAFT q = 0.75 is undefined (here: stays at zero)"]
    assert undefined[1:3] == ("since P ≈ 0", "does not hold")

    pair = [run for run in read(sweep) if run.estimator == "garl" and run.config["seed"] == 2]
    (tie,) = (o for o in orderings(pair) if o.claim == ahead.claim)
    assert tie[2:] == ("only ties", "1 of 1 run: 0.500 against 0.500")

    lucky = [run for run in read(sweep) if run.estimator == "grpo" and run.config]
    lucky[0].records.insert(0, {"step": 0, "eval/test/pass@1": 0.125})  # a right answer by chance, before training
    (start,) = (o for o in orderings(lucky) if o.claim == "cold start: GRPO stays at zero")
    assert start.verdict == "not tested"

    worse = [run for run in read(sweep) if run.config]
    worse[0].records[-1]["eval/test/pass@1"] = 0.25  # of garl at q = 0, seed 0
    (part,) = (o for o in orderings(worse) if o.claim == zero.claim)
    assert part[2:] == ("holds in part", "2 of 3 runs: p@1: 0.250, 0.000, 0.000")


def test_a_single_run_and_one_without_any_evaluation_have_a_page(tmp_path):
    alone = make_run(tmp_path / "alone", p1=0.5, advantage=(0.0,) * 4, log_p=(-3.0, -2.0, -1.0, -0.5))
    page = report(alone).read_text()
    assert "Not tested, for want of finished runs that could tell: cold start: GRPO stays at zero; " in page
    assert "1 run: 1 done" in page and "Fewer than three seeds" in page and "<b>0.500</b>" in page
    nothing = make_run(tmp_path / "nothing", validation=())
    (nothing / "metrics.jsonl").write_text('{"step": 0, "eval/te')
    page = report(nothing).read_text()
    assert "1 run: 1 not begun" in page and "No evaluation has finished yet" in page


def test_a_runs_own_curves_are_of_one_metric_each(tmp_path):
    folder = make_run(tmp_path / "run", validation=(), advantage=(0.1,), log_p=(-3.0,))
    with (folder / "metrics.jsonl").open("a") as file:
        for record in (
            {"step": 0, "eval/validation/pass@1": 0.25, "eval/validation/pass@16": 1.0},
            {"step": 2, "eval/validation/pass@1": None},
        ):
            file.write(json.dumps(record) + "\n")
    (run,) = read(folder)
    steps, values = run.curve("eval/validation/pass@1")
    assert (steps.tolist(), values.tolist()) == ([0], [0.25])
    assert draw_curves(folder, hops.get_config(), run.records) == folder / "figures"
    assert {file.name for file in (folder / "figures").iterdir()} == {"success.png", "advantage.png", "sample_size.png"}


def test_a_run_with_shadows_has_their_figure(tmp_path):
    folder = make_run(tmp_path / "run", advantage=(0.0,), log_p=(-3.0,))
    shadow = {f"shadow/{name}/{m}": 0.9 for name in ("garl@0", "paft@1") for m in ("cosine", "norm_ratio", "variance")}
    with (folder / "metrics.jsonl").open("a") as file:
        for step in (0, 2):
            file.write(json.dumps({"step": step} | shadow | {"shadow/garl@0/cosine/paft@1": None}) + "\n")
    assert "Which q now?" in report(folder).read_text() and (folder / "report" / "shadows.png").exists()


def test_a_folder_that_is_neither_run_nor_sweep_gets_a_sentence(tmp_path, capsys):
    with pytest.raises(UserError, match=r"neither a run .* nor a sweep"):
        read(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "not there")])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_runs_that_differ_in_more_than_q_and_seed_are_not_pooled(tmp_path):
    for eps in (1e-8, 1e-12):
        make_run(tmp_path / f"{eps}", p1=0.5, **{"optimizer.eps": eps})
    assert [run.method for run in read(tmp_path)] == ["GARL q = 0.75", "GARL q = 0.75, eps=1e-12"]


def test_a_floor_is_named_by_its_tau_and_pooled_over_seeds(tmp_path):
    for seed, tau in ((0, 0.05), (1, 0.05), (0, 0.0067379)):
        make_run(
            tmp_path / f"{tau}-{seed}", p1=0.5, seed=seed,
            **{"estimator.commitment": "floor", "estimator.tau": tau, "estimator.q": 0.75},
        )  # fmt: skip
    runs = read(tmp_path)
    assert [run.method for run in runs] == ["GARL floor τ = 0.0067379", *["GARL floor τ = 0.05"] * 2]
    assert style_of_run(runs[0]) != style_of_run(runs[1]) == style_of_run(runs[2])


def test_a_proposal_is_named_and_not_taken_for_a_commitment(tmp_path):
    for proposal in ("prior", "mixture"):
        make_run(tmp_path / proposal, p1=0.5, **{"proposal.name": proposal})
    assert [run.method for run in read(tmp_path)] == ["GARL q = 0.75", "GARL q = 0.75, proposal=mixture"]


def test_summaries_have_mean_spread_and_every_seed(sweep):
    found = summarize([run for run in read(sweep) if run.method == "GARL q = 1"], "pass@1")
    assert found.values == [0.375, 0.375, 0.5]
    assert found.mean == pytest.approx(1.25 / 3) and found.sd == pytest.approx(0.125 / 3**0.5)
    assert found.low < found.mean < found.high


@pytest.mark.parametrize("q", [0.0, 0.5, 0.75, 1.0])
def test_the_flows_time_is_the_integral_of_its_equation(q):
    p0, p1 = 1e-3, 0.05
    expected, _ = scipy.integrate.quad(lambda p: p ** (q - 2), p0, p1)
    assert flow_time(np.log(p0), np.log(p1), np.array(q)) == pytest.approx(expected, rel=1e-6)
    if q == 0.5:
        assert flow_time(-40.0, np.log(p1), np.array(q)) == pytest.approx(np.exp(20.0) / 0.5, rel=1e-6)


def test_a_constant_is_found_again_and_falls_are_measured_from_the_best_so_far():
    times = np.array([10.0, 1e4, 1e7])
    assert fitted_constant(3.5 * times, times) == pytest.approx(3.5)
    assert largest_fall(np.array([0.1, 0.6, 0.2, 0.9, 0.8])) == pytest.approx(0.4)
    assert largest_fall(np.array([])) == 0.0


def test_a_rollout_page_holds_texts_as_data_and_no_markup_of_theirs():
    page = rollout_page(saved_rows(), HOSTILE)
    assert page.count("<script") == 2 == page.count("</script>") and "<b>bold" not in page
    data = page_data(page)
    assert data["groups"][1]["prompt"] == f"{HOSTILE} prompt 1"
    assert [row[data["columns"].index("rationale")] for row in data["rows"]][4] == f"{HOSTILE} thought 1 1"


def page_data(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_rollouts_of_one_rationale_are_known_by_the_first_of_their_group_alone():
    rows = saved_rows(prompts=2, m=4)
    for i in (1, 2, 6):  # the last is of the other group
        rows[i]["rationale"] = "so it is 42"
    assert page_data(rollout_page(rows, "rollouts"))["firsts"] == [0, 1, 1, 3, 4, 5, 6, 7]


def test_characters_that_a_page_would_obey_are_shown_as_their_codes():
    rows = saved_rows(prompts=1, m=1)
    rows[0] |= {"rationale": "\x1b[2J a\u202eb\u2066c\u200fd\r\n\té", "example": "e\0"}
    page = rollout_page(rows, "rollouts")
    data = page_data(page)
    assert data["rows"][0][data["columns"].index("rationale")] == r"\x1b[2J a\u202eb\u2066c\u200fd\x0d" + "\n\té"
    assert data["groups"][0]["example"] == r"e\x00"
    assert not {"\x1b", "\u202e", "\u2066", "\u200f", "\0"} & set(page)


CHATS = {
    "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhere?\n<|im_end|>\n<|im_start|>assistant\n<think>\n": [
        ["system", "Be short."], ["user", "Where?"], ["assistant", "<think>"],
    ],
    "<bos><start_of_turn>user\nthe mat<end_of_turn>\n<start_of_turn>model\n": [["user", "the mat"], ["model", ""]],
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n1 < 2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n": [["user", "1 < 2?"], ["assistant", ""]],
    "<bos>Q: <|im_start|>user\nx": [["", "Q:"], ["user", "x"]],
    "<bos> no chat <|im_end|> <|im_start|>": [],
    "<|im_start|>" + "<|im_start|>" * 9 + "a" * 99 + "\nx": [],  # no role
}  # fmt: skip


@pytest.mark.parametrize("prompt", CHATS)
def test_a_chats_turns_are_shown_by_role_and_its_exact_text_is_kept(prompt):
    rows = saved_rows(prompts=1, m=1)
    rows[0]["prompt"] = prompt
    (group,) = page_data(rollout_page(rows, "rollouts"))["groups"]
    assert (group["turns"], group["prompt"]) == (CHATS[prompt], prompt)


def test_a_page_that_would_be_the_same_is_not_written_again(tmp_path):
    folder, written = tmp_path / "rollouts", {}
    folder.mkdir()
    for step in (0, 5):
        (folder / f"step_{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in saved_rows()))
        write_pages(tmp_path, "GARL", tmp_path / "report.html", written)
    pages = [folder / f"step_{step:06d}.html" for step in (0, 5)]
    assert "later › (step 5)" in pages[0].read_text() and "‹ earlier (step 0)" in pages[1].read_text()
    before = [page.stat().st_ino for page in pages]
    (folder / "step_000005.jsonl").write_text(json.dumps(saved_rows()[0]) + "\n")
    write_pages(tmp_path, "GARL", tmp_path / "report.html", written)
    after = [page.stat().st_ino for page in pages]
    assert after[0] == before[0] and after[1] != before[1] and "1 rollouts of 1" in pages[1].read_text()


def test_what_a_rollout_does_not_say_leaves_its_cell_empty_and_its_groups_likelihood_unsaid():
    rows = saved_rows(prompts=3, m=3)
    for row in rows[3:6]:
        del row["log_w"], row["rollout"]  # as another version may have written them
    rows[0] |= {"closed": 7, "rationale": None, "score": float("nan"), "draws": True}
    del rows[1]["gold"], rows[2]["closed"]
    page = rollout_page(rows, "rollouts")
    assert "9 rollouts of 3 prompts. How rationales closed: 5 sampled, 2 never." in page
    data = page_data(page)
    of = data["columns"].index
    assert [group["logp"] for group in data["groups"]][1] == ""
    np.testing.assert_allclose(
        data["groups"][2]["logp"], np.log((np.exp(rows[6]["log_w"]) + np.exp(rows[7]["log_w"])) / 3), rtol=1e-12
    )
    first, second, third = data["rows"][:3]
    assert [first[of(name)] for name in ("closed", "rationale", "score", "draws")] == ["", "", None, ""]
    assert [row[of("log w")] for row in data["rows"][3:6]] == ["", "", ""]
    assert third[of("closed")] == "" and third[of("log w")] is None and second[of("score")] == rows[1]["score"]


def test_the_likelihood_of_a_proposals_group_counts_importance_weights():
    rows = saved_rows(prompts=1, m=3)
    rows = [row | {"log_rho": log_rho} for row, log_rho in zip(rows, (-9.0, 2.0, 0.5), strict=True)]
    weights = [0.0 if row["log_w"] is None else np.exp(row["log_w"] + row["log_rho"]) for row in rows]
    (group,) = page_data(rollout_page(rows, "rollouts"))["groups"]
    np.testing.assert_allclose(group["logp"], np.log(np.mean(weights)), rtol=1e-12)


def test_files_beside_the_rollouts_and_files_without_a_line_break_no_page(tmp_path):
    folder = tmp_path / "rollouts"
    folder.mkdir()
    (folder / "step_000000.jsonl").write_text('{"example": "cut')
    (folder / "step_000050.jsonl").write_text("".join(json.dumps(row) + "\n" for row in saved_rows()))
    (folder / "step_000050 (copy).jsonl").write_text("{}\n")
    pages = write_pages(tmp_path, "GARL", tmp_path / "report.html").rollouts
    assert [page.name for page in pages] == ["step_000000.html", "step_000050.html"]
    assert "0 rollouts of 0 prompts.</p>" in pages[0].read_text()
    for page in pages:
        links = re.findall(r'href="(step_[^"]*)"', page.read_text())
        assert len(links) == 1 and (folder / links[0]).exists()


def test_a_run_of_another_version_and_one_that_was_edited_say_so_beside_the_others(tmp_path):
    make_run(tmp_path / "whole", p1=0.5)
    older, edited, lines = (make_run(tmp_path / name, p1=0.5) for name in ("older", "edited", "lines"))
    for folder, change in ((older, lambda c: c.pop("seed")), (edited, lambda c: c["train"].update(steps="4"))):
        settings = json.loads((folder / "config.json").read_text())
        change(settings)
        (folder / "config.json").write_text(json.dumps(settings))
    file = lines / "evaluations" / f"test_{STEPS:06d}.jsonl"
    file.write_text(file.read_text().replace('"correct"', '"right"'))
    page = report(tmp_path).read_text()
    assert "4 runs: 2 done, 2 failed." in page
    assert html.escape(f"{older / 'config.json'}: field 'seed' is missing") in page
    assert html.escape(f"{edited / 'config.json'}: field 'train.steps' is '4', expected int") in page
    runs = {run.folder.name: run for run in read(tmp_path)}
    assert runs["lines"].outcomes is None and sum(runs["whole"].outcomes["pass@1"].values()) == 4 * 0.5


def sampled_rows(prompts=2, m=2):
    return [
        {"example": f"ex{p}", "rollout": i, "prompt": f"<bos>prompt {p}", "rationale": f"{HOSTILE}</think>",
         "closed": "sampled", "gold": "42", "answer": None if i else "4 2", "log_w": -3.0,
         "sampled": None if i else f"4 2<eos>{HOSTILE}", "correct": 0, "grades": {} if i else {"exact": 0.0, "f1": 0.5}}
        for p in range(prompts) for i in range(m)
    ]  # fmt: skip


def test_what_the_model_says_on_validation_is_a_page_that_the_report_links_to(tmp_path):
    folder = make_run(tmp_path / "run", p1=0.0, log_p=(-3.0,), advantage=(0.1,))
    for step in (0, 2):
        lines = "".join(json.dumps(row) + "\n" for row in sampled_rows())
        (folder / "evaluations" / f"validation_{step:06d}.jsonl").write_text(lines)
    page = report(folder).read_text()
    links = re.findall(r'<a href="(evaluations/[^"]*)">(\d+)</a>', page)
    assert links == [("evaluations/validation_000000.html", "0"), ("evaluations/validation_000002.html", "2")]
    shown = page[page.index("<h2>What the model answers") :]
    assert "GARL q = 0.75, step 2" in shown and html.escape(f"4 2<eos>{HOSTILE}") in shown and "0 of 2" in shown
    newest = (folder / links[1][0]).read_text()
    assert "answers on validation at step 2" in newest and 'href="validation_000000.html"' in newest
    data = page_data(newest)
    assert data["columns"] == [
        "group", "rollout", "rationale", "closed", "answer", "as sampled", "correct", "log w", "grade: exact",
        "grade: f1",
    ]  # fmt: skip
    first, second = (dict(zip(data["columns"], row, strict=True)) for row in data["rows"][:2])
    assert (first["answer"], first["as sampled"], first["grade: f1"]) == ("4 2", f"4 2<eos>{HOSTILE}", 0.5)
    assert (second["answer"], second["as sampled"], second["grade: f1"]) == (None, None, "")
    assert newest.count("<script") == 2


def test_a_page_of_an_evaluation_shows_as_many_whole_examples_as_a_browser_bears(tmp_path, monkeypatch):
    rows = sampled_rows(prompts=10)
    monkeypatch.setattr(rollout_page_module, "PAGE_BYTES", 3 * len(str(rows[0]["rationale"]) * 3))
    write_evaluation_page(tmp_path / "page.html", rows, "a title", "p@1 0 < 1")
    page = (tmp_path / "page.html").read_text()
    shown = len(page_data(page)["groups"])
    assert 1 <= shown < 10 and len(page_data(page)["rows"]) == 2 * shown
    told = f"The first {shown} of 10 examples are shown; samples.jsonl beside it has all."
    assert f"<pre>p@1 0 &lt; 1\n{told}</pre>" in page


# Drives the page as a person would, and leaves what it saw where --dump-dom shows it.
_VISIT = """
<pre id="seen"></pre><script>
const seen = { title: document.title, load: performance.now(), rows: document.querySelectorAll("tbody tr").length };
seen.text = [...document.querySelectorAll(".text")].some((x) => x.textContent === HOSTILE);
const press = (name) => [...document.querySelectorAll("th button")].find((x) => x.textContent === name).click();
const column = (i) => [...document.querySelectorAll("tbody tr")].map((x) => x.cells[i].textContent);
const pick = (view) => {
  const select = document.getElementById("view");
  select.value = view;
  select.dispatchEvent(new Event("change"));
};
const times = document.querySelector("button.times");
seen.times = [times.textContent, times.parentElement.parentElement.cells[0].textContent];
times.click();
seen.opened = document.querySelectorAll("tbody tr").length;
let start = performance.now();
pick("rows");
press("log w");
seen.sort = performance.now() - start;
seen.first = column(5).slice(0, 3).map(Number);
press("log w");
seen.last = column(5)[0];
document.getElementById("next").click();
seen.where = document.getElementById("where").textContent;
seen.drawn = document.querySelectorAll("tbody tr").length;
document.querySelector("tbody button.link").click();
seen.group = document.querySelector("section dd").textContent;
document.getElementById("seen").textContent = JSON.stringify(seen);
</script></body>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")
def test_thirty_thousand_rollouts_open_and_sort_in_a_browser(tmp_path):
    rows = saved_rows(prompts=1000, m=30)
    rows[0]["rationale"], rows[0]["weight"] = HOSTILE, 2.0  # the heaviest, so the first that is shown
    for i in (1, 2, 5):
        rows[i]["rationale"] = "so it is 42"
    page = rollout_page(rows, "rollouts").replace(
        "</body>", _VISIT.replace("HOSTILE", json.dumps(HOSTILE).replace("<", "\\u003c"))
    )
    (tmp_path / "page.html").write_text(page, "utf-8")
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
        command = [CHROMIUM, *flags, "--dump-dom", (tmp_path / "page.html").as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.S)[1]))
    print(f"loaded in {seen['load']:.0f} ms, sorted in {seen['sort']:.0f} ms", file=sys.stderr)
    assert seen["title"] == "rollouts" and seen["text"]
    assert seen["times"] == ["×3", "1, 2, 5"] and (seen["rows"], seen["opened"]) == (88, 91)
    assert seen["drawn"] == 100 and seen["where"] == "101 to 200 of 30000"
    log_w = sorted((row["log_w"] for row in rows if row["log_w"] is not None), reverse=True)
    assert seen["first"] == [round(x, 2) for x in log_w[:3]] and seen["last"] == "−∞"
    assert seen["group"].startswith("ex")
    # No bound on the clocks, which a busy machine stretches: that 100 of 30,000 are drawn is what keeps them short.
