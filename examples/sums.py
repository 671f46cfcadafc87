"""A task of your own in one file: sums from CSV files, with their reader, template, grader and config.

    python -m tsallis_rl.tasks --config=examples/sums.py --config.task.folder=sums --show=2
    python -m tsallis_rl.main --config=examples/sums.py --config.task.folder=sums --config.train.steps=3

The folder holds train.csv and dev.csv with the columns id, left, right, total.
"""

import csv

from tsallis_rl.config import base_config
from tsallis_rl.tasks import Example, Task
from tsallis_rl.tasks.graders import match_grades
from tsallis_rl.tasks.releases import Release, load_release


def read(path):
    """Yields the rows of a file; they are prepared once, and again when the file changes."""
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


SUMS = Release(
    name="sums",
    title="Sums",
    files={"train": ["train.csv"], "dev": ["dev.csv"]},  # without a test file, dev is halved into validation and test
    features={"id": str, "left": str, "right": str, "total": str},
    read=read,
    downloads=[],
)


def example(record):
    """Makes the example of a record, or returns the reason why it gives none; reasons are counted."""
    if not record["total"]:
        return "no total"
    return Example(record["id"], f"{record['left']} + {record['right']} =", record["total"])


def grade(prediction, example):
    """Grades by string matches, and by whether the sum is off by one at most."""
    number = prediction.strip().lstrip("-")
    near = number.isdecimal() and abs(int(prediction) - int(example.answer)) <= 1
    return {**match_grades(prediction, example), "near": float(near)}


def load(task):
    """Makes the task from config.task; a task whose examples depend on a seed takes (task, seed)."""
    splits, notes = load_release(SUMS, task, example)
    return Task(name="sums", splits=splits, grade=grade, metric="exact", notes=notes)


def get_config(argument=None):
    """Makes a config that is small enough for a CPU."""
    config = base_config()
    config.task.name = "examples.sums"
    config.task.folder = ""
    config.task.max_prompt = 16
    config.task.max_answer = 8
    config.task.vocab_size = 300
    config.rollouts.max_rationale = 8
    return config
