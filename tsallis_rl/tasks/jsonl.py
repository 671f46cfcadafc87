"""Your own task from JSON lines: {"prompt": …, "answer": …, "aliases": […]}, without writing code."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import fetched
from tsallis_rl.tasks import graders
from tsallis_rl.tasks.base import Example, Message, Split, Task, count_reasons
from tsallis_rl.tasks.records import check_fields, read_records
from tsallis_rl.tasks.subsets import choose, hash_id, split_sizes
from tsallis_rl.tasks.templates import STARTS, as_prompt, check_choice, think_then

_FIELDS = {"prompt": (str, [dict]), "answer": str}
_ROLES = ("system", "user", "assistant")


_ANSWER = "give the answer alone, without words or explanation."


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
        check_fields(message, {"role": str, "content": str}, f"{where}, field 'prompt'")
        check_choice(f"{where}, role", message["role"], _ROLES)
    messages = [{"role": message["role"], "content": message["content"]} for message in prompt]
    if task.start == "warm":
        asked = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        if asked is None:
            raise UserError(f"{where}: none of the chat messages is the user's; use config.task.start=chat")
        messages[asked]["content"] = f"{instruction}\n\n{messages[asked]['content']}"
    return tuple(messages)


def _read(path: Path, task: ConfigDict) -> tuple[list[Example], Mapping[str, int]]:
    examples, empty, seen = [], [], {}
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
        else:
            empty.append(id)
    return examples, count_reasons({"empty answer": empty})


def _part(example: Example) -> str:
    """Names the split of an example of a single file: a tenth each to validation and test, by its prompt's hash."""
    return {0: "validation", 1: "test"}.get(hash_id(repr(example.prompt)) % 10, "train")


def _subset(examples: Sequence[Example], dropped: Mapping[str, int], size: int) -> Split:
    split = choose([example.id for example in examples], range(len(examples)), examples.__getitem__, size)
    return Split(split.examples, dropped)


def load(task: ConfigDict) -> Task:
    """Loads examples from config.task.path: one file, or a folder with train.jsonl, validation.jsonl and test.jsonl.

    From one file, validation and test get a tenth each, by the SHA-256 of the prompts, so that equal prompts are in one
    split. Every seed sees the same examples.

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
    sizes = split_sizes(task)
    if path.is_dir():
        read = {name: _read(path / f"{name}.jsonl", task) for name in sizes}
        notes = ()
    else:
        examples, dropped = _read(path, task)
        read = {name: ([e for e in examples if _part(e) == name], {}) for name in sizes}
        read["train"] = (read["train"][0], dropped)
        notes = (f"validation and test are a tenth each of {path.name}, by the SHA-256 of the prompts",)
    return Task(
        name="jsonl",
        splits={name: _subset(*read[name], sizes[name]) for name in sizes},
        grade=graders.musique,
        metric=task.metric,
        vote_key=graders.normalize if task.metric == "em" else str.strip,
        notes=notes,
    )
