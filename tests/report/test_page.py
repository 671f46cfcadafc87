"""The report as a page: its headline agrees with its tables, its links lead somewhere, and no section is empty."""

import html
import math
import re

import pytest

from tests.support.written_runs import STEPS, append, evaluated, make_run
from tsallis_rl.laboratory.symbols import SYMBOLS
from tsallis_rl.report.__main__ import report
from tsallis_rl.report.headline import headline
from tsallis_rl.report.merit import figures_of_merit
from tsallis_rl.report.orderings import orderings
from tsallis_rl.report.page import write_page
from tsallis_rl.report.panels import style_of_run
from tsallis_rl.report.runs import read

RISING = {"advantage": (0.0, 0.01, 0.3, 0.01), "log_p": (-40.0, -30.0, -2.0, -0.5)}
FLAT = {"advantage": (0.0,) * 4, "log_p": (-40.0,) * 4}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """GARL at three q, two seeds, and GRPO, of which one run goes on and one failed."""
    out = tmp_path_factory.mktemp("sweep")
    for seed in (0, 1):
        make_run(out / f"q0-{seed}", q=0.0, seed=seed, p1=0.0, **FLAT)
        make_run(out / f"q0.75-{seed}", seed=seed, p1=0.5, **RISING)
        make_run(out / f"q1-{seed}", q=1.0, seed=seed, p1=0.375 + 0.125 * seed, **RISING)
    make_run(out / "grpo-0", "grpo", advantage=(0.0,) * 2, log_p=(-40.0,) * 2)
    broken = make_run(out / "broken", "grpo", seed=1)
    (broken / "config.json").write_text("{")
    report(out)
    return out


def sections(page: str) -> dict[str, str]:
    """The sections by id; they are siblings, so that one can be replaced by its id."""
    found = dict(re.findall(r'<section id="([^"]+)">\n(.*?)</section>', page, re.S))
    assert len(found) == page.count("<section") == page.count("</section>")
    assert "<section" not in "".join(found.values())
    return found


def rows(markup: str) -> list[list[str]]:
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", markup, re.S)]
    return [[html.unescape(re.sub("<[^>]*>", "", cell)) for cell in row] for row in cells if row]


def test_the_contents_lead_to_every_section_and_none_is_empty(sweep):
    page = (sweep / "report.html").read_text()
    found = sections(page)
    links = re.findall(r'href="#([^"]+)"', found["contents"])
    assert list(found) == ["summary", "contents", *links] and set(re.findall(r'href="#([^"]+)"', page)) == set(links)
    assert links[0] == "merit" and links[-2:] == ["runs", "symbols"] and "do-rationales-help" not in links
    for name in links:
        text = re.sub("<[^>]*>", "", found[name].partition("</h2>")[2]).strip()
        assert found[name].startswith("<h2>") and (text or "<img" in found[name]), name


def test_a_page_of_runs_that_have_not_begun_has_no_section_without_content(tmp_path):
    (tmp_path / "sweep.json").write_text('{"one": {"state": "waiting"}}')
    page = write_page(tmp_path, read(tmp_path), [], {}).read_text()
    assert list(sections(page)) == ["summary", "contents", "runs", "symbols"]
    assert "1 run: 1 not begun. None has begun" in page


def test_the_headline_says_what_the_tables_say(sweep):
    runs = read(sweep)
    plain = orderings([run for run in runs if run.config])
    best, claims, failed = headline(runs, plain)
    table = {row[0]: row for row in rows(sections((sweep / "report.html").read_text())["merit"]) if len(row) == 7}
    assert best.text == (
        "GARL q = 0.75 has the highest p@1 (2 seeds): p@1 0.500 ± 0.000, m@4 0.500 ± 0.000 on the test split. Within "
        "its 95% interval over prompts: GARL q = 0; GARL q = 1. 1 further method without a finished run yet."
    )
    assert table["GARL q = 0.75"][2].startswith("0.500 ± 0.000 [") and table["GARL q = 1"][2].startswith("0.438 ± ")
    verdicts = re.findall(r'<span class="(yes|no|part)">', sections((sweep / "report.html").read_text())["claims"])
    holding, failing = verdicts.count("yes"), verdicts.count("no")
    assert f"{holding} hold" in claims.text and len(claims.items) == failing
    assert all(claim.verdict == "does not hold" for claim in plain if claim.claim in claims.items)
    assert failed.text.startswith("Failed: broken.")
    assert table["GRPO"][1:] == ["0 of 1", "–", "–", "–", "not yet (step 1)", "–"]
    assert table["GARL q = 0"][5:] == ["never", "never"] and table["GARL q = 0.75"][5:] == ["2, 2", "2, 2"]


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ({0.75: 0.5}, "GARL q = 0.75 (1 seed): p@1 0.500, m@4 0.500 on the test split."),
        ({0.0: 0.0, 1.0: 0.0}, "No method gave a right answer on the test split (2 methods)."),
        ({0.75: 0.5, 1.0: 0.5}, "The highest p@1 on the test split, 0.500, is that of GARL q = 0.75; GARL q = 1."),
        (
            {0.75: None},
            "The run has not finished. So far p@1 on validation is 0.500 (GARL q = 0.75, seed 0, at step 2).",
        ),
    ],
)
def test_the_headline_of_one_run_of_ties_of_zeros_and_of_runs_that_go_on(tmp_path, cells, text):
    for q, p1 in cells.items():
        make_run(tmp_path / f"{q}", q=q, p1=p1, **RISING)
    assert headline(read(tmp_path), [])[0].text == text


def test_the_headline_does_not_call_unfinished_what_gave_no_number(tmp_path):
    make_run(tmp_path / "run", validation=(math.nan,), **RISING)
    assert headline(read(tmp_path), [])[0].text == "No evaluation gave a number."
    append(tmp_path / "run", evaluated(2, 0.5, 0.5, 0.5, split="validation"))
    append(tmp_path / "run", evaluated(STEPS, math.nan, math.nan, math.nan) | {"eval/test/checkpoint_step": 2})
    assert headline(read(tmp_path), [])[0].text.startswith("No run has a number on the test split. So far p@1 on val")


def test_a_method_of_one_seed_has_one_line_in_the_table_and_several_seeds_have_theirs_behind_a_line_to_open(tmp_path):
    make_run(tmp_path / "0", p1=0.5, **RISING)
    one = figures_of_merit(read(tmp_path))
    assert "<br>" not in one and "±" not in one and "<details>" not in one and len(rows(one)) == 1
    append(tmp_path / "0", evaluated(STEPS, 0.25, 0.5, 0.25, split="test_last"))
    make_run(tmp_path / "1", seed=1, p1=0.375, **RISING)
    two = figures_of_merit(read(tmp_path))
    shown, _, opened = two.partition("<details>")
    assert len(rows(shown)) == 1 and "0.438 ± 0.088 [" in rows(shown)[0][2] and "<br>" not in two
    assert [row[1:3] for row in rows(opened)] == [["best", "0.500, 0.375"], ["last", "0.250"]]


def test_a_runs_look_is_the_same_whatever_runs_stand_beside_it(sweep, tmp_path):
    alone = make_run(tmp_path / "alone", q=1.0)
    among = next(run for run in read(sweep) if run.q == 1.0)
    assert style_of_run(read(alone)[0]) == style_of_run(among)


def test_symbols_have_their_meaning_as_a_tip_and_in_the_list_at_the_end(sweep):
    page = (sweep / "report.html").read_text()
    tips = set(re.findall(r'<a class="symbol" href="#symbols"><abbr title="([^"]+)">', page))
    assert {html.escape(SYMBOLS[name]) for name in ("p@1", "p@n", "m@n", "P̂", "c_m/M^q", "q", "M")} <= tips
    listed = sections(page)["symbols"]
    assert listed.count("<dt>") == len(SYMBOLS) and all(html.escape(x) in listed for x in SYMBOLS.values())
