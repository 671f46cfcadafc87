"""Which split an example is in does not depend on the start or on settings that are not about splits."""

import json

import pytest

from tests.support.task_files import finqa, hotpotqa, musique, write_finqa, write_paragraphs
from tsallis_rl.config.schema import FIELDS, TASK_FIELDS, base_config
from tsallis_rl.tasks import hops, load_task

# Settings that say which records there are, or how many of them a split has.
ABOUT_SPLITS = {
    *("name", "folder", "path", "columns", "answer_after", "train_split", "validation_split", "test_split"),
    *("train_examples", "validation_examples", "test_examples", "gold"),
}
TEXTS = {"end_of_think": ["So:"], "joint": [" "], "think_prefix": ["<think>"], "end_of_answer": ["</s>"]}
TEXTS |= {"start": ["cold", "chat", "warm"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))


def write(name, folder):
    """Writes a task's files, some of whose records give no example, and returns the settings that name them."""
    if name == "finqa":
        records = [finqa(id=f"{i}", answer="" if i % 5 == 0 else f"{i}", exe_ans=i) for i in range(60)]
        return {"folder": str(write_finqa(folder, records, [{**r, "id": f"d{r['id']}"} for r in records]))}
    if name in ("hotpotqa", "musique"):
        make = {"hotpotqa": hotpotqa, "musique": musique}[name]
        records = [make(f"{i}", answer="" if i % 5 == 0 else f"Ann {i}") for i in range(60)]
        dev = [make(f"d{i}") for i in range(60)]
        return {"folder": str(write_paragraphs(name, folder, records, dev))}
    if name == "hops":
        return {"cold_answer": hops.COLD_ANSWER}
    records = [{"prompt": f"q{i}?", "answer": "" if i % 5 == 0 else f"{i}"} for i in range(200)]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, records)))
    return {"path": str(folder / "mine.jsonl")}


def settings(name):
    """Lists (setting, value) of every setting of a task that is not about splits, with values other than its own."""
    fields = {key.partition(".")[2]: field for key, field in (FIELDS | TASK_FIELDS).items() if key.startswith("task.")}
    for key, field in fields.items():
        if key in ABOUT_SPLITS or (field.tasks and name not in field.tasks):
            continue
        values = field.choices or TEXTS.get(key, [])
        if key == "start" and name == "hops":
            values = hops.STARTS
        if isinstance(field.default, float):
            values = [0.5]
        elif isinstance(field.default, int) and not isinstance(field.default, bool):
            values = [field.default + 7]
        yield from ((key, value) for value in values)


@pytest.mark.parametrize("name", ["finqa", "hotpotqa", "musique", "jsonl", "hops"])
def test_an_example_is_in_the_same_split_at_every_start_and_setting(tmp_path, name):
    def ids(seed=0, **fields):
        task = base_config().task
        task.update({key.partition(".")[2]: f.default for key, f in TASK_FIELDS.items() if name in f.tasks})
        sizes = {"train_examples": 20, "validation_examples": 9, "test_examples": 9}
        task.update({"name": name, "start": "cold", **sizes, **write(name, tmp_path), **fields})
        return {split: [e.id for e in of.examples] for split, of in load_task(task, seed).splits.items()}

    first, varied = ids(), list(settings(name))
    assert all(first.values()) and len(varied) > 8
    for key, value in varied:
        assert ids(**{key: value}) == first, (key, value)
    assert ids(seed=1) == first


def test_another_gold_field_moves_no_record_to_another_split(tmp_path):
    found = {}
    for gold in ("exe_ans", "answer"):
        task = base_config().task
        task.update({"name": "finqa", "start": "cold", "prompt_overflow": "drop", "gold": gold})
        task.update(write("finqa", tmp_path))
        found[gold] = {name: {e.id for e in split.examples} for name, split in load_task(task, 0).splits.items()}
    for name, ids in found["answer"].items():
        assert ids < found["exe_ans"][name]
