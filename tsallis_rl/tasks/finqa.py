"""FinQA (Chen et al. 2021): a question over a page of a financial report, answered by a short computation."""

import re
from pathlib import Path

from ml_collections import ConfigDict

from tsallis_rl.errors import UserError
from tsallis_rl.tasks import graders
from tsallis_rl.tasks.base import Example, Split, Task
from tsallis_rl.tasks.records import Record, check_fields, is_validation, read_records, subset

FIELDS = {"id": str, "pre_text": list, "post_text": list, "table": list, "qa": dict}
QA_FIELDS = {"question": str, "answer": str, "exe_ans": (float, int, str)}

INSTRUCTION = (
    "You are given an excerpt of a financial report, with a table, and a question. Think step by step, then answer "
    "with the result alone: a number without words or explanation{percent}, or yes or no."
)
PERCENT = {"exe_ans": ", fractions as decimals rather than percentages", "answer": ", percentages with their sign"}

# The release repeats a value behind itself: "55% ( 55 % )", "$ -23158 ( 23158 )".
_REPEATED = re.compile(r"(-?)([\d.,]+)( ?%?) \( \2 ?%? \)")


def linearise(record: Record) -> str:
    """The page as text: what stands before the table, the table in rows, what stands behind it, the question."""
    rows = ["| " + " | ".join(cell.strip() for cell in row) + " |" for row in record["table"]]
    before, after = ([line.strip() for line in record[side] if line.strip(" .")] for side in ("pre_text", "post_text"))
    return _REPEATED.sub(r"\1\2\3", "\n".join([*before, *rows, *after, record["qa"]["question"].strip()]))


def format_number(value: float | str) -> str:
    """`exe_ans` as text: at most five decimals, without trailing zeros; yes and no as they are."""
    if isinstance(value, str):
        return value.strip()
    text = f"{value:.5f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def example(record: Record, *, gold: str, start: str) -> Example | str:
    """The example of a record, or the reason why it gives none. `gold` and `start` as in config.task."""
    executed = format_number(record["qa"]["exe_ans"])
    answer = executed if gold == "exe_ans" else record["qa"]["answer"].strip()
    if not answer:
        return f"no gold answer in {gold}"
    text = linearise(record)
    instruction = INSTRUCTION.format(percent=PERCENT[gold])
    prompt = text if start == "cold" else ({"role": "user", "content": f"{instruction}\n\n{text}"},)
    return Example(record["id"], prompt, answer, (executed,))


def load(task: ConfigDict, seed: int) -> Task:
    """Reads train.json, dev.json and test.json of config.task.folder. Every seed sees the same examples.

    Without test.json, validation and test are the disjoint halves of dev.json (`records.is_validation`).
    """
    del seed
    if not task.folder:
        raise UserError("config.task.folder is empty: set it to the folder of FinQA's official files")
    if task.gold not in PERCENT:
        raise UserError(f"config.task.gold={task.gold!r} is not accepted; choose from {', '.join(PERCENT)}")
    folder = Path(task.folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"config.task.folder={task.folder!r}: no such folder")

    def split(file: str, keep=lambda id: True) -> tuple[list[Example], dict[str, int]]:
        examples, dropped = [], {}
        for where, record in read_records(folder / file, FIELDS):
            check_fields(record["qa"], QA_FIELDS, f"{folder / file}, {where}, field 'qa'")
            if not keep(record["id"]):
                continue
            made = example(record, gold=task.gold, start=task.start)
            if isinstance(made, str):
                dropped[made] = dropped.get(made, 0) + 1
            else:
                examples.append(made)
        return examples, dropped

    parts = {"train": split("train.json")}
    if (folder / "test.json").exists():
        parts |= {"validation": split("dev.json"), "test": split("test.json")}
    else:
        parts["validation"] = split("dev.json", is_validation)
        parts["test"] = split("dev.json", lambda id: not is_validation(id))
    splits = {
        name: Split(subset(examples, task[f"{name}_examples"]), dropped) for name, (examples, dropped) in parts.items()
    }
    return Task("finqa", splits, graders.finqa, metric="substring", joint="\n\n" if task.start == "warm" else "")
