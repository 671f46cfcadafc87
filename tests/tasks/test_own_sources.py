"""Sources of users' own records: files of several kinds, folders that lack a split, data sets of the hub."""

import gzip
import json
import sys

import pytest

from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import load_task
from tsallis_rl.training.setup import prepare


def own(path, **fields):
    task = base_config().task
    task.update({"name": "jsonl", "path": str(path), "start": "cold", "metric": "exact", **fields})
    return load_task(task, 0)


def rows(n, first=0):
    return [{"prompt": f"What is {i} + {i}?", "answer": 2 * i} for i in range(first, first + n)]


def write(file, records):
    if file.suffix == ".csv":
        text = "prompt,answer\n" + "".join(f"{r['prompt']},{r['answer']}\n" for r in records)
    else:
        text = "".join(json.dumps(record) + "\n" for record in records)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def sizes(task):
    return {name: len(split.examples) for name, split in task.splits.items()}


def texts(task):
    return {name: [(e.prompt, e.answer) for e in split.examples] for name, split in task.splits.items()}


def test_every_kind_of_file_gives_the_same_splits(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows(60)), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(rows(60)))
    files = [write(tmp_path / name, rows(60)) for name in ("a.jsonl", "a.csv", "a.jsonl.gz")]
    found = [texts(own(file)) for file in (*files, tmp_path / "a.json", tmp_path / "a.parquet")]
    assert all(other == found[0] for other in found[1:]) and all(found[0].values())


def test_splits_that_a_folder_lacks_are_a_tenth_of_training_each_which_is_told(tmp_path):
    write(tmp_path / "train.csv", rows(200))
    both = own(tmp_path)
    assert both.notes == ("validation and test are a tenth each of train.csv, by the SHA-256 of the prompts",)
    assert sum(sizes(both).values()) == 200 and 10 < sizes(both)["validation"] < 32 and 10 < sizes(both)["test"] < 32
    write(tmp_path / "test.jsonl.gz", rows(7, 900))
    one = own(tmp_path)
    assert one.notes == ("validation is a tenth of train.csv, by the SHA-256 of the prompts",)
    assert sizes(one)["test"] == 7 and texts(one)["validation"] == texts(both)["validation"]
    assert sizes(one)["train"] == sizes(both)["train"] + sizes(both)["test"]
    write(tmp_path / "dev.jsonl", rows(5, 800))
    assert sizes(own(tmp_path)) == {"train": 200, "validation": 5, "test": 7} and own(tmp_path).notes == ()
    assert texts(own(tmp_path, test_split=""))["test"] == texts(both)["test"]


@pytest.mark.parametrize(
    ("files", "fields", "says"),
    [
        (("train.jsonl", "train.csv"), {}, r"has train\.jsonl and train\.csv; keep one of them"),
        (("train.jsonl", "dev.csv", "val.csv"), {}, r"has dev and val; choose by config\.task\.validation_split"),
        (("dev.jsonl",), {}, r"no split 'train', which config\.task\.train_split names \(it has: dev\.jsonl\)"),
        (("train.csv",), {"test_split": "hard"}, r"no split 'hard', which config\.task\.test_split names"),
    ],
)
def test_a_folder_whose_splits_are_not_clear_is_one_sentence(tmp_path, files, fields, says):
    for name in files:
        write(tmp_path / name, rows(3))
    with pytest.raises(UserError, match=says):
        own(tmp_path, **fields)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/tmp/" + "x" * 5000, r"cannot be read \(File name too long\); name another path"),
        ("~no-such-user/a.jsonl", r"there is no user no-such-user here; write the path without ~"),
        ("hf:", r"names no data set; write hf:owner/name"),
        ("hf::subset@main", r"names no data set; write hf:owner/name"),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_one_sentence(path, says):
    with pytest.raises(UserError, match=rf"^(config\.task\.path='|~).*{says}"):
        own(path)


def test_a_dangling_link_is_called_that(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"a\.jsonl' is a link to .*none\.jsonl, which is not there"):
        own(tmp_path / "a.jsonl")


def test_a_split_that_is_there_and_no_file_is_not_taken_for_missing(tmp_path):
    write(tmp_path / "train.jsonl", rows(30))
    (tmp_path / "test.jsonl").symlink_to("none.jsonl")
    with pytest.raises(UserError, match=r"test\.jsonl is a link to none\.jsonl, which is not there"):
        own(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    (tmp_path / "test.jsonl").mkdir()
    with pytest.raises(UserError, match=r"test\.jsonl cannot be read \(Is a directory\)"):
        own(tmp_path)


def test_prompts_that_training_and_another_split_share_are_counted_and_told(tmp_path):
    write(tmp_path / "train.jsonl", rows(20))
    write(tmp_path / "validation.jsonl", rows(5, 50))
    write(tmp_path / "test.jsonl", rows(6, 17))
    for start in ("cold", "warm"):
        assert own(tmp_path, start=start).notes == (
            "3 of 6 test prompts are training prompts too, so that test figures are too high; take them out of one of "
            "the two",
        )


def test_worked_answers_are_offered_to_be_split(tmp_path):
    records = [{"prompt": f"q{i}", "answer": f"{i} + 1\n#### {i + 1}"} for i in range(40)]
    file = write(tmp_path / "a.jsonl", records)
    assert "40 answers hold worked steps and then '####'" in own(file).notes[1]
    assert "config.task.answer_after='####'" in own(file).notes[1]
    split = own(file, answer_after="####")
    assert len(split.notes) == 1 and split.splits["train"].examples[0].answer in {str(i) for i in range(9)}


def test_a_set_too_small_to_be_split_by_hash_is_told_what_to_write(tmp_path):
    config = base_config()
    config.task.update({"name": "jsonl", "path": str(write(tmp_path / "a.jsonl", rows(3))), "metric": "exact"})
    config.task.vocab_size = 300
    with pytest.raises(
        UserError, match=r"(validation|test) split can be used: .*; a\.jsonl has 3 records, too few .*fol"
    ):
        prepare(config, 1)


def test_a_set_that_gives_no_split_or_no_example_says_why(tmp_path):
    config = base_config()
    config.task.update({"name": "jsonl", "path": str(tmp_path / "a.jsonl"), "metric": "exact", "vocab_size": 300})
    write(tmp_path / "a.jsonl", [{"prompt": "same", "answer": i} for i in range(90)])
    with pytest.raises(UserError, match=r"a\.jsonl has 90 records of 1 prompts, too few for a tenth of them to hold"):
        prepare(config, 1)
    config.task.answer_after = "####"
    with pytest.raises(UserError, match=r"train split can be used: 90 left out: no answer after task\.answer"):
        prepare(config, 1)


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, offline and with a cache of its own; a test is skipped where the extra `data` is not installed."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    return library


def test_a_data_set_of_the_hub_is_read_by_its_splits_and_columns(tmp_path, datasets):
    folder = tmp_path / "owner" / "sums"
    folder.mkdir(parents=True)
    for name, n in (("train", 40), ("test", 4)):
        write(folder / f"{name}.jsonl", [{"question": r["prompt"], "final": {"text": [r["answer"]]}} for r in rows(n)])
    named = {"columns": "question:prompt,final.text:answer"}
    task = own(f"hf:{folder}", **named)
    assert texts(own(f"hf://{folder}", **named)) == texts(task)
    assert sizes(task)["test"] == 4 and sizes(task)["train"] + sizes(task)["validation"] == 40
    assert task.splits["test"].examples[3].answer == "6"
    assert task.notes[0] == f"validation is a tenth of hf:{folder}'s split train, by the SHA-256 of the prompts"
    with pytest.raises(UserError, match=r"no split 'hard', .*test_split names \(it has: train, test\)"):
        own(f"hf:{folder}", test_split="hard", **named)
    with pytest.raises(UserError, match=rf"hf:{folder}, split train, row 0 .*: field 'prompt' is missing"):
        own(f"hf:{folder}")
    with pytest.raises(UserError, match=r"config\.task\.path='hf:.*none' cannot be loaded \(.*hf:owner/name:subset"):
        own(f"hf:{tmp_path}/none")


def test_numbers_of_single_precision_on_the_hub_are_read_as_they_are_written(tmp_path, datasets):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    answers = pyarrow.array([[0.1, 2.5]] * 40, pyarrow.list_(pyarrow.float32()))
    (tmp_path / "sums").mkdir()
    parquet.write_table(
        pyarrow.table({"prompt": [f"q{i}" for i in range(40)], "answer": answers}), tmp_path / "sums" / "train.parquet"
    )
    example = own(f"hf:{tmp_path / 'sums'}").splits["train"].examples[0]
    assert (example.answer, example.aliases) == ("0.1", ("2.5",))


def test_a_class_label_of_the_hub_is_read_as_its_name(tmp_path, datasets):
    kinds = datasets.Features(
        {"prompt": datasets.Value("string"), "answer": datasets.ClassLabel(names=["negative", "positive"])}
    )
    (tmp_path / "moods").mkdir()
    rows = {"prompt": [f"q{i}" for i in range(40)], "answer": [i % 2 for i in range(40)]}
    datasets.Dataset.from_dict(rows, kinds).to_parquet(tmp_path / "moods" / "train.parquet")
    examples = own(f"hf:{tmp_path / 'moods'}").splits["train"].examples
    assert {(int(e.prompt[1:]) % 2, e.answer) for e in examples} == {(0, "negative"), (1, "positive")}


def test_prompts_of_validation_that_are_tested_again_are_counted(tmp_path):
    for name, numbers in (("train", range(9)), ("validation", range(20, 24)), ("test", range(22, 27))):
        write(tmp_path / f"{name}.jsonl", [{"prompt": f"q{i}", "answer": "a"} for i in numbers])
    (note,) = own(tmp_path).notes
    assert note.startswith("2 of 5 test prompts are validation prompts too, so that test figures are too high")


def test_a_library_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"need the library datasets; pip install 'tsallis_rl\[data\]'"):
        own("hf:owner/name")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"parquet files need pyarrow; pip install 'tsallis_rl\[data\]'"):
        own(tmp_path / "a.parquet")
