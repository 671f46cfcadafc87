"""HotPotQA and MuSiQue from their official files: splits, drops, wrong files, trimming."""

import hashlib
import json

import pytest

from tests.support.paths import OFFICIAL, ROOT
from tests.support.task_files import FILES, RECORD, hotpotqa, musique
from tests.support.task_files import write_paragraphs as write
from tsallis_rl.config import command_line as settings
from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import load_task
from tsallis_rl.tasks.encoding import encode_split
from tsallis_rl.tasks.markers import find_markers
from tsallis_rl.tasks.tokenizers import SentencePieceTokenizer, train_sentencepiece

needs_data = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the excerpts of the official releases are not there")
ALL = dict.fromkeys(("train_examples", "validation_examples", "test_examples"), 0)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSALLIS_RL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def load(task, folder, argument="", **fields):
    config = settings.load_config(f"{ROOT / 'configs' / task}.py:{argument}")
    config.task.update(folder=str(folder), **{**ALL, **fields})
    return load_task(config.task, 0)


def many(task, n, prefix=""):
    return [RECORD[task](f"{prefix}{i}") for i in range(n)]


def test_hotpotqa_prompt_has_titles_in_plain_text_and_single_spaces(tmp_path):
    (example,) = (
        load("hotpotqa", write("hotpotqa", tmp_path, [hotpotqa()], many("hotpotqa", 9))).splits["train"].examples
    )
    assert example.prompt == (
        "Simon & Simon: It is a series. Ann wrote it.\nEmpty: \nAnn (writer): She writes.\nWho wrote it?"
    )


def test_musique_prompt_orders_paragraphs_by_idx_though_titles_repeat(tmp_path):
    (example,) = load("musique", write("musique", tmp_path, [musique()], many("musique", 9))).splits["train"].examples
    assert example.prompt == (
        "River: It flows south.\nTown: It lies there.\nRiver: It flows north.\nWhere does it flow?"
    )
    assert (example.answer, example.aliases) == ("south", ("the south",))


@pytest.mark.parametrize("as_lines", [True, False])
@pytest.mark.parametrize("task", ["hotpotqa", "musique"])
def test_lines_and_arrays_are_read_alike(tmp_path, task, as_lines):
    folder = write(task, tmp_path, many(task, 3), many(task, 8), as_lines)
    assert len(load(task, folder).splits["train"].examples) == 3


def test_musique_files_that_circulate_as_json_are_found(tmp_path):
    write("musique", tmp_path, many("musique", 3), many("musique", 8), as_lines=False)
    for file in FILES["musique"]:
        (tmp_path / file).rename(tmp_path / file.replace(".jsonl", ".json"))
    assert len(load("musique", tmp_path).splits["train"].examples) == 3


@pytest.mark.parametrize("task", ["hotpotqa", "musique"])
def test_validation_and_test_are_disjoint_halves_of_dev_by_the_hash_of_the_id(tmp_path, task):
    loaded = load(task, write(task, tmp_path, many(task, 2, "t"), many(task, 60, "d")))
    ids = {name: [example.id for example in split.examples] for name, split in loaded.splits.items()}
    even = [id for id in (f"d{i}" for i in range(60)) if hashlib.sha256(id.encode()).digest()[7] % 2 == 0]
    assert ids["validation"] == even and 20 < len(even) < 40
    assert set(ids["test"]) == {f"d{i}" for i in range(60)} - set(even)


def test_subset_is_the_same_in_every_order_of_the_file_and_grows_without_change(tmp_path):
    train = many("hotpotqa", 50)
    dev = many("hotpotqa", 9, "d")
    ids = []
    for size, records in ((10, train), (10, train[::-1]), (20, train)):
        loaded = load("hotpotqa", write("hotpotqa", tmp_path, records, dev), train_examples=size)
        ids.append([example.id for example in loaded.splits["train"].examples])
    assert len(ids[0]) == 10 and ids[1] == ids[0][::-1]
    assert len(ids[2]) == 20 and set(ids[0]) < set(ids[2])


def test_subset_is_full_although_records_drop_out(tmp_path):
    train = [hotpotqa(str(i), answer="" if i % 2 else "Ann") for i in range(40)]
    split = load("hotpotqa", write("hotpotqa", tmp_path, train, many("hotpotqa", 9)), train_examples=15).splits["train"]
    assert len(split.examples) == 15 and 0 < sum(split.dropped.values()) <= 20


def test_records_that_give_no_example_are_counted_with_the_reason(tmp_path):
    train = [*many("hotpotqa", 98), hotpotqa("a", answer=" "), hotpotqa("b", context=[], supporting_facts=[])]
    split = load("hotpotqa", write("hotpotqa", tmp_path, train, many("hotpotqa", 9))).splits["train"]
    assert split.dropped == {"empty answer (first: a)": 1, "no paragraphs (first: b)": 1}
    train = [*many("musique", 99), musique("a", answerable=False)]
    split = load("musique", write("musique", tmp_path, train, many("musique", 9))).splits["train"]
    assert split.dropped == {"unanswerable (first: a)": 1}


def test_fullwiki_file_is_recognised(tmp_path):
    fullwiki = [hotpotqa(str(i), context=[["Other", ["Text."]]] if i % 3 else hotpotqa()["context"]) for i in range(9)]
    write("hotpotqa", tmp_path, many("hotpotqa", 3), fullwiki)
    with pytest.raises(UserError, match=r"hotpot_dev_distractor_v1.json: 6 of 9 .*record 1 .*fullwiki.*distractor"):
        load("hotpotqa", tmp_path)


def test_musique_full_file_is_recognised(tmp_path):
    full = [musique(str(i // 2), answerable=bool(i % 2)) for i in range(10)]
    write("musique", tmp_path, full, many("musique", 3))
    with pytest.raises(UserError, match=r"train.jsonl: 5 of 10 questions are unanswerable.*MuSiQue-Full"):
        load("musique", tmp_path)


@pytest.mark.parametrize(
    "change", [{"context": [["title"]]}, {"context": ["abc"]}, {"context": [["t", [1]]]}, {"supporting_facts": [1]}]
)
def test_hotpotqa_record_of_another_shape_is_named(tmp_path, change):
    write("hotpotqa", tmp_path, [hotpotqa("a"), hotpotqa("b", **change)], many("hotpotqa", 3))
    with pytest.raises(UserError, match=r"hotpot_train_v1.1.json, record 1 .*'context' must be pairs"):
        load("hotpotqa", tmp_path)


def test_musique_paragraph_without_a_field_is_named(tmp_path):
    write("musique", tmp_path, [musique(), musique("b", paragraphs=[{"idx": 0, "title": "x"}])], many("musique", 3))
    with pytest.raises(UserError, match=r"musique_ans_v1.0_train.jsonl, line 2, .*'paragraph_text' is missing"):
        load("musique", tmp_path)


@needs_data
@pytest.mark.parametrize("start", ["cold", "warm"])
@pytest.mark.parametrize("task", ["hotpotqa", "musique"])
def test_every_excerpted_record_loads_and_its_own_gold_scores_one(task, start):
    loaded = load(task, OFFICIAL / task, f"start={start}")
    counts = {name: len(split.examples) for name, split in loaded.splits.items()}
    assert counts["train"] == 100 and counts["validation"] + counts["test"] == 200
    assert all(split.dropped == {} for split in loaded.splits.values())
    for split in loaded.splits.values():
        for example in split.examples:
            assert set(loaded.grade(example.answer, example).values()) == {1.0}
            text = example.prompt if start == "cold" else example.prompt[0]["content"]
            assert ("Think step by step" in text) == (start == "warm")


@needs_data
@pytest.mark.parametrize("task", ["hotpotqa", "musique"])
def test_trimming_leaves_out_distractors_from_the_end_and_keeps_what_supports_the_answer(task):
    examples = load(task, OFFICIAL / task, prompt_overflow="trim").splits["train"].examples
    tokenizer = SentencePieceTokenizer(train_sentencepiece([example.prompt for example in examples], 2000))
    lengths = [len(tokenizer.encode_prompt(example.prompt)) for example in examples]
    limit = sorted(lengths)[30]
    split = load(task, OFFICIAL / task, prompt_overflow="trim").splits["train"]
    markers = find_markers(base_config().task, tokenizer)
    trimmed = encode_split(split, tokenizer, markers, max_prompt=limit, max_answer=64)
    assert trimmed.trimmed > 60 and trimmed.prompt_length.max() <= limit
    assert len(trimmed) + sum(trimmed.dropped.values()) == 100
    whole = {example.id: example.prompt.split("\n") for example in examples}
    for example in trimmed.examples:
        kept = example.prompt.split("\n")
        assert [line for line in whole[example.id] if line in kept] == kept
        assert kept[-1] == whole[example.id][-1]
        gold = 2 if task == "hotpotqa" else int(example.id[0])
        assert len(kept) > gold
        if task == "hotpotqa":
            continue
        (record,) = [r for r in map(json.loads, (OFFICIAL / task / FILES[task][0]).open()) if r["id"] == example.id]
        for paragraph in record["paragraphs"]:
            if paragraph["is_supporting"]:
                assert f"{paragraph['title']}: {' '.join(paragraph['paragraph_text'].split())}" in kept
