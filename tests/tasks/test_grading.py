"""Which answers a task counts and trains on is a setting, and no user's grader ends a run."""

import asyncio
import dataclasses
import json
import math

import pytest

from tests.support.paths import OFFICIAL
from tsallis_rl.config import base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import Example, Split, Task, finqa, graders, hops, hotpotqa, jsonl, load_task, musique
from tsallis_rl.tasks.grading import chosen_function, with_settings

GOLD = Example("7", "", "42")
MODULE = """
import numpy as np
limit = 3
def close(prediction, example):
    return np.float32(abs(int(prediction) - int(example.answer)) <= limit)
def odd(prediction):
    return 1.0
def text(prediction, example):
    return "right"
def nan(prediction, example):
    return float("nan")
def written(prediction, example):
    return "1"
def of_hundred(prediction, example):
    return 55
def below(prediction, example):
    return -1.0
def rounded(prediction, example):
    return 1 + 1e-9
"""


def own(tmp_path, **fields) -> Task:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q{i}", "answer": "42", "id": str(i)}) + "\n" for i in range(30)))
    task = base_config().task
    task.update({"name": "jsonl", "path": str(file), "start": "cold", **fields})
    return load_task(task, 0)


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_grades.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("1 / 0")
    (tmp_path / "own_leaving.py").write_text("raise GeneratorExit('early')")
    (tmp_path / "own_needy.py").write_text("import not_there_at_all")
    (tmp_path / "own_needs.py").write_text("import own")
    monkeypatch.syspath_prepend(tmp_path)
    return "own_grades"


def test_grades_that_a_task_names_are_those_that_its_grader_gives():
    one = Example("0", "", "42", ("42",))
    assert tuple(graders.finqa("42", one)) == finqa.GRADES
    assert tuple(graders.hotpotqa("42", one)) == hotpotqa.GRADES
    assert tuple(graders.musique("42", one)) == musique.GRADES
    assert (*graders.own_task("42", one), "math") == jsonl.GRADES
    assert hops.GRADES == ("exact",)


def test_metric_and_reward_are_the_tasks_own_unless_they_are_set(tmp_path):
    task = own(tmp_path)
    assert (task.metric, task.reward) == ("exact", "exact")
    task = own(tmp_path, metric="numeric", reward="em")
    assert (task.metric, task.reward) == ("numeric", "em")
    assert task.vote_key("42.0") == task.vote_key("$42") and task.grade("42.0", GOLD)["numeric"] == 1
    assert own(tmp_path, metric="em").vote_key("The  Cat.") == "cat"
    assert own(tmp_path, tolerance=0.1, metric="numeric").grade("43", GOLD)["numeric"] == 1


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the excerpts of the official releases are not there")
@pytest.mark.parametrize("name", ["finqa", "hotpotqa", "musique"])
def test_every_data_set_of_the_paper_counts_substrings_unless_another_metric_is_set(name):
    task = base_config().task
    task.update({"name": name, "folder": str(OFFICIAL / name), "start": "cold", "prompt_overflow": "drop"})
    task.update({"gold": "exe_ans", "train_examples": 2, "validation_examples": 2, "test_examples": 2})
    assert [getattr(load_task(task, 0), setting) for setting in ("metric", "reward")] == ["substring", "exact"]
    task.update({"metric": "substring_bounded", "reward": "execution_accuracy" if name == "finqa" else "f1"})
    loaded = load_task(task, 0)
    assert (loaded.metric, loaded.reward) == (task.metric, task.reward)
    first = loaded.splits["train"].examples[0]
    assert loaded.grade(first.answer, first)[task.reward] == 1
    task.update({"metric": "numeric"})
    with pytest.raises(UserError, match=r"config\.task\.metric='numeric': choose from exact, substring, .*, auto, or"):
        load_task(task, 0)


def test_a_function_of_the_users_is_metric_or_reward(tmp_path, module):
    task = own(tmp_path, metric="own_grades.close", reward="own_grades.close")
    assert task.metric == task.reward == "own_grades.close"
    assert task.grade("45", GOLD) == {
        "exact": 0, "substring": 0, "substring_bounded": 0, "em": 0, "f1": 0, "numeric": 0, "own_grades.close": 1,
    }  # fmt: skip
    assert task.grade("46", GOLD)["own_grades.close"] == 0


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("bleu", r"'bleu': choose from exact, .*, math, auto, or name a function \(prediction, example\)"),
        ("", "'': choose from exact"),
        ("own grades.close", "'own grades.close': choose from exact"),
        ("own_nowhere.close", "no module 'own_nowhere', looked from the working directory"),
        ("own_grades.none", r"own_grades has no function 'none'; write one \(prediction, example\)"),
        ("own_grades.limit", "own_grades has no function 'limit'"),
        ("own_grades.odd", r"the function does not take \(prediction, example\)"),
        ("own_broken.grade", "own_broken cannot be imported: .*own_broken.py, line 1: ZeroDivisionError: division by"),
        ("own_leaving.grade", "own_leaving cannot be imported: .*own_leaving.py, line 1: GeneratorExit: early"),
        ("own_needy.grade", "own_needy needs the module 'not_there_at_all', which is missing"),
        ("own_needs.grade", "own_needs needs the module 'own', which is missing"),
    ],
)
@pytest.mark.parametrize("setting", ["metric", "reward"])
def test_a_mistake_in_metric_or_reward_is_one_sentence(tmp_path, module, setting, value, says):
    with pytest.raises(UserError, match=rf"config\.task\.{setting}=.*{says}"):
        own(tmp_path, **{setting: value})


@pytest.mark.parametrize("value", [3, None, ["exact"]])
@pytest.mark.parametrize("grades", [("exact",), ()])
def test_a_metric_of_another_type_in_a_runs_settings_is_one_sentence(value, grades):
    with pytest.raises(UserError, match=r"config\.task\.metric=.*: choose from .*auto, or name a function"):
        chosen_function("config.task.metric", value, grades)


def test_a_function_that_fails_leaves_the_tasks_own_grades_and_is_named_once(tmp_path, module, capfd):
    task = own(tmp_path, metric="own_grades.close")
    grades = task.grade("forty\ud800", GOLD)
    assert grades["substring"] == 0 and "own_grades.close" not in grades
    assert "own_grades.close" not in task.grade("fifty", GOLD)
    (told,) = capfd.readouterr().err.splitlines()
    assert told.startswith(
        "WARNING: the grader of task jsonl failed on the answer 'forty\\ud800' to example '7': ValueError"
    )
    for name, says in (
        ("text", "its 'own_grades.text' is 'right', no number"),
        ("nan", "its 'own_grades.nan' is nan"),
        ("written", "its 'own_grades.written' is '1', no number"),
        ("of_hundred", "is 55.0, no number from 0 to 1"),
        ("below", "is -1.0, no number from 0 to 1"),
    ):
        assert f"own_grades.{name}" not in own(tmp_path, reward=f"own_grades.{name}").grade("42", GOLD)
        assert says in capfd.readouterr().err
    assert own(tmp_path, reward="own_grades.rounded").grade("42", GOLD)["own_grades.rounded"] >= 1


def raising(prediction, example):
    return {"exact": float(prediction == example.answer), "inverse": 1 / len(prediction)}


def test_a_grader_that_raises_counts_as_wrong_and_its_first_answer_is_named(capfd):
    task = Task("mine", {"train": Split([GOLD])}, grade=raising, metric="exact", vote_key=lambda text: text[0])
    guarded = with_settings(task, base_config().task)
    assert guarded.grade("42", GOLD) == {"exact": 1, "inverse": 0.5} and guarded.reward == "exact"
    assert guarded.grade("", GOLD) == {} == guarded.grade("", GOLD)
    told = capfd.readouterr().err
    assert told.count("WARNING") == 1 and "ZeroDivisionError: division by zero" in told and "example '7'" in told
    assert guarded.vote_key("") == "" and guarded.vote_key("42") == "4"


@pytest.mark.parametrize(
    "grades", [None, [1.0], {"other": 1.0}, {"exact": None}, {"exact": "yes"}, {"exact": math.inf}, {"exact": [1, 2]}]
)
def test_what_is_no_grade_counts_as_wrong(grades, capfd):
    task = Task("mine", {"train": Split([GOLD])}, grade=lambda prediction, example: grades, metric="exact")
    assert with_settings(task, base_config().task).grade("42", GOLD).get("exact", 0) == 0
    assert "WARNING: the grader of task mine failed on the answer '42' to example '7'" in capfd.readouterr().err


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("this too")


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        asyncio.CancelledError(),
        GeneratorExit(),
        RecursionError(),
        MemoryError(),
        Unprintable("x" * 10**6),
    ],
    ids=repr,
)
def test_whatever_a_grader_raises_the_run_goes_on(error, capfd):
    def grade(prediction, example):
        raise error

    guarded = with_settings(Task("mine", {"train": Split([GOLD])}, grade=grade, metric="exact"), base_config().task)
    assert guarded.grade("42", GOLD) == {}
    assert type(error).__name__ in (told := capfd.readouterr().err) and len(told) < 1000


def test_a_task_without_exact_trains_on_its_metric():
    task = Task("mine", {"train": Split([GOLD])}, grade=lambda prediction, example: {"near": 1.0}, metric="near")
    assert with_settings(task, base_config().task).reward == "near"
    with_exact = dataclasses.replace(task, grade=raising, metric="inverse")
    assert with_settings(with_exact, base_config().task).reward == "exact"
