"""The cache of encoded splits and its other files: which changes re-encode a split, and what damage does."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
import tokenizers

from tests.support.task_files import hotpotqa, write_paragraphs
from tests.support.tokenizer_files import TEXTS, write_model
from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.cache import cache_folder
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import encoded_cache, load_task, releases
from tsallis_rl.tasks.base import Example, Split, Task
from tsallis_rl.tasks.checked_files import read_checked, write_checked
from tsallis_rl.tasks.encoded_cache import encode_cached, unattainable_cached
from tsallis_rl.tasks.encoding import encode_split, fingerprint
from tsallis_rl.tasks.hotpotqa import RELEASE
from tsallis_rl.tasks.markers import find_markers
from tsallis_rl.tasks.prepared_sets import prepare
from tsallis_rl.tasks.pretrained_tokenizers import HuggingFaceTokenizer
from tsallis_rl.tasks.token_rows import TokenRows
from tsallis_rl.tasks.tokenizers import WordTokenizer

BUDGETS = {"max_prompt": 5, "max_answer": 3}
EXAMPLES = [Example(str(i), "a b " * (i % 4), "ab"[i % 2], ("b",), part=str(i % 3)) for i in range(40)]
TOKENIZER = WordTokenizer(["a", "b"])
MARKERS = find_markers(base_config().task, TOKENIZER)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoded_cache, "LEAST", 10)
    monkeypatch.setattr(releases, "_LEAST", 3)


def same(found, expected):
    assert fingerprint(found) == fingerprint(dataclasses.replace(expected, digest=""))
    np.testing.assert_array_equal(found.prompt_at(range(len(found)), 5), expected.prompt_at(range(len(expected)), 5))
    np.testing.assert_array_equal(found.answer_at(range(len(found))), expected.answer_at(range(len(expected))))
    assert [*found.examples] == [*expected.examples] and found.heads == expected.heads
    assert (found.dropped, found.trimmed, found.parts) == (expected.dropped, expected.trimmed, expected.parts)
    for mine, others in zip(found.before, expected.before, strict=True):
        np.testing.assert_array_equal(mine, others)


def folders():
    return [path for path in cache_folder("encoded").iterdir() if path.is_dir()]


def test_rows_are_padded_and_cut_on_the_right():
    rows = TokenRows.of([[1, 2, 3], [], [4]])
    assert rows.padded([2, 0, 1], 2, 9).tolist() == [[4, 9], [1, 2], [9, 9]] and rows.lengths.tolist() == [3, 0, 1]
    assert rows.row(0).tolist() == [1, 2, 3] and TokenRows.of([]).padded([], 2, 0).shape == (0, 2)


def test_a_split_from_the_cache_is_the_one_that_was_encoded():
    split = Split(EXAMPLES, {"empty": 2})
    expected = encode_split(split, TOKENIZER, MARKERS, **BUDGETS)
    assert 0 < len(expected) < 40
    for _ in range(2):
        same(encode_cached(split, TOKENIZER, MARKERS, **BUDGETS), expected)
    found = encode_cached(split, TOKENIZER, MARKERS, **BUDGETS)
    assert isinstance(found.prompts.ids, np.memmap) and len(folders()) == 1
    encode_cached(Split(EXAMPLES[:9]), TOKENIZER, MARKERS, **BUDGETS)
    assert len(folders()) == 1  # a small split is not kept


def test_a_split_of_which_nothing_fits_is_tokenised_once(monkeypatch):
    split = Split(EXAMPLES)
    expected = encode_split(split, TOKENIZER, MARKERS, max_prompt=1, max_answer=1)
    assert len(encode_cached(split, TOKENIZER, MARKERS, max_prompt=1, max_answer=1)) == 0
    monkeypatch.setattr(encoded_cache, "encode_split", None)
    same(encode_cached(split, TOKENIZER, MARKERS, max_prompt=1, max_answer=1), expected)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6])
def test_a_split_of_a_smaller_width_is_the_same_from_a_wider_one(width):
    passages = {0: "a b a b a b", 1: "a b a b", 2: "a b a", 3: "a"}
    long = [Example(f"long{i}", passages[0], "a", shorten=passages.get) for i in range(4)]
    fixed = [Example("fixed", passages[1], "b"), Example("answer", "a", "a b a")]
    split = Split([*EXAMPLES[:9], *long, *fixed])
    expected = encode_split(split, TOKENIZER, MARKERS, max_prompt=width, max_answer=3)
    for wide in (width, 5, 9):
        wider = encode_split(split, TOKENIZER, MARKERS, max_prompt=max(wide, width), max_answer=3)
        same(encode_split(split, TOKENIZER, MARKERS, max_prompt=width, max_answer=3, wider=wider), expected)


def test_whatever_changes_an_encoded_split_makes_it_again():
    other = [dataclasses.replace(EXAMPLES[0], aliases=("c",)), *EXAMPLES[1:]]
    variants = [
        (Split(EXAMPLES), TOKENIZER, MARKERS, BUDGETS),
        (Split(other), TOKENIZER, MARKERS, BUDGETS),
        (Split(EXAMPLES[::-1]), TOKENIZER, MARKERS, BUDGETS),
        (Split(EXAMPLES, {"empty": 1}), TOKENIZER, MARKERS, BUDGETS),
        (Split(EXAMPLES), WordTokenizer(["b", "a"]), MARKERS, BUDGETS),
        (Split(EXAMPLES), TOKENIZER, MARKERS._replace(think_prefix="b"), BUDGETS),
        (Split(EXAMPLES), TOKENIZER, MARKERS._replace(end_of_answer=1), BUDGETS),
        (Split(EXAMPLES), TOKENIZER, MARKERS, BUDGETS | {"max_prompt": 3}),
    ]
    for n, (split, tokenizer, markers, budgets) in enumerate(variants, 1):
        encoded = encode_cached(split, tokenizer, markers, **budgets)
        assert len(folders()) == n
        same(encoded, encode_split(split, tokenizer, markers, **budgets))


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "empty manifest", "file", "other"])
def test_a_damaged_or_foreign_encoded_split_is_made_again(damage):
    split = Split(EXAMPLES)
    expected = encode_split(split, TOKENIZER, MARKERS, **BUDGETS)
    encode_cached(split, TOKENIZER, MARKERS, **BUDGETS)
    (folder,) = folders()
    ids = (folder / "prompts.npy").read_bytes()
    if damage == "flip":
        (folder / "prompts.npy").write_bytes(ids[:-1] + bytes([ids[-1] ^ 1]))
    elif damage == "cut":
        (folder / "prompts.npy").write_bytes(ids[:-4])
    elif damage == "missing":
        (folder / "heads.json").unlink()
    elif damage == "empty manifest":
        (folder / "manifest.json").write_bytes(b"")
    elif damage == "file":
        shutil.rmtree(folder)
        folder.write_bytes(b"not a folder")
    else:
        for file in folder.iterdir():
            file.write_bytes(b"\x93NUMPY")
    same(encode_cached(split, TOKENIZER, MARKERS, **BUDGETS), expected)
    assert folders() == [folder] and (folder / "prompts.npy").read_bytes() == ids


def test_splits_that_were_not_read_for_a_month_are_removed():
    encode_cached(Split(EXAMPLES), TOKENIZER, MARKERS, **BUDGETS)
    encode_cached(Split(EXAMPLES[1:]), TOKENIZER, MARKERS, **BUDGETS)
    for folder in folders():
        os.utime(folder, (0, 0))
    encode_cached(Split(EXAMPLES), TOKENIZER, MARKERS, **BUDGETS)  # is read
    encode_cached(Split(EXAMPLES[2:]), TOKENIZER, MARKERS, **BUDGETS)
    assert len(folders()) == 2


def test_a_cache_that_cannot_be_written_is_told_and_the_split_is_used(capsys):
    cache_folder("encoded").parent.mkdir(parents=True)
    cache_folder("encoded").write_text("a file")
    split = Split(EXAMPLES)
    same(encode_cached(split, TOKENIZER, MARKERS, **BUDGETS), encode_split(split, TOKENIZER, MARKERS, **BUDGETS))
    assert "WARNING: the encoded split is not cached" in capsys.readouterr().err


def test_gold_answers_are_checked_once_and_again_by_other_settings_and_by_your_own_grader():
    split = Split(EXAMPLES)
    encoded = encode_cached(split, TOKENIZER, MARKERS, **BUDGETS)
    checks = []

    def grade(prediction, example):
        checks.append(example.id)
        return {"exact": float(prediction == "a")}

    task = Task("jsonl", {"train": split}, grade, "exact")
    settings = base_config().task
    settings.update({"name": "jsonl", "metric": "exact"})
    found = [unattainable_cached(encoded, TOKENIZER, MARKERS, task, settings) for _ in range(2)]
    assert found[0] == found[1] == {"gold answers that 'exact' grades as wrong (first: 1)": 10}
    assert len(checks) == len(encoded)
    settings.metric = "em"
    unattainable_cached(encoded, TOKENIZER, MARKERS, task, settings)
    assert len(checks) == 2 * len(encoded)
    settings.name = "examples.sums"
    for times in (3, 4):
        unattainable_cached(encoded, TOKENIZER, MARKERS, task, settings)
        assert len(checks) == times * len(encoded)


def test_many_prompts_at_once_have_the_ids_of_each_alone(tmp_path):
    file = write_model(tmp_path) / "tokenizer.json"
    library, tokenizer = tokenizers.Tokenizer.from_file(str(file)), HuggingFaceTokenizer(tmp_path)
    messages = ({"role": "user", "content": "the <|im_end|> cat </think> \ue000"},)
    prompts = [*TEXTS[:4], "", "sat <|im_end|> on", messages, "on </think>", TEXTS[0]]
    alone = [tokenizer.encode_prompt(prompt, "the") for prompt in prompts]
    assert tokenizer.encode_prompts(prompts, "the") == alone
    for i in (0, 1, 8):
        assert alone[i] == library.encode(prompts[i]).ids + library.encode("the").ids
    library.enable_padding(length=64)  # settings for training, which are no part of a prompt or an answer
    library.enable_truncation(max_length=3)
    (tmp_path / "set").mkdir()
    write_model(tmp_path / "set")
    library.save(str(tmp_path / "set" / "tokenizer.json"))
    same = HuggingFaceTokenizer(tmp_path / "set")
    assert same.encode_prompts(prompts, "the") == alone == [same.encode_prompt(prompt, "the") for prompt in prompts]
    text = "the <|im_end|> cat sat on"  # with a control token, which is text here
    assert same.encode(text) == tokenizer.encode(text) and len(same.encode(text)) > 3


def release(folder, **fields):
    task = base_config().task
    task.update({"name": "hotpotqa", "folder": str(folder), "prompt_overflow": "trim", **fields})
    return load_task(task, 0)


def test_a_choice_of_records_is_made_once_and_again_where_it_is_damaged(tmp_path, monkeypatch):
    train = [hotpotqa(f"t{i}", answer="" if i == 3 else "Ann") for i in range(12)]
    write_paragraphs("hotpotqa", tmp_path, train, [hotpotqa(f"d{i}") for i in range(12)])
    first = release(tmp_path).splits
    files = sorted(cache_folder("prepared").glob("choices/*.json"))
    assert len(files) == 3
    with monkeypatch.context() as patch:
        patch.setattr(releases, "choose_indices", None)
        again = release(tmp_path).splits
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    for splits in (again, release(tmp_path).splits):
        for name, split in first.items():
            assert [*splits[name].examples] == [*split.examples] and splits[name].dropped == split.dropped
    assert all(read_checked(file) for file in files)


@pytest.mark.parametrize("damage", ["records", "index", "info", "file"])
def test_a_damaged_prepared_set_is_prepared_again(tmp_path, damage, capsys):
    write_paragraphs("hotpotqa", tmp_path, [hotpotqa(f"t{i}") for i in range(4)], [hotpotqa(f"d{i}") for i in range(9)])
    kept = [*release(tmp_path).splits["train"].examples]
    (folder,) = [path for path in cache_folder("prepared").iterdir() if path.name != "choices"]
    (records,) = folder.rglob("*train*array_record*")
    whole = records.read_bytes()
    if damage == "records":
        records.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    elif damage == "index":
        (folder / "index.json").write_bytes(b'{"train": []}')
    elif damage == "info":
        next(folder.rglob("dataset_info.json")).write_text("{}")
    else:
        shutil.rmtree(folder)
        folder.write_bytes(b"")
    assert [*release(tmp_path).splits["train"].examples] == kept
    assert "the set is prepared again" in capsys.readouterr().err


def test_a_prepared_record_that_cannot_be_read_names_the_folder_to_remove(tmp_path):
    write_paragraphs("hotpotqa", tmp_path, [hotpotqa(f"t{i}") for i in range(4)], [hotpotqa(f"d{i}") for i in range(9)])
    prepared = prepare(RELEASE, RELEASE.find(str(tmp_path)))["train"]
    with pytest.raises(UserError, match=rf"^{prepared.folder}: a record of hotpot_train.*remove the folder"):
        dataclasses.replace(prepared, indices=[99])[0]


def test_a_checked_file_is_read_only_as_it_was_written(tmp_path):
    file = tmp_path / "a.json"
    write_checked(file, {"é": [1, None]})
    assert read_checked(file) == {"é": [1, None]} and read_checked(tmp_path) is None
    whole = file.read_bytes()
    for damaged in (b"", b"{}", whole[:-1], whole + b" ", b"\n" + whole):
        file.write_bytes(damaged)
        assert read_checked(file) is None
