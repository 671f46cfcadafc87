"""Users' files: what is refused and how, prepared sets, a user's own task, looking at data."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.command_line import call, refused
from tests.support.paths import ROOT
from tsallis_rl.config import command_line as settings
from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import load_task
from tsallis_rl.tasks.__main__ import main as tasks
from tsallis_rl.tasks.base import Example, Split
from tsallis_rl.tasks.encoding import encode_split, fingerprint
from tsallis_rl.tasks.markers import find_markers
from tsallis_rl.tasks.noise import mislabel
from tsallis_rl.tasks.prepared_sets import prepare
from tsallis_rl.tasks.records import read_records
from tsallis_rl.tasks.releases import Release
from tsallis_rl.tasks.subsets import choose
from tsallis_rl.tasks.tokenizers import WordTokenizer
from tsallis_rl.training import setup
from tsallis_rl.training.data_order import DataOrder

MARKERS = find_markers(base_config().task, WordTokenizer(["a", "b"]))

FIELDS = {"id": str, "n": (int, float)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path_factory.mktemp("cache")))


def python(*arguments, cwd=ROOT):
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


# Reading


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[{"id": "a", "n": 1}, {"id": "b", "n"', r"record 1 \(the first is 0\): not valid JSON, or cut off"),
        (b'[{"id": "a", "n": 1}, ', r"record 1 .*cut off"),
        (b'[{"id": "a", "n": 1}', r"after record 0 .*breaks off at character 20"),
        (b'[{"id": "a", "n": 1} {"id": "b", "n": 1}]', r"after record 0 .*breaks off"),
        (b'{"id": "a", "n": 1}\n{"id": "b", "n": \n', r"line 2: not valid JSON, or cut off.*one object a line, or one"),
        (b'{"id": "a", "n": 1}\n\n["b"]\n', r"line 3: expected an object with the fields id, n, found \['b'\]"),
        (b'{"data": [{"id": "a"}]}', r"line 1: field 'id' is missing \(fields found: data\)"),
        (b'[{"id": "a"}]', r"record 0 .*field 'n' is missing \(fields found: id\)"),
        (b'[{"id": "a", "n": "1"}]', r"field 'n' is '1', expected int or float"),
        (b'[{"id": "a", "n": true}]', r"field 'n' is true, expected int or float"),
        (b'[{"id": 7, "n": 1}]', r"field 'id' is 7, expected str"),
        (b'[{"id": null, "n": 1}]', r"field 'id' is null, expected str"),
        (b'[{"_id": "a", "context": [], "question": ""}]', r"this is a HotPotQA record, is it the right file\?"),
        (b'[{"id": "a", "n": 1}]'.replace(b"a", b"\xe9"), r"line 1: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ('[{"id": "a", "n": 1}]'.encode("utf-16"), r"line 1: byte 0xff is not UTF-8"),
        (b'[{"id": "\\ud83d", "n": 1}]', r"field 'id' holds half of a surrogate pair"),
        (b"", r"holds no records"),
        (b"[]", r"holds no records"),
        (b" \n\n", r"holds no records"),
        (b"<!DOCTYPE html>", r"line 1: not valid JSON"),
        (b'[{"id": "a", "n": 1}]\n{"id": "b", "n": 1}', r"after the array's end, at character 22, there is '\{'"),
        (b'[{"id": "a", "n": 1}] x', r"after the array's end, at character 22, there is 'x'.* make it one array"),
        (b'[{"id": "a", "n": 1}, 5 5]', r"record 1 .*expected an object with the fields id, n, found 5"),
        (b'{"id": "a", "n": NaN}', r"line 1: field 'n' is nan, which is no finite number, expected int or float"),
        (b'{"id": "a", "n": -Infinity}', r"line 1: field 'n' is -inf, which is no finite number"),
        (b'{"id": "a", "n": 1e400}', r"line 1: field 'n' is 1e400, which is no finite number"),
        (b'{"id": "a", "n": ' + b"5" * 5000 + b"}", r"line 1: field 'n' is a number of 5000 digits, expected int"),
        (b'[{"id": "a", "n": 1, "n": 2}]', r"record 0 .*an object has the field 'n' twice; remove one"),
        (b'{"id": "a", "n": 1, "n": 2}', r"line 1: an object has the field 'n' twice; remove one"),
        (b"\x1f\x8b\x08", r"is cut off or damaged \(.*\); download the file again"),
        (b"[" * 100_000, r"record 0 .*not valid JSON"),
    ],
)
def test_file_that_is_not_as_it_must_be_names_record_and_remedy(tmp_path, content, says):
    file = tmp_path / "some.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"^{file}.*{says}"):
        list(read_records(file, FIELDS))


def test_file_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*none\.json; check the path"):
        list(read_records(tmp_path / "none.json", FIELDS))


@pytest.mark.parametrize(
    "content",
    [
        b'[{"id": "a", "n": 1}, {"id": "\xc3\xa9", "n": 2.5}]',
        b'\xef\xbb\xbf[{"id": "a", "n": 1},\r\n {"id": "\xc3\xa9", "n": 2.5}]\r\n',
        b'{"id": "a", "n": 1}\r\n\r\n{"id": "\\u00e9", "n": 2.5}',
        b'{"id": "a", "n": 1}\n{"id": "\\u00e9", "n": 2.5}\n\n',
    ],
)
def test_arrays_and_lines_with_byte_order_marks_and_any_line_ends_are_read_alike(tmp_path, content):
    (tmp_path / "some.json").write_bytes(content)
    assert [record for _, record in read_records(tmp_path / "some.json", FIELDS)] == [
        {"id": "a", "n": 1},
        {"id": "é", "n": 2.5},
    ]


def test_line_separators_inside_a_string_do_not_end_a_line(tmp_path):
    (tmp_path / "some.jsonl").write_text('{"id": "a\u2028b\x85c", "n": 1}\n', encoding="utf-8")
    assert [record["id"] for _, record in read_records(tmp_path / "some.jsonl", FIELDS)] == ["a\u2028b\x85c"]


# Prepared sets


def counted_release(reads):
    def read(path):
        reads.append(path.name)
        for _, record in read_records(path, {"id": str, "words": list}):
            yield record

    files = {"train": ["train.jsonl"], "dev": ["dev.jsonl"], "test": ["test.jsonl"]}
    return Release("counted", "Counted", files, {"id": str, "words": [str]}, read, [])


def write_counted(folder, n, word="é"):
    for name in ("train", "dev"):
        lines = [json.dumps({"id": f"{name}{i}", "words": [word] * (i % 3)}) for i in range(n)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


def test_prepared_set_is_reused_until_a_source_file_changes(tmp_path):
    reads = []
    release = counted_release(reads)
    write_counted(tmp_path, 30)
    first = prepare(release, release.find(str(tmp_path)))
    again = prepare(release, release.find(str(tmp_path)))
    assert reads == ["train.jsonl", "dev.jsonl"]
    for prepared in (first, again):
        assert list(prepared["dev"].ids) == [f"dev{i}" for i in range(30)]
        assert [prepared["dev"][i] for i in (0, 2)] == [
            {"id": "dev0", "words": []},
            {"id": "dev2", "words": ["é", "é"]},
        ]
    write_counted(tmp_path, 30, word="other")
    assert prepare(release, release.find(str(tmp_path)))["train"][1]["words"] == ["other"]
    assert reads == ["train.jsonl", "dev.jsonl"] * 2


def test_prepared_set_is_made_again_when_the_code_that_reads_it_changes(tmp_path):
    reader = (
        "import json\n"
        "def read(path):\n"
        "    for line in path.read_text().splitlines():\n"
        "        yield {'id': json.loads(line)['id'].OLD()}\n"
    )
    write_counted(tmp_path, 3)
    ids = []
    for change in ("upper", "lower"):
        (tmp_path / f"{change}.py").write_text(reader.replace("OLD", change))
        spec = importlib.util.spec_from_file_location(change, tmp_path / f"{change}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        release = dataclasses.replace(counted_release([]), features={"id": str}, read=module.read)
        ids.append(prepare(release, release.find(str(tmp_path)))["train"].ids[0])
    assert ids == ["TRAIN0", "train0"]


def test_preparing_that_fails_leaves_nothing_that_would_be_reused(tmp_path):
    release = counted_release([])
    write_counted(tmp_path, 5)
    whole = (tmp_path / "dev.jsonl").read_text()
    (tmp_path / "dev.jsonl").write_text(whole + '\n{"id":')
    for _ in range(2):
        with pytest.raises(UserError, match=r"dev\.jsonl, line 6: not valid JSON"):
            prepare(release, release.find(str(tmp_path)))


def test_two_records_with_one_id_are_named(tmp_path):
    release = counted_release([])
    write_counted(tmp_path, 5)
    (tmp_path / "train.jsonl").write_text(
        '{"id": "a", "words": []}\n{"id": "b", "words": []}\n{"id": "a", "words": []}'
    )
    for _ in range(2):
        with pytest.raises(UserError, match=r"train\.jsonl: records 0 and 2 .*the same id 'a'; remove one"):
            prepare(release, release.find(str(tmp_path)))


def test_folder_without_the_files_names_what_it_has_and_how_to_fetch_them(tmp_path):
    release = counted_release([])
    (tmp_path / "train.json").write_text("")
    with pytest.raises(
        UserError, match=r"has no train\.jsonl \(it has: train\.json\).*--config\.task\.folder.*--download"
    ):
        release.find(str(tmp_path))
    for folder in (str(tmp_path / "none"), ""):
        with pytest.raises(UserError, match=r"there is no folder .*--config\.task\.folder.*--download"):
            release.find(folder)


def test_neither_tensorflow_nor_jax_is_imported(tmp_path):
    write_counted(tmp_path, 3)
    (tmp_path / "train.csv").write_text("id,left,right,total\n1,2,3,5\n")
    (tmp_path / "dev.csv").write_text("id,left,right,total\n" + "".join(f"{i},1,2,3\n" for i in range(9)))
    code = (
        "import sys, tsallis_rl.tasks as tasks\n"
        "light = {'jax', 'tensorflow_datasets', 'sentencepiece', 'tokenizers', 'tensorflow'} & set(sys.modules)\n"
        "from tsallis_rl.config.command_line import load_config\n"
        "config = load_config('examples/sums.py')\n"
        f"config.task.folder = {str(tmp_path)!r}\n"
        "tasks.load_task(config.task, 0)\n"
        "print(light, {'jax', 'tensorflow'} & set(sys.modules), 'tensorflow_datasets' in sys.modules)\n"
    )
    assert python("-c", code).stdout.strip() == "set() set() True"


def test_choosing_asks_for_no_more_records_than_it_needs():
    asked = []

    def make(i):
        asked.append(i)
        return "odd" if i % 2 else Example(str(i), "x", "y")

    split = choose([str(i) for i in range(1000)], range(1000), make, 10)
    odd = [i for i in asked if i % 2]
    assert split.dropped == {f"odd (first: {min(odd)})": len(odd)}
    assert len(split.examples) == 10 and len(asked) == 10 + len(odd) < 60


# Encoding


def test_what_does_not_fit_is_dropped_and_counted_with_what_was_dropped_before():
    tokenizer = WordTokenizer(["a", "b"])
    examples = [Example("0", "a b", "a"), Example("1", "a b a b", "a"), Example("2", "a", "a b a")]
    encoded = encode_split(Split(examples, {"no answer": 2}), tokenizer, MARKERS, max_prompt=3, max_answer=3)
    assert encoded.prompt_at([0], 3).tolist() == [[1, 4, 5]] and encoded.answer_at([0]).tolist() == [[4, 3, 0]]
    assert encoded.dropped == {
        "no answer": 2,
        "prompt longer than task.max_prompt=3 tokens (first: 1)": 1,
        "answer longer than task.max_answer=3 tokens (first: 2)": 1,
    }


def test_fingerprint_of_an_encoded_split_sees_every_id_and_alias_and_no_padding():
    tokenizer = WordTokenizer(["a", "b"])

    def of(*examples, width=9):
        return fingerprint(encode_split(Split(examples), tokenizer, MARKERS, max_prompt=width, max_answer=3))

    one, two = Example("0", "a b", "a"), Example("1", "b", "b", ("a",))
    same = of(one, two)
    assert same == of(one, two, width=5) and len(same) == 16
    others = [
        (two, one),
        (one,),
        (dataclasses.replace(one, prompt="a a"), two),
        (dataclasses.replace(one, answer="b"), two),
        (one, dataclasses.replace(two, aliases=("b",))),
        (one, dataclasses.replace(two, id="2")),
    ]
    assert len({same, *(of(*examples) for examples in others)}) == 1 + len(others)


def test_wrong_labels_have_their_share_and_are_other_answers_of_the_same_part():
    examples = [Example(str(i), f"p{i}", f"{i % 2} {i // 2 % 5}", (f"alias {i}",), part=f"{i % 2}") for i in range(200)]
    noisy = mislabel(Split(examples, {"too long": 1}), 0.3, seed=0)
    assert noisy.dropped == {"too long": 1}
    wrong = [(new, old) for new, old in zip(noisy.examples, examples, strict=True) if new != old]
    assert len(wrong) == 60
    for new, old in wrong:
        assert new.answer != old.answer and new.answer[0] == old.part
        donor = examples[int(new.aliases[0].split()[1])]
        assert new == dataclasses.replace(old, answer=donor.answer, aliases=donor.aliases)
    assert len({new.answer for new, _ in wrong}) == 10
    assert [*mislabel(Split(examples), 0.3, seed=0).examples] == [*noisy.examples]
    assert [*mislabel(Split(examples), 0.3, seed=1).examples] != [*noisy.examples]
    assert [*mislabel(Split(examples), 0.0, seed=0).examples] == examples
    with pytest.raises(UserError, match="there is no other answer than '0 0'"):
        mislabel(Split(examples[::10]), 0.3, seed=0)


def test_a_wrong_label_is_no_other_spelling_or_alias_of_the_right_one():
    usa, states, france = ("USA", "United States"), ("the United States", "U.S."), ("France",)
    golds = [usa, states, france] * 30
    examples = [Example(str(i), f"p{i}", gold[0], gold[1:]) for i, gold in enumerate(golds)]
    noisy = mislabel(Split(examples), 1.0, seed=0).examples
    assert all((new.answer == "France") == (gold != france) for new, gold in zip(noisy, golds, strict=True))
    with pytest.raises(UserError, match="there is no other answer than '"):
        mislabel(Split([example for example in examples if example.answer != "France"]), 1.0, seed=0)


@pytest.mark.parametrize("seed", [0, 7])
def test_wrong_labels_are_spread_over_every_epoch(seed):
    """A fifth of 2,000; a fifth of an epoch then has 80 ± 7."""
    examples = [Example(str(i), f"p{i}", f"{i}") for i in range(2000)]
    noisy = mislabel(Split(examples), 0.2, seed).examples
    wrong = np.array([new.answer != old.answer for new, old in zip(noisy, examples, strict=True)])
    order = DataOrder([""] * 2000, 8, seed)
    for epoch in range(10):
        batches = np.array([order.batch(step) for step in range(250 * epoch, 250 * (epoch + 1))])
        shares = wrong[batches].reshape(5, -1).mean(1)
        assert np.abs(shares - 0.2).max() < 0.08, epoch


def test_prompt_that_no_trimming_makes_short_enough_is_dropped():
    tokenizer = WordTokenizer(["a", "b"])
    shorten = {1: "a b a", 2: "a b"}.get
    examples = [Example("0", "a b a b", "a", shorten=shorten)]
    for width, prompts in ((5, ["a b a b"]), (4, ["a b a"]), (3, ["a b"]), (2, [])):
        encoded = encode_split(Split(examples), tokenizer, MARKERS, max_prompt=width, max_answer=3)
        assert [example.prompt for example in encoded.examples] == prompts
        assert encoded.trimmed == (width < 5) * len(prompts)


def write_lines(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


# Looking at data


def test_show_prints_examples_with_boundaries_counts_and_histograms(tmp_path, capfd):
    records = [{"prompt": f"What is {i} + {i}?", "answer": str(2 * i), "aliases": [f"{2 * i}.0"]} for i in range(60)]
    file = write_lines(tmp_path / "mine.jsonl", [*records, {"prompt": "What is 1 / 0?", "answer": ""}])
    assert call(tasks, "--config=jsonl", f"--config.task.path={file}", "--show=2") is None
    out, told = capfd.readouterr()
    assert told == ""
    assert out.count("⟦rationale, sampled⟧</think>⟦joint, 0 tokens⟧⟦answer, ") == 2
    assert "<s>What is 0 + 0?\n" in out and "0</s>\n⟦also right: 0.0⟧" in out
    assert "1 left out: empty answer (first: line 61)" in out and "100.0% fit the budget of 512" in out
    assert "a tenth each of mine.jsonl" in out


def test_mistake_in_a_file_ends_the_command_with_status_2_and_one_line(tmp_path, capfd):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "x"}\n')
    assert refused(capfd, tasks, "--config=jsonl", f"--config.task.path={tmp_path}/mine.jsonl") == (
        f"{tmp_path}/mine.jsonl, line 1: field 'answer' is missing (fields found: prompt); "
        "config.task.columns=question:prompt,solution:answer names other columns"
    )


def test_task_in_one_file_of_your_own_loads_and_shows(tmp_path, monkeypatch):
    rows = [f"{i},{i},{i + 1},{2 * i + 1 if i else ''}" for i in range(30)]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,left,right,total", *rows]))
    result = python(
        "-m", "tsallis_rl.tasks", "--config=examples/sums.py", f"--config.task.folder={tmp_path}", "--show=1"
    )
    assert result.returncode == 0, result.stderr
    assert "<s>1 + 2 =" in result.stdout and "1 left out: no total (first: 0)" in result.stdout
    monkeypatch.syspath_prepend(ROOT)
    config = settings.load_config(str(ROOT / "examples" / "sums.py"))
    config.task.folder = str(tmp_path)
    task = load_task(config.task, 0)
    example = task.splits["train"].examples[0]
    assert task.grade("4", example) == {"exact": 0, "substring": 0, "substring_bounded": 0, "near": 1}


# Configs


@pytest.mark.parametrize(
    ("name", "sizes", "rationale"),
    [
        ("finq", (6145, 872, 1132), 4 * 1024 - 128),
        ("hotpotqa", (9067, 342, 343), 3 * 1024 - 128),
        ("musique", (9985, 579, 445), 2 * 1024 - 128),
    ],
)
@pytest.mark.parametrize("start", ["cold", "warm"])
def test_configs_hold_the_papers_numbers(name, sizes, rationale, start):
    config = settings.load_config(f"{ROOT / 'configs' / name}.py:start={start},q=0.25,model=qwen3-0.6b")
    task = config.task
    assert (task.train_examples, task.validation_examples, task.test_examples) == sizes
    assert (config.rollouts.max_rationale, task.max_answer, config.rollouts.num_rollouts) == (rationale, 128, 32)
    assert (task.start, config.estimator.q, config.evaluate.samples) == (start, 0.25, 16)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "hops"}, "config.task.cold_answer is missing, and task hops reads it (the gold answer in a cold"),
        ({"name": "finqa"}, "config.task.folder is missing, and task finqa reads it (folder of the official files;"),
        ({"name": "hotpotqa"}, "config.task.folder is missing, and task hotpotqa reads it"),
        ({"name": "musique", "folder": ""}, "config.task.prompt_overflow is missing, and task musique reads it"),
        (
            {"name": "finqa", "folder": "", "prompt_overflow": "drop"},
            "config.task.gold is missing, and task finqa reads it (the program's result, or the answer as",
        ),
        ({"name": "hops", "cold_answer": None}, "config.task.cold_answer=None is of type NoneType; give text"),
        ({"name": "hops", "cold_answer": 5}, "config.task.cold_answer=5 is of type int; give text"),
        ({"name": "hops", "cold_answer": "{}", "hint": True}, "config.task.hint=True is of type bool; give a number"),
        ({"name": "jsonl", "path": 5}, "config.task.path=5 is of type int; give text"),
        ({"name": "jsonl", "path": None}, "config.task.path=None is of type NoneType; give text"),
        ({"name": "jsonl", "vocab_size": 2.5}, "config.task.vocab_size=2.5 is of type float; give a whole number"),
        ({"name": "finqa", "folder": Path()}, "config.task.folder=. is of type PosixPath; give text"),
        ({"name": "examples.sums", "vocab_size": "x"}, "config.task.vocab_size=x: choose a number"),
    ],
)
def test_a_field_that_a_config_file_lacks_or_gives_another_type_is_named(fields, said, tmp_path, monkeypatch):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text("id,left,right,total\nfirst,1,2,3\n")
    monkeypatch.syspath_prepend(ROOT)
    config = base_config()
    config.task.update({**fields, **({"folder": str(tmp_path)} if fields["name"] == "examples.sums" else {})})
    with pytest.raises(UserError) as refusal:
        setup.prepare(config, 1)
    assert str(refusal.value).startswith(said), refusal.value


def test_a_config_without_the_folder_that_a_download_goes_to_is_told_so(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from tsallis_rl.config import base_config\n"
        "def get_config(argument):\n    config = base_config()\n    config.task.name = 'finqa'\n    return config\n"
    )
    said = refused(capsys, tasks, f"--config={tmp_path / 'mine.py'}", "--download")
    assert said.startswith("config.task.folder is missing, and task finqa reads it")
