"""Your own task from JSON lines: {"prompt": …, "answer": …, "aliases": […]}, without writing code."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import fetched
from tsallis_rl.tasks import graders, math_equivalence
from tsallis_rl.tasks.base import Example, Message, Split, Task, count_reasons
from tsallis_rl.tasks.records import check_fields, read_records
from tsallis_rl.tasks.subsets import choose, hash_id, split_sizes
from tsallis_rl.tasks.templates import STARTS, as_prompt, check_choice, think_then

_FIELDS = {"prompt": (str, [dict]), "answer": str}
_MESSAGE = {"role": str, "content": str}
_ROLES = ("system", "user", "assistant")


_ANSWER = "give the answer alone, without words or explanation."

GRADES = ("exact", "substring", "substring_bounded", "em", "f1", "numeric", "math")

# config.task.metric -> the key under which answers are counted together
_VOTE_KEYS = {"em": graders.own_words, "numeric": graders.numeric_key, "math": math_equivalence.math_key}


def _prompt(prompt: str | list, task: ConfigDict, where: str) -> str | tuple[Message, ...]:
    """Makes the prompt for the config's start: text alone (cold), or chat messages (chat, warm)."""
    instruction = think_then(task, _ANSWER)
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UserError(f"{where}: the prompt is empty; remove the record or write one")
        return as_prompt(prompt, instruction, task.start)
    if task.start == "cold":
        raise UserError(f"{where}: the prompt is a list of chat messages; use config.task.start=chat, or plain text")
    for message in prompt:
        check_fields(message, _MESSAGE, f"{where}, field 'prompt'")
        check_choice(f"{where}, role", message["role"], _ROLES)
    messages = [{name: message[name] for name in _MESSAGE} for message in prompt]
    if task.start == "warm":
        asked = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        if asked is None:
            raise UserError(f"{where}: none of the chat messages is the user's; use config.task.start=chat")
        messages[asked]["content"] = f"{instruction}\n\n{messages[asked]['content']}"
    return tuple(messages)


class _Records(NamedTuple):
    """The examples of a file.

    Attributes:
      examples: as the model reads them.
      texts: of each, its prompt as the file has it, whatever the start makes of it.
      dropped: reason -> number of records that were left out.
    """

    examples: list[Example]
    texts: list[str]
    dropped: Mapping[str, int]


def _read(path: Path, task: ConfigDict) -> _Records:
    """Reads the records of a file."""
    examples, texts, empty, seen = [], [], [], {}
    for where, record in read_records(path, _FIELDS):
        aliases = record.get("aliases", [])
        check_fields({"aliases": aliases}, {"aliases": [str]}, where)
        id = str(record.get("id", where.rpartition(", ")[2]))
        if id in seen:
            raise UserError(f"{where}: the id {id!r} is that of {seen[id]}; ids must be unique")
        seen[id] = where
        prompt, answer = _prompt(record["prompt"], task, where), record["answer"].strip()
        if answer:
            examples.append(Example(id, prompt, answer, tuple(aliases)))
            texts.append(_text(record["prompt"]))
        else:
            empty.append(id)
    return _Records(examples, texts, count_reasons({"empty answer": empty}))


def _text(prompt: str | list) -> str:
    """Writes a record's prompt as one text, with no more of its messages than the model is given."""
    return repr(prompt if isinstance(prompt, str) else tuple({name: m[name] for name in _MESSAGE} for m in prompt))


def _part(text: str) -> str:
    """Names the split of a record of a single file: a tenth each to validation and test, by its prompt's hash."""
    return {0: "validation", 1: "test"}.get(hash_id(text) % 10, "train")


def _subset(examples: Sequence[Example], dropped: Mapping[str, int], size: int) -> Split:
    split = choose([example.id for example in examples], range(len(examples)), examples.__getitem__, size)
    return Split(split.examples, dropped)


def load(task: ConfigDict) -> Task:
    """Loads examples from config.task.path: one file, or a folder with train.jsonl, validation.jsonl and test.jsonl.

    From one file, validation and test get a tenth each, by the SHA-256 of the prompts, so that equal prompts are in one
    split, the same one at every start. Every seed sees the same examples.

    Raises:
      UserError: a setting, a file or a record is not right; names it.
    """
    check_choice("task.start", task.start, STARTS)
    path = fetched(task.path)
    if not task.path or not path.exists():
        raise UserError(
            f"config.task.path={task.path!r}: no such file or folder; set it to a file of JSON lines, or to a folder "
            "with train.jsonl, validation.jsonl and test.jsonl"
        )
    metric, reward = (task.get(name, "auto") for name in ("metric", "reward"))
    for name, choice in (("task.metric", metric), ("task.reward", reward)):
        if choice == "math":
            math_equivalence.check_installed(name)
    sizes = split_sizes(task)
    if path.is_dir():
        records = {name: _read(path / f"{name}.jsonl", task) for name in sizes}
        read = {name: (of_split.examples, of_split.dropped) for name, of_split in records.items()}
        notes = ()
    else:
        records = _read(path, task)
        parts = [_part(text) for text in records.texts]
        read = {
            name: ([e for e, part in zip(records.examples, parts, strict=True) if part == name], {}) for name in sizes
        }
        read["train"] = (read["train"][0], records.dropped)
        notes = (f"validation and test are a tenth each of {path.name}, by the SHA-256 of the prompts",)
    return Task(
        name="jsonl",
        splits={name: _subset(*read[name], sizes[name]) for name in sizes},
        grade=partial(graders.own_task, tolerance=task.tolerance if "tolerance" in task else 0.0),
        metric="exact",
        vote_key=_VOTE_KEYS.get(metric, str.strip),
        notes=notes,
        more_grades={"math": math_equivalence.math},
    )
