"""The report on files that it did not write: values of any kind are accepted, and no page is written elsewhere."""

import json
import math
import os
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import hops
from tsallis_rl.config.saved import LATER, run_config
from tsallis_rl.report.__main__ import report
from tsallis_rl.report.figures import draw
from tsallis_rl.report.page import write_page
from tsallis_rl.report.rollout_page import write_pages
from tsallis_rl.report.runs import read
from tsallis_rl.report.summary import summary
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import plain
from tsallis_rl.runs.run_directory import flatten, read_records
from tsallis_rl.runs.run_lock import UNKNOWN, is_held, read_holder

DIGITS = int("9" * 400)
HOSTILE = st.one_of(
    st.sampled_from([DIGITS, -DIGITS, 2**63, -1, 0, True, None, math.nan, math.inf, 1e308, "", "$x^{", "\ud800", "\0"]),
    st.sampled_from(["<script>", "é" * 400, [], {}, [[]], {"a": DIGITS}, "a\nb", "__proto__", 0.5, "none"]),
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    ),
)
METRICS = [
    "step", "train/loss", "train/log_p_hat_mean", "train/max_advantage", "eval/validation/maj@4",
    "eval/test/pass@1", "eval/test/checkpoint_step", "shadow/garl@1/norm_ratio", "train/skipped",
    "eval/validation/rationale_gain", "eval/validation/rationale_gain_se", "guard/rationales_vanished",
]  # fmt: skip


def config(seed: int = 0, **changes) -> dict:
    made = hops.get_config()
    made.update_from_flattened_dict({"seed": seed, "train.steps": 2, "evaluate.samples": 4})
    return json.loads(made.to_json()) | changes


def make_run(folder, settings: dict, records: list, rows: list = (), answers: list = ()) -> None:
    for name in ("rollouts", "evaluations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    for file, lines in (
        ("metrics.jsonl", records), ("rollouts/step_000001.jsonl", rows), ("evaluations/test_000002.jsonl", answers),
        ("evaluations/validation_000002.jsonl", rows),
    ):  # fmt: skip
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))


def records() -> list[dict]:
    made = [{"step": i, **{name: 0.5 for name in METRICS if name.startswith(("train", "shadow"))}} for i in range(3)]
    of_rationales = ("rationale_gain", "rationale_gain_se", "unique_rationales", "rationale_length")
    measured = {f"eval/validation/{name}": 0.5 for name in ("maj@4", *of_rationales)}
    made += [{"step": i, **measured} for i in (0, 2)]
    test = {f"eval/test/{name}": 0.5 for name in ("pass@1", "pass@4", "maj@4")}
    return [*made, {"step": 0, **test}, {"step": 2, **test, "eval/test/checkpoint_step": 2}]


def pages(folder) -> str:
    """The whole report without its figures."""
    runs = read(folder)
    links = {run.folder: write_pages(run.folder, run.method, folder / "report.html") for run in runs if run.config}
    return write_page(folder, runs, [], links).read_text()


FIELDS = sorted(flatten(config()))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["config", "config", "metrics", "rows", "answers", "sweep", "lock"]), st.data())
def test_any_value_anywhere_is_a_page_and_nothing_is_raised(tmp_path_factory, where, data):
    folder = tmp_path_factory.mktemp("sweep")
    value = data.draw(HOSTILE)
    one, lines = config(), records()
    row = {"example": "a", "rollout": 0, "prompt": "x", "rationale": "y", "closed": "sampled", "gold": "z"}
    row |= {"answer": "z", "log_w": -1.0, "weight": 0.5, "score": 1.0, "sampled": "z", "correct": 1}
    row |= {"grades": {"em": 1}}
    answer = {"example": "a", "correct": 1, "samples": 4, "majority": True}
    if where == "config":
        section, _, key = data.draw(st.sampled_from(FIELDS)).rpartition(".")
        (one[section] if section else one)[key] = value
    elif where == "metrics":
        data.draw(st.sampled_from(lines))[data.draw(st.sampled_from(METRICS))] = value
    elif where == "rows":
        row[data.draw(st.sampled_from(sorted(row)))] = value
    elif where == "answers":
        answer[data.draw(st.sampled_from(sorted(answer)))] = value
    make_run(folder / "one", one, lines, [row, row], [answer])
    make_run(folder / "two", config(seed=1), records(), [row], [answer])
    state = {"state": "failed", "error": value} if where == "sweep" else {"state": "done"}
    cells = {"one": state, "three": value if where == "sweep" else state}
    (folder / "sweep.json").write_text(json.dumps(cells))
    if where == "lock":
        holder = {"host": socket.gethostname(), "pid": 1, "started": "now"}
        holder[data.draw(st.sampled_from(sorted(holder)))] = value
        (folder / "two" / "owner.lock").write_text(json.dumps(holder))
    page = pages(folder)
    assert "<script>" not in page and "two" in page


def test_runs_from_before_settings_came_are_read_as_what_they_did(tmp_path):
    old = config()
    for name in LATER:
        section, _, field = name.partition(".")
        old.get(section, {}).pop(field, None)
    make_run(tmp_path / "old", old, records())
    make_run(tmp_path / "new", config(seed=1), records())
    runs = read(tmp_path)
    assert [(run.state, run.error, run.q, run.commitment) for run in runs] == [("done", "", 0.75, "power")] * 2


def test_rollouts_that_cannot_be_read_are_named_on_their_page_and_the_others_have_theirs(tmp_path, capsys):
    for name in ("one", "two"):
        make_run(tmp_path / name, config(), records(), [{"example": "a"}])
    for broken in ("rollouts/step_000001.jsonl", "evaluations/validation_000002.jsonl"):
        (tmp_path / "one" / broken).unlink()
        os.mkfifo(tmp_path / "one" / broken)
    report(tmp_path)
    pages = [tmp_path / name / "rollouts" / "step_000001.html" for name in ("one", "two")]
    assert "step_000001.jsonl is a pipe or a device" in pages[0].read_text() and "pipe" not in pages[1].read_text()
    told = capsys.readouterr().err
    assert "step_000001.jsonl is a pipe or a device" in told and "validation_000002.jsonl is a pipe" in told


NAMES = ["../x", "..", "/tmp/x", "a/b", "x" * 300, "\ud800", "a\0b", ".", "", "a\\b", "a\nb"]


def test_a_cell_of_a_sweep_is_a_folder_beside_its_file_and_no_other(tmp_path):
    sweep = tmp_path / "sweep"
    make_run(sweep / "cell", config(), records(), [{"example": "a"}])
    make_run(tmp_path / "x", config(), records(), [{"example": "a"}])  # what ../x would be
    told = {"state": "failed", "error": "of elsewhere"}
    (sweep / "sweep.json").write_text(json.dumps(dict.fromkeys(NAMES, told)))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")}
    assert [run.folder for run in read(sweep)] == [sweep / "cell"]
    assert "of elsewhere" not in pages(sweep)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")} == before


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("seed", DIGITS, f"seed is {DIGITS!r:.60}, which no run has"),
        ("estimator.q", DIGITS, "estimator.q is 9999"),
        ("optimizer.learning_rate", math.nan, "field &#x27;optimizer.learning_rate&#x27; is nan, which is no finite"),
        ("task.test_examples", "many", "task.test_examples is &#x27;many&#x27;, which no run has"),
        ("estimator.schedule", ["x"], "estimator.schedule is [&#x27;x&#x27;], which no run has"),
        ("train.steps", True, "field &#x27;train.steps&#x27; is true, expected int"),
    ],
)
def test_a_setting_that_no_run_has_is_the_reason_why_a_run_is_shown_as_failed(tmp_path, field, value, told):
    made = config()
    section, _, key = field.rpartition(".")
    (made[section] if section else made)[key] = value
    make_run(tmp_path / "one", made, records())
    assert told in pages(tmp_path)


def test_a_run_whose_metrics_cannot_be_read_is_shown_as_failed_beside_the_others(tmp_path):
    make_run(tmp_path / "one", config(), records())
    make_run(tmp_path / "two", config(seed=1), records())
    (tmp_path / "two" / "metrics.jsonl").unlink()
    (tmp_path / "two" / "metrics.jsonl").symlink_to("/proc/self/mem")  # answers with an input/output error
    assert {run.folder.name: run.state for run in read(tmp_path)} == {"one": "done", "two": "failed"}
    assert "metrics.jsonl cannot be read (Input/output error)" in pages(tmp_path)


def test_names_and_numbers_of_others_are_drawn(tmp_path):
    """Labels that are no formula, names that are no text, numbers that no axis has."""
    for seed, text in enumerate(("$x^{", "\ud800\n" + "y" * 300)):
        made = config(seed)
        made["task"]["joint"] = text
        lines = records()
        lines[0] |= {"train/max_advantage": DIGITS, f"shadow/{text}/norm_ratio": 0.5, f"shadow/{text}/cosine": 1e308}
        lines[1] |= {"train/log_p_hat_mean": -1e308, "train/rationale_length": 1e300, "step": 2**60}
        make_run(tmp_path / f"run{seed}", made, lines)
    names = ("advantage", "success", "shadows")
    assert [drawn.file.stem for drawn in draw(read(tmp_path), tmp_path / "report", names)] == list(names)


def test_a_folder_whose_name_is_no_text_has_a_page_with_a_link_that_leads_there(tmp_path):
    folder = tmp_path / b"run\xff #1%".decode(errors="surrogateescape")
    make_run(folder, config(), [], [{"example": "a", "rollout": 0}])
    assert "run%FF%20%231%25/rollouts/step_000001.html" in report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3), (0.5, 0.5), (-1e30, -1e30), (True, None), ("3", None), (None, None), (DIGITS, None), (math.nan, None),
     (-math.inf, None), (1e31, None), ([3], None)],
)  # fmt: skip
def test_numbers_that_can_be_computed_with(value, number):
    assert plain(value) == number


@pytest.mark.parametrize("value", [DIGITS, "0.5", None, [], True, math.nan])
def test_the_end_of_a_run_shows_a_dash_where_its_metrics_hold_no_number(value):
    assert summary([{"step": 0, "eval/test/pass@1": value}]).splitlines()[1].split() == ["p@1", "–", "–"]


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("rollouts/num_rollouts", "4", "rollouts.num_rollouts is '4', which no run has"),
        ("seed", DIGITS, "seed is .*, which no run has"),
        ("estimator/q", [], r"estimator.q is \[\], which no run has"),
        ("task/hint", None, "task.hint is None, which no run has"),  # of the task alone
        ("task/hint", {"x": 1}, "task.hint holds task.hint.x, which no run has"),
        ("task/a.b", 5, "'a.b' is not the name of a setting"),
        ("task/", 5, "'' is not the name of a setting"),
    ],
)
def test_settings_that_no_run_has_are_one_sentence_to_who_reads_a_run(tmp_path, field, value, told):
    make_run(tmp_path / "one", config(), records())
    file = tmp_path / "one" / "config.json"
    made = json.loads(file.read_text())
    section, _, key = field.rpartition("/")
    (made[section] if section else made)[key] = value
    file.write_text(json.dumps(made))
    with pytest.raises(UserError, match=rf"config.json: {told}; choose the folder of a run"):
        run_config(tmp_path / "one", "--run")


def test_steps_that_are_none_are_no_records(tmp_path):
    lines = [{"step": x} for x in (0, 7, -1, True, 1.0, "3", None, DIGITS, 2**53)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [record["step"] for record in read_records(tmp_path)] == [0, 7]


@pytest.mark.parametrize("pid", [DIGITS, -1, 0, True, 1.5, "1", None, 2**31])
def test_a_lock_with_no_process_in_it_is_nobodys(tmp_path, pid):
    text = json.dumps({"host": socket.gethostname(), "pid": pid, "started": "now"})
    assert read_holder(text) == UNKNOWN
    (tmp_path / "owner.lock").write_text(text)
    assert not is_held(tmp_path)
