"""FinQA (Chen et al. 2021): a question over a page of a financial report, answered by a short computation."""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from tsallis_rl.tasks import graders
from tsallis_rl.tasks.base import Example, Task
from tsallis_rl.tasks.records import Record, check_fields, read_records
from tsallis_rl.tasks.releases import Download, Release, load_release
from tsallis_rl.tasks.templates import STARTS, as_prompt, check_choice, think_then, trimmer

_FIELDS = {"id": str, "pre_text": [str], "post_text": [str], "table": [[str]], "qa": dict}
_QA_FIELDS = {"question": str, "answer": str, "exe_ans": (float, int, str), "gold_inds": dict}

_INSTRUCTION = "Below is a page of a financial report, with a table, and a question about it. {think_then}"
_ANSWER = "give the answer alone, without words or explanation: yes or no, or a number{format}."
_FORMAT = {
    "exe_ans": " with up to five decimals, a percentage as a fraction (0.125, not 12.5%)",
    "answer": ", a percentage with its sign (12.5%)",
}

GRADES = ("exact", "substring", "substring_bounded", "execution_accuracy")

# The release writes some values twice: "55% ( 55 % )", "$ -23158 ( 23158 )". Only the number in full is a repetition:
# "2022 ( 2 )", "10973.1 ( 1 )" and "1.5% ( 5 % )" are a number and its footnote, or another number.
_TWICE = re.compile(r"(?<![\d.,])(?<!\d-)(-?)(?=[.,]*\d)([\d.,]+)( ?%?) \( \2 ?%? \)")


def read(path: Path) -> Iterator[Record]:
    """Reads an official file's records, with the fields that prompts and graders need."""
    for where, record in read_records(path, _FIELDS):
        qa = record["qa"]
        check_fields(qa, _QA_FIELDS, f"{where}, field 'qa'")
        yield {
            "id": record["id"],
            "pre_text": record["pre_text"],
            "post_text": record["post_text"],
            "table": [json.dumps(row, ensure_ascii=False) for row in record["table"]],
            "question": qa["question"],
            "answer": qa["answer"],
            "exe_ans": format_number(qa["exe_ans"]),
            "evidence": list(qa["gold_inds"]),
        }


_REVISION = "https://raw.githubusercontent.com/czyssrs/FinQA/0f16e2867befa6840783e58be38c9efb9229d742/dataset"
_SHA256 = {
    "train.json": "49f237eb9779b569473b26b08048867d04635a7cc39ad6a7a5664c55bb428db6",
    "dev.json": "a847fb7e0d61a3125a1e2909852df6b89f1ee64d2c5ff1bf689e332214deee51",
    "test.json": "831dbfb2e785dbc227f895ce3f24046433467aec67b09db2bd6ac7692a8a30dc",
}

RELEASE = Release(
    name="finqa",
    title="FinQA",
    files={"train": ["train.json"], "dev": ["dev.json"], "test": ["test.json"]},
    features={
        "id": str,
        "pre_text": [str],
        "post_text": [str],
        "table": [str],  # rows, each a JSON array of cells
        "question": str,
        "answer": str,
        "exe_ans": str,
        "evidence": [str],  # text_N: sentence N of pre_text + post_text; table_N: row N
    },
    read=read,
    downloads=[Download(f"{_REVISION}/{file}", {file: digest}) for file, digest in _SHA256.items()],
)


def format_number(value: float | int | str) -> str:
    """Writes `exe_ans` as text: at most five decimals, no trailing zeros; yes and no unchanged, whole numbers exact."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int):
        return str(value)
    text = f"{value:.5f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def linearise(record: Record, left_out: Collection[int] = ()) -> str:
    """Writes a page as text: the sentences before the table, its rows, the sentences after it, the question.

    Args:
      record: a prepared record.
      left_out: indices of sentences of pre_text + post_text to skip; a lone full stop is always skipped.
    """
    rows = ["| " + " | ".join(cell.strip() for cell in json.loads(row)) + " |" for row in record["table"]]
    lines = [
        "" if i in left_out or not sentence.strip(" .") else sentence.strip()
        for i, sentence in enumerate([*record["pre_text"], *record["post_text"]])
    ]
    first = len(record["pre_text"])
    page = [*filter(None, lines[:first]), *rows, *filter(None, lines[first:]), record["question"].strip()]
    return _TWICE.sub(r"\1\2\3", "\n".join(page))


def example(record: Record, task: ConfigDict) -> Example | str:
    """Makes a prepared record's example, or returns the reason why it gives none."""
    answer = record[task.gold].strip()
    if not answer:
        return f"empty {task.gold}"
    wanted = think_then(task, _ANSWER.format(format=_FORMAT[task.gold]))
    instruction = _INSTRUCTION.format(think_then=wanted)

    def render(left_out: Collection[int] = ()):
        return as_prompt(linearise(record, left_out), instruction, task.start)

    sentences = range(len(record["pre_text"]) + len(record["post_text"]))
    shorten = trimmer([f"text_{i}" in record["evidence"] for i in sentences], render)
    return Example(
        record["id"], render(), answer, (record["exe_ans"],), shorten if task.prompt_overflow == "trim" else None
    )


def load(task: ConfigDict) -> Task:
    """Loads FinQA from config.task.folder; every seed sees the same examples.

    config.task.gold: exe_ans, the executed program's result, or answer, as the annotators wrote it.
    config.task.prompt_overflow: trim leaves out the last sentences that are not evidence.
    """
    check_choice("task.start", task.start, STARTS)
    splits, notes = load_release(RELEASE, task, lambda record: example(record, task))
    return Task(
        name="finqa",
        splits=splits,
        grade=graders.finqa,
        metric="substring",
        vote_key=graders.number_key,
        notes=notes,
    )
