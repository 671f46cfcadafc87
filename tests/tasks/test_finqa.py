"""FinQA from its official files: what is read, linearised, dropped, trimmed and scored."""

import json

import pytest

from tests.support.paths import OFFICIAL, ROOT
from tests.support.task_files import finqa as record
from tests.support.task_files import many_finqa as many
from tests.support.task_files import write_finqa as write
from tsallis_rl.config import command_line as settings
from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import finqa, graders, load_task
from tsallis_rl.tasks.base import Split
from tsallis_rl.tasks.encoding import encode_split
from tsallis_rl.tasks.markers import find_markers
from tsallis_rl.tasks.tokenizers import SentencePieceTokenizer, train_sentencepiece

DATA = OFFICIAL / "finqa"
CONFIG = ROOT / "configs" / "finq.py"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the excerpts of the official release are not there")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSALLIS_RL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def config(folder, argument="", **task):
    loaded = settings.load_config(f"{CONFIG}:{argument}")
    loaded.task.update(folder=str(folder), **task)
    return loaded.task


def test_page_is_text_then_table_rows_then_text_then_question(tmp_path):
    task = load_task(config(write(tmp_path, [record()], many(9))), 0)
    (example,) = task.splits["train"].examples
    assert example.prompt == (
        "first sentence .\n"
        "|  | 2010 | 2009 |\n"
        "| revenue | $ -20 | 10% |\n"
        "| revenue | - |  |\n"
        "it grew .\n"
        "last sentence .\n"
        "what was the change in revenue ?"
    )
    assert (example.answer, example.aliases) == ("0.11111", ("0.11111",))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("55% ( 55 % )", "55%"),
        ("$ -23158 ( 23158 )", "$ -23158"),
        ("1,234.5 ( 1,234.5 )", "1,234.5"),
        ("2022 ( 2 )", "2022 ( 2 )"),
        ("$ 10973.1 ( 1 )", "$ 10973.1 ( 1 )"),
        ("1.5% ( 5 % )", "1.5% ( 5 % )"),
        ("note 20-5 ( 5 )", "note 20-5 ( 5 )"),
        ("see . ( . )", "see . ( . )"),
    ],
)
def test_only_a_repeated_whole_number_is_dropped_and_footnotes_stay(written, read):
    page = {"pre_text": [written], "post_text": [], "table": [], "question": "?"}
    assert finqa.linearise(page) == f"{read}\n?"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_executed_answer_that_is_no_number_names_file_and_record(tmp_path, value):
    folder = write(tmp_path, [record(), record(exe_ans=value)], many(9))
    with pytest.raises(UserError, match=r"train\.json, record 1 .*'exe_ans' is -?\w+, which is no finite number"):
        load_task(config(folder), 0)


def test_warm_start_states_the_task_and_the_format_of_the_gold_field(tmp_path):
    write(tmp_path, [record()], many(9))
    cold = load_task(config(tmp_path), 0)
    for gold, form in (("exe_ans", "0.125, not 12.5%"), ("answer", "percentage with its sign")):
        warm = load_task(config(tmp_path, "start=warm", gold=gold), 0)
        ((message,),) = [example.prompt for example in warm.splits["train"].examples]
        assert message["role"] == "user" and form in message["content"]
        assert message["content"].endswith(cold.splits["train"].examples[0].prompt)
    chat = load_task(config(tmp_path, "start=chat"), 0).splits["train"].examples[0].prompt
    assert chat == ({"role": "user", "content": cold.splits["train"].examples[0].prompt},)
    assert "</think>" not in message["content"]
    named = load_task(config(tmp_path, "start=warm", end_of_think="Answer:"), 0).splits["train"].examples[0]
    assert 'Then write "Answer:" and give the answer alone' in named.prompt[0]["content"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.34719, "0.34719"),
        (407.0, "407"),
        (100, "100"),
        (-2.4, "-2.4"),
        (0.0, "0"),
        (-0.0, "0"),
        (1e-05, "0.00001"),
        (386797189.66, "386797189.66"),
        (36003776400000.0, "36003776400000"),
        (-(10**399), "-1" + "0" * 399),
        ("yes", "yes"),
    ],
)
def test_executed_answers_are_written_without_exponents_and_trailing_zeros(value, text):
    assert finqa.format_number(value) == text


def test_official_test_file_is_used_where_it_is_and_dev_halved_where_not(tmp_path):
    task = load_task(config(write(tmp_path, many(3, "t"), many(40, "d"), many(5, "x"))), 0)
    assert {name: len(split.examples) for name, split in task.splits.items()} == {
        "train": 3,
        "validation": 16,
        "test": 5,
    }
    assert not any("halves" in note for note in task.notes)
    (tmp_path / "test.json").unlink()
    halved = load_task(config(tmp_path, validation_examples=0, test_examples=0), 0)
    ids = {name: {example.id for example in split.examples} for name, split in halved.splits.items()}
    assert ids["validation"] | ids["test"] == {f"d{i}" for i in range(40)}
    assert not ids["validation"] & ids["test"]
    assert "halves of dev.json" in halved.notes[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"table": [["", 2010]]}, r"field 'table' is .*, expected list of list of str"),
        ({"pre_text": "text"}, r"field 'pre_text' is 'text', expected list of str"),
        ({"qa": {"question": "?", "answer": "1"}}, r"field 'qa': field 'exe_ans' is missing"),
        ({"exe_ans": None}, r"field 'exe_ans' is null, expected float or int or str"),
    ],
)
def test_record_of_another_shape_is_named(tmp_path, change, says):
    write(tmp_path, [*many(2), record(**change)], many(2))
    with pytest.raises(UserError, match=r"train\.json, record 2 \(the first is 0\).*" + says):
        load_task(config(tmp_path), 0)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("gold", "exe", "exe_ans, answer"),
        ("start", "hot", "cold, chat, warm"),
        ("prompt_overflow", "cut", "drop, trim"),
    ],
)
def test_choice_that_is_not_known_names_those_that_are(tmp_path, field, value, says):
    write(tmp_path, many(1), many(2))
    with pytest.raises(UserError, match=f"config.task.{field}='{value}'.*{says}"):
        load_task(config(tmp_path, **{field: value}), 0)


@needs_data
@pytest.mark.parametrize(("gold", "dropped"), [("exe_ans", 0), ("answer", 1)])
def test_every_excerpted_record_loads(gold, dropped):
    sizes = dict.fromkeys(("train_examples", "validation_examples", "test_examples"), 0)
    task = load_task(config(DATA, gold=gold, **sizes), 0)
    used = {name: len(split.examples) for name, split in task.splits.items()}
    reasons = {name: split.dropped for name, split in task.splits.items()}
    left_out = {name: sum(split.dropped.values()) for name, split in task.splits.items()}
    assert used["train"] == 120 - dropped and left_out["train"] == dropped
    assert used["validation"] + used["test"] == 200 - dropped == 200 - left_out["validation"] - left_out["test"]
    assert all(reason.startswith("empty answer (first: ") for split in reasons.values() for reason in split)
    for split in task.splits.values():
        for example in split.examples:
            scores = task.grade(example.answer, example)
            assert scores["exact"] == scores["substring"] == scores["substring_bounded"] == 1
            if gold == "exe_ans":
                assert scores["execution_accuracy"] == 1


# FinQA's programs: comma-joined steps over numbers, table rows and results of earlier steps (#0, #1, …).


def operand(text, results):
    text = text.strip()
    if text.startswith("#"):
        return results[int(text[1:])]
    if text.startswith("const_"):
        return -1.0 if text == "const_m1" else float(text.removeprefix("const_"))
    number = text.replace(",", "")
    return float(number[:-1]) / 100 if number.endswith("%") else float(number)


def row_numbers(table, name):
    (cells,) = [row[1:] for row in table if row[0] == name][-1:]  # of rows with one name the last counts
    return [operand(cell.replace("$", "").split("(")[0], ()) for cell in cells]


def execute(program, table):
    """The result of a program: yes, no, or a number rounded to five decimals."""
    arithmetic = {
        "add": lambda a, b: a + b,
        "subtract": lambda a, b: a - b,
        "multiply": lambda a, b: a * b,
        "divide": lambda a, b: a / b,
        "exp": lambda a, b: a**b,
        "greater": lambda a, b: "yes" if a > b else "no",
    }
    rows = {"sum": sum, "average": lambda x: sum(x) / len(x), "max": max, "min": min}
    results = []
    for step in program.rstrip(") ").split("), "):
        name, _, arguments = step.partition("(")
        first, _, second = arguments.rpartition(", ")
        if name.startswith("table_"):
            results.append(rows[name.removeprefix("table_")](row_numbers(table, first)))
        else:
            results.append(arithmetic[name](operand(first, results), operand(second, results)))
    return results[-1] if isinstance(results[-1], str) else round(results[-1], 5)


def spellings(executed):
    """Ways in which a person writes an executed answer."""
    if executed in ("yes", "no"):
        return [executed, executed.capitalize() + "."]
    value = float(executed)
    spelt = [f"{value:.5f}", f"$ {value:,.5f}", f"The answer is {value:,.5f}", f"{100 * value:.4f}%"]
    spelt += [f"({-value:.5f})"] if value < 0 else []
    return spelt


@needs_data
def test_executed_programs_are_right_and_their_opposites_wrong_on_every_record():
    records = [r for split in ("train", "dev") for r in json.loads((DATA / f"{split}.json").read_text())]
    assert len(records) == 320
    for r in records:
        executed = execute(r["qa"]["program"], r["table"])
        assert executed == r["qa"]["exe_ans"], r["id"]
        gold = finqa.format_number(r["qa"]["exe_ans"])
        for text in spellings(executed):
            assert graders.execution_accuracy(text, gold) == 1, (r["id"], text, gold)
        if executed in ("yes", "no"):
            assert graders.execution_accuracy({"yes": "no", "no": "yes"}[executed], gold) == 0
        elif executed:
            for wrong in (-executed, 1.2 * executed, 1000 * executed):
                assert graders.execution_accuracy(f"{wrong:.5f}", gold) == 0, (r["id"], wrong, gold)


@needs_data
def test_annotated_answers_agree_with_executed_ones_but_for_the_releases_own_conflicts():
    records = [r for split in ("train", "dev") for r in json.loads((DATA / f"{split}.json").read_text())]
    pairs = [(r["qa"]["answer"], finqa.format_number(r["qa"]["exe_ans"])) for r in records if r["qa"]["answer"]]
    assert sum(graders.execution_accuracy(answer, executed) for answer, executed in pairs) == 285
    assert len(pairs) == 318


@needs_data
def test_trimming_leaves_out_sentences_until_the_prompt_fits_but_never_evidence():
    sizes = {"train_examples": 0, "validation_examples": 1, "test_examples": 1}
    examples = load_task(config(DATA, prompt_overflow="trim", **sizes), 0).splits["train"].examples
    tokenizer = SentencePieceTokenizer(train_sentencepiece([example.prompt for example in examples], 2000))
    split, markers = Split(examples), find_markers(base_config().task, tokenizer)
    lengths = [len(tokenizer.encode_prompt(example.prompt)) for example in examples]
    limit = sorted(lengths)[60]
    trimmed = encode_split(split, tokenizer, markers, max_prompt=limit, max_answer=32)
    assert trimmed.trimmed == sum(length > limit for length in lengths) - sum(trimmed.dropped.values()) > 40
    assert trimmed.prompt_length.max() <= limit
    evidence = {
        r["id"]: [text for key, text in r["qa"]["gold_inds"].items() if key.startswith("text_")]
        for r in json.loads((DATA / "train.json").read_text())
    }
    untrimmed = {example.id: example.prompt for example in examples}
    for example in trimmed.examples:
        for text in evidence[example.id]:
            kept = finqa._TWICE.sub(r"\1\2\3", text.strip())
            assert kept not in untrimmed[example.id] or kept in example.prompt
    dropped = load_task(config(DATA, prompt_overflow="drop", **sizes), 0).splits["train"]
    kept = encode_split(dropped, tokenizer, markers, max_prompt=limit, max_answer=32)
    assert kept.trimmed == 0 and len(kept) == sum(length <= limit for length in lengths)
    assert list(kept.dropped.values()) == [120 - len(kept)]
