"""A user's own task: from files, or from a module."""

import hashlib
import importlib
import json
import re
import sys

import pytest

from tests.support.paths import ROOT
from tsallis_rl import tasks
from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import load_task, load_with_tokenizer


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
        ({"name": "examples.none"}, "config.task.name='examples.none': no module 'examples.none', looked"),
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


MODULE = """
from tsallis_rl.tasks import Example, Split, Task
def made(train, **fields):
    splits = {name: Split([Example(name, name, "5")]) for name in ("validation", "test")}
    grade = lambda prediction, example: {"exact": 1.0}
    given = {"name": "own", "splits": splits | {"train": Split(train)}, "grade": grade, "metric": "exact", **fields}
    return Task(**given)
ONE = [Example("a", "q", "5")]
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Writes a module of a task, and makes a config that names it."""
    (tmp_path / "own_task_modules").mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        name = f"m{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        (tmp_path / "own_task_modules" / f"{name}.py").write_text(MODULE + text)
        config = base_config()
        config.task.name = f"own_task_modules.{name}"
        return config

    yield write
    for name in [name for name in sys.modules if name.startswith("own_task_modules")]:
        del sys.modules[name]


BROKEN = {
    "load = 5": "its load is 5; write a function load(task_config, seed), or load(task_config)",
    "def load(): return made(ONE)": "its load takes (); write a function load(task_config, seed)",
    "GRADES = 5\ndef load(t): return made(ONE)": "its GRADES is 5; list the names of its grades, as in ('exact',)",
    "GRADES = 'em'\ndef load(t): return made(ONE)": "its GRADES is 'em'; list the names",
    "tokenizer = 5\ndef load(t): return made(ONE)": "its tokenizer is 5; write a function without arguments",
    "def load(t: pass": "cannot be imported: FILE, line 9: SyntaxError: ",
    "import nowhere_at_all": "needs the module 'nowhere_at_all', which is missing; install it, or correct its name",
    "raise ValueError('no')": "cannot be imported: FILE, line 9: ValueError: no",
    "import sys; sys.exit(9)": "cannot be imported: FILE, line 9: SystemExit: 9",
    "def load(t):\n    raise RuntimeError('boom')": ": FILE, line 10: RuntimeError: boom",
    "def load(t):\n    raise SystemExit": ": FILE, line 10: SystemExit",
    "def load(t):\n    open('none.csv')": ": FILE, line 10: none.csv: No such file or directory; check the path",
    "def load(t):\n    return t.none": ": FILE, line 10: AttributeError: ",
    "def load(t): return load(t)": ": FILE, line 9: RecursionError: ",
    "def load(t): pass": "its load returns None; return a Task of tsallis_rl.tasks",
    "def load(t): return {'train': ONE}": "its load returns an object of type dict; return a Task",
    "def load(t): return made(ONE, notes=5)": "the task's notes are 5; give a tuple of sentences",
    "def load(t): return made(ONE, notes='abc')": "the task's notes are 'abc'; give a tuple of sentences",
    "def load(t): return made(ONE, name=None)": "the task's name is None; write it as text",
    "def load(t): return made(ONE, grade=None)": "the task's grade is None; give a function",
    "def load(t): return made(ONE, show_answer=5)": "the task's show_answer is 5; give a function",
    "def load(t): return made(ONE, more_grades={'f1': 1})": "more_grades are an object of type dict; give a",
    "def load(t): return made(ONE, splits=5)": "the task's splits are 5; give a mapping from train, validation,",
    "def load(t): return made(ONE, splits={'train': Split(ONE)})": "the task's splits lack validation and test; give",
    "def load(t): m = made(ONE); return made(0, splits={**m.splits, 'train': ONE})": (
        ", split train: it is an object of type list; write Split(EXAMPLES)"
    ),
    "def load(t): return made(e for e in ONE)": ", split train: its examples are an object of type generator; give a",
    "def load(t): return made({'a': ONE[0]})": ", split train: its examples are an object of type dict; give a list",
    "def load(t): return made([*ONE, ('b', 'q', '5')])": (
        ", split train, example 1: it is an object of type tuple; write Example(ID, PROMPT, ANSWER)"
    ),
    "def load(t): return made([Example('b', 'q', 5)])": (
        ", split train, example 0 (id 'b'): its answer is 5; write it as text"
    ),
    "def load(t): return made([Example(7, 'q', '5')])": ", example 0 (id 7): its id is 7; write it as text",
    "def load(t): return made([Example('b', None, '5')])": "its prompt is None; write text, or a tuple of chat",
    "def load(t): return made([Example('b', (), '5')])": "its prompt is (); write text, or a tuple of chat messages",
    "def load(t): return made([Example('b', ('x',), '5')])": "message 0 of its prompt is 'x'; write {'role': 'user',",
    "def load(t): return made([Example('b', ({'role': 'user'},), '5')])": "message 0 of its prompt has no content;",
    "def load(t): return made([Example('b', ({'role': 'user', 'content': 5},), '5')])": (
        "(id 'b'): content of message 0 of its prompt is 5; write it as text"
    ),
    r"def load(t): return made([Example('b', 'q \ud83d', '5')])": "(id 'b'): its prompt holds half of a surrogate pair",
    r"def load(t): return made([Example('b', 'q', '5\ud83d')])": "(id 'b'): its answer holds half of a surrogate pair",
    "def load(t): return made([Example('b', 'q', '5', 'five')])": "its aliases are 'five'; give a tuple of texts",
    "def load(t): return made([Example('b', 'q', '5', (5,))])": "its alias is 5; write it as text",
    "def load(t): return made([*ONE, Example('a', 'r', '6')])": (
        ", split train, example 1 (id 'a'): example 0 has the same id; give each example of a split its own"
    ),
    "def tokenizer(): pass\ndef load(t): return made(ONE)": "its tokenizer returns None; return a tokeniser such as",
    "def tokenizer(): return 5\ndef load(t): return made(ONE)": "its tokenizer returns 5 without vocab_size; return a",
    "def tokenizer():\n    raise KeyError('no')\ndef load(t): return made(ONE)": ": FILE, line 10: KeyError: 'no'",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_a_mistake_in_a_module_of_ones_own_is_one_sentence_that_names_the_task_and_the_example(own_module, text):
    config = own_module(text)
    with pytest.raises(UserError) as refusal:
        load_with_tokenizer(config, None)
    told = str(refusal.value)
    file = rf"\S*{config.task.name.rpartition('.')[2]}\.py"
    assert told.startswith(f"config.task.name='{config.task.name}'") and "\n" not in told
    assert re.search(re.escape(BROKEN[text]).replace("FILE", file), told), told


@pytest.mark.parametrize(
    "examples",
    [
        "ONE", "tuple(ONE)", "numpy.array([*ONE, Example('b', 'q', '5')])", "[]",
        "[Example('b', [{'role': 'user', 'content': 'q', 'name': 'x'}], '5', ['five'])]",
    ],
)  # fmt: skip
def test_every_sequence_of_examples_that_could_be_used_still_can(own_module, examples):
    config = own_module(f"import numpy\ndef load(t): return made({examples})")
    assert len(load_task(config.task, 0).splits["train"].examples) in (0, 1, 2)


def test_a_record_of_which_a_release_makes_no_example_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    sums = importlib.import_module("examples.sums")
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text("id,left,right,total\nfirst,1,2,3\n")
    config = sums.get_config()
    config.task.folder = str(tmp_path)
    assert len(load_task(config.task, 0).splits["train"].examples) == 1
    monkeypatch.setattr(sums, "example", lambda record: None)
    with pytest.raises(UserError, match=r"^train\.csv, record 'first': what makes its example returns None; return"):
        load_task(config.task, 0)
