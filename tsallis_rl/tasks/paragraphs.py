"""Questions over titled paragraphs, a few of which support the answer: shared by HotPotQA and MuSiQue."""

from collections.abc import Callable, Collection
from functools import partial

from ml_collections import ConfigDict

from tsallis_rl.tasks.base import Example, Task
from tsallis_rl.tasks.records import Record
from tsallis_rl.tasks.releases import Release, load_release
from tsallis_rl.tasks.templates import STARTS, as_prompt, check_choice, think_then, trimmer

FEATURES = {
    "id": str,
    "question": str,
    "answer": str,
    "aliases": [str],
    "answerable": bool,
    "paragraphs": [{"title": str, "text": str, "supporting": bool}],
}

_INSTRUCTION = "Below are paragraphs of an encyclopedia and a question whose answer takes several of them. {think_then}"
_ANSWER = "give the answer alone, as short as possible, without a sentence around it{or_yes_no}."


def tidy(text: str) -> str:
    """Reduces white space to single spaces, with none around the text."""
    return " ".join(text.split())


def linearise(record: Record, left_out: Collection[int] = ()) -> str:
    """Writes a line per paragraph, after its title, then the question; `left_out` are indices of paragraphs to skip."""
    lines = [f"{p['title']}: {p['text']}" for i, p in enumerate(record["paragraphs"]) if i not in left_out]
    return "\n".join([*lines, record["question"]])


def example(record: Record, task: ConfigDict, or_yes_no: str) -> Example | str:
    """Makes a prepared record's example, or returns the reason why it gives none."""
    if not record["answerable"]:
        return "unanswerable"
    if not record["answer"]:
        return "empty answer"
    if not record["paragraphs"]:
        return "no paragraphs"
    instruction = _INSTRUCTION.format(think_then=think_then(task, _ANSWER.format(or_yes_no=or_yes_no)))

    def render(left_out: Collection[int] = ()):
        return as_prompt(linearise(record, left_out), instruction, task.start)

    shorten = trimmer([p["supporting"] for p in record["paragraphs"]], render)
    aliases = tuple(record["aliases"])
    return Example(
        record["id"], render(), record["answer"], aliases, shorten if task.prompt_overflow == "trim" else None
    )


def load(task: ConfigDict, release: Release, grade: Callable, vote_key: Callable, or_yes_no: str = "") -> Task:
    """Loads a task of paragraphs from config.task.folder.

    config.task.prompt_overflow: trim leaves out the last paragraphs that do not support the answer.
    """
    check_choice("task.start", task.start, STARTS)
    splits, notes = load_release(release, task, partial(example, task=task, or_yes_no=or_yes_no))
    return Task(
        name=release.name,
        splits=splits,
        grade=grade,
        metric="substring",
        vote_key=vote_key,
        notes=notes,
    )
