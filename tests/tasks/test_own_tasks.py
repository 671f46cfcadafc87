"""A user's own task: from files, or from a module."""

import hashlib
import json

import pytest

from tests.support.paths import ROOT
from tsallis_rl import tasks
from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import load_task


def own(path, **fields):
    defaults = {"name": "jsonl", "path": str(path), "start": "cold", "metric": "exact"}
    task = base_config().task
    task.update({**defaults, **fields})
    return load_task(task, 0)


def write_lines(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_own_file_is_split_by_the_hash_of_its_prompts(tmp_path):
    records = [{"prompt": f"q{i % 150}", "answer": str(i)} for i in range(300)]
    splits = own(write_lines(tmp_path / "mine.jsonl", records)).splits
    prompts = {name: {example.prompt for example in split.examples} for name, split in splits.items()}
    assert not prompts["train"] & prompts["validation"] | prompts["validation"] & prompts["test"]
    assert sum(len(split.examples) for split in splits.values()) == 300
    assert 8 <= len(prompts["validation"]) <= 22 and 8 <= len(prompts["test"]) <= 22


def test_own_folder_brings_its_own_splits(tmp_path):
    for name in ("train", "validation", "test"):
        write_lines(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}?", "answer": "Yes", "aliases": ["yep"]}])
    task = own(tmp_path, metric="em", start="chat")
    (example,) = task.splits["test"].examples
    assert example.prompt == ({"role": "user", "content": "test?"},)
    assert task.grade("Yep!", example)["em"] == 1 and task.grade("Yep!", example)["exact"] == 0
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(
        UserError, match=r"no split 'train', .*train_split names \(it has: test.jsonl, validation.jsonl"
    ):
        own(tmp_path)


def test_own_examples_are_in_the_same_split_at_every_start(tmp_path):
    file = write_lines(tmp_path / "mine.jsonl", [{"prompt": f"q{i}?", "answer": "a", "id": f"{i}"} for i in range(99)])
    ids = [
        {name: [example.id for example in split.examples] for name, split in own(file, **fields).splits.items()}
        for fields in ({}, {"start": "chat"}, {"start": "warm"}, {"start": "warm", "end_of_think": "So:"})
    ]
    assert ids[0] == ids[1] == ids[2] == ids[3] and all(ids[0].values())


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"prompt": "q", "answer": True}, r"line 2: field 'answer' is true, expected str or int or float"),
        ({"prompt": "q", "answer": None}, r"line 2: field 'answer' is null, expected str or int or float"),
        ({"prompt": "q", "answer": float("nan")}, r"line 2: field 'answer' is nan, which is no finite number"),
        ({"prompt": "q", "answer": -float("inf")}, r"line 2: field 'answer' is -inf, which is no finite number"),
        ({"prompt": "q", "answer": [5, None]}, r"line 2: field 'answer' is \[5, None\], expected .* or list of str"),
        ({"prompt": "q", "answer": "\ud83d"}, r"line 2: field 'answer' holds half of a surrogate pair"),
        ({"prompt": "q", "answer": "5", "id": "\ud83d"}, r"line 2: field 'id' holds half of a surrogate pair"),
        ({"prompt": "q", "answer": "5", "aliases": ["\ud83d"]}, r"line 2: field 'aliases' holds half of a surrogate"),
        ({"prompt": "q", "answer": "5", "id": None}, r"line 2: field 'id' is null, expected str or int"),
        ({"prompt": "q", "answer": "5", "id": {}}, r"line 2: field 'id' is \{\}, expected str or int"),
        ({"prompt": " ", "answer": "5"}, r"line 2: the prompt is empty"),
        ({"prompt": "q"}, r"line 2: field 'answer' is missing"),
        (
            {"prompt": "q", "answer": "5", "aliases": "five"},
            r"line 2: field 'aliases' is 'five', expected list of str or",
        ),
        ({"prompt": [{}], "answer": "5"}, r"line 2: the prompt is a list of chat messages; use config.task.start=chat"),
        ({"prompt": "q", "answer": "5", "id": "x"}, r"line 2: the id 'x' is that of .*line 1"),
    ],
)
def test_own_record_that_cannot_be_used_is_named(tmp_path, record, says):
    file = write_lines(tmp_path / "mine.jsonl", [{"prompt": "p", "answer": "a", "id": "x"}, record])
    with pytest.raises(UserError, match=says):
        own(file)


def test_own_chat_messages_are_kept_and_checked(tmp_path):
    messages = [{"role": "system", "content": "Short."}, {"role": "user", "content": "q?"}]
    file = write_lines(tmp_path / "mine.jsonl", [{"prompt": messages, "answer": "a"}, {"prompt": "p", "answer": ""}])
    task = own(file, start="chat")
    (example,) = [example for split in task.splits.values() for example in split.examples]
    assert example.prompt == tuple(messages) and task.splits["train"].dropped == {"empty answer (first: line 2)": 1}
    write_lines(file, [{"prompt": [{"role": "robot", "content": "x"}], "answer": "a"}])
    with pytest.raises(UserError, match=r"role='robot' is not accepted; choose from system, user, assistant"):
        own(file, start="warm")


def test_own_prompts_of_a_warm_start_follow_an_instruction(tmp_path):
    turns = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "?"}, {"role": "user", "content": "r"}]
    file = write_lines(tmp_path / "mine.jsonl", [{"prompt": turns, "answer": "a"}, {"prompt": "p", "answer": "b"}])
    task = own(file, start="warm", end_of_think="So:")
    first, second = sorted(
        (example for split in task.splits.values() for example in split.examples), key=lambda example: example.answer
    )
    assert first.prompt[:2] == tuple(turns[:2]) and first.prompt[2]["content"].endswith("\n\nr")
    assert second.prompt[0]["content"].startswith('Think step by step. Then write "So:" and give the answer alone')
    write_lines(file, [{"prompt": turns[1:2], "answer": "a"}])
    with pytest.raises(UserError, match=r"none of the chat messages is the user's; use config\.task\.start=chat"):
        own(file, start="warm")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"path": ""}, "config.task.path=''.*JSON lines"),
        ({"path": "/none"}, "no such file or folder"),
        ({"metric": "bleu"}, "config.task.metric='bleu'.*choose from exact"),
        ({"name": "sums"}, r"config.task.name='sums' is not a task; choose from .*dotted name"),
        ({"name": ".sums"}, r"config.task.name='.sums' is not a task"),
        ({"name": "examples.none"}, "config.task.name='examples.none': no such module"),
        ({"name": "tsallis_rl.runs.errors"}, r"no function load\(task_config, seed\)"),
    ],
)
def test_own_task_that_is_not_there_is_one_sentence(tmp_path, fields, says, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(UserError, match=says):
        own(**{"path": tmp_path} | fields)


@pytest.mark.parametrize(("arguments", "given"), [("task", ""), ("task, seed", "7"), ("task, number=0", "7")])
def test_own_task_is_given_the_seed_if_its_load_takes_one(tmp_path, monkeypatch, arguments, given):
    module = f"own_tasks_{hashlib.sha256(arguments.encode()).hexdigest()[:8]}"
    (tmp_path / f"{module}.py").write_text(
        "from tsallis_rl.tasks import Task\n"
        f"def load({arguments}):\n"
        "    seen = [str(value) for value in list(locals().values())[1:]]\n"
        "    return Task(name=''.join(seen), splits={}, grade=None, metric='exact')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(tasks.LOADERS, module, module)
    task = base_config().task
    task.name = module
    assert load_task(task, 7).name == given
