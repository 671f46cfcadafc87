"""Turns a user's own records into examples: renamed columns, numbers and lists as answers, chat messages."""

import dataclasses
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Example, Message
from tsallis_rl.tasks.record_files import number_text
from tsallis_rl.tasks.records import Record, check_fields
from tsallis_rl.tasks.subsets import hash_id
from tsallis_rl.tasks.templates import as_prompt, think_then

COLUMNS = ("prompt", "answer", "aliases", "id")
WORKED = "####"  # between worked steps and the answer, in GSM8K and data sets like it

_ONE = (str, int, float, Decimal)  # an answer; a number is written as text
_FIELDS = {"prompt": (str, [dict]), "answer": (*_ONE, [_ONE])}
_OPTIONAL = {"aliases": [_ONE], "id": _ONE}
_MESSAGE = {"role": str, "content": str}
_ROLES = ("system", "user", "assistant")
_ANSWER = "give the answer alone, without words or explanation."


@dataclasses.dataclass
class OwnExamples:
    """The examples of one file or split.

    Attributes:
      examples: as the model reads them.
      prompts: hash of each example's prompt as it is in the file, the same for every start.
      left_out: reason -> ids of the records that gave no example.
      worked: number of records with an answer that holds WORKED after other text.
    """

    examples: list[Example] = dataclasses.field(default_factory=list)
    prompts: list[int] = dataclasses.field(default_factory=list)
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    worked: int = 0

    def select(self, kept: Iterable[int]) -> "OwnExamples":
        """Takes the examples at some indices; `left_out` and `worked` stay empty."""
        kept = list(kept)
        return OwnExamples([self.examples[i] for i in kept], [self.prompts[i] for i in kept])


def read_columns(setting: str) -> dict[str, str]:
    """Reads config.task.columns, as in question:prompt,solution:answer → field of an example -> column.

    Raises:
      UserError: it is not written like this.
    """
    columns: dict[str, str] = {}
    for pair in filter(None, (pair.strip() for pair in setting.split(","))):
        column, _, field = (part.strip() for part in pair.rpartition(":"))
        if not column or field not in COLUMNS or field in columns:
            raise UserError(
                f"config.task.columns={setting!r}: {pair!r} is not accepted; write COLUMN:FIELD with a comma between "
                f"pairs, as in question:prompt,solution:answer, each field once: {', '.join(COLUMNS)}"
            )
        columns[field] = column
    return columns


def _at(record: Record, column: str, where: str) -> Any:
    """Finds a column's value; a dotted name that is no column leads into objects: answers.text."""
    if column in record:
        return record[column]
    value: Any = record
    for name in column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise UserError(
                f"{where}: there is no {column!r}, which config.task.columns names (fields found: "
                f"{', '.join(sorted(map(str, record))[:12])[:300] or 'none'})"
            )
        value = value[name]
    return value


def _renamed(record: Any, columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """Renames a record's columns to the fields of an example, and checks each."""
    if columns and isinstance(record, Mapping):
        record = {**record, **{field: _at(record, column, where) for field, column in columns.items()}}
    try:
        check_fields(record, _FIELDS, where)
    except UserError as error:
        if "is missing" not in str(error):
            raise
        raise UserError(f"{error}; config.task.columns=question:prompt,solution:answer names other columns") from None
    record = {**record}
    if record.get("aliases", ()) is None:  # parquet has None in a row without aliases
        del record["aliases"]
    check_fields(record, {name: kind for name, kind in _OPTIONAL.items() if name in record}, where)
    return record


def _text(value: Any, where: str) -> str:
    return value if isinstance(value, str) else number_text(value, where)


def _prompt(prompt: str | list, task: ConfigDict, where: str) -> str | tuple[Message, ...]:
    """Makes the prompt for the config's start: text alone (cold), or chat messages (chat, warm)."""
    instruction = think_then(task, _ANSWER)
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UserError(f"{where}: the prompt is empty; remove the record or write one")
        return as_prompt(prompt, instruction, task.start)
    if task.start == "cold":
        raise UserError(f"{where}: the prompt is a list of chat messages; use config.task.start=chat, or plain text")
    if not prompt:
        raise UserError(f"{where}: the prompt is a list without a message; remove the record or write one")
    for message in prompt:
        check_fields(message, _MESSAGE, f"{where}, field 'prompt'")
        if message["role"] not in _ROLES:
            raise UserError(f"{where}: role={message['role']!r:.60} is not accepted; choose from {', '.join(_ROLES)}")
        if not message["content"].strip():
            raise UserError(f"{where}: the {message['role']}'s message is empty; remove it or write its content")
    messages = [{name: message[name] for name in _MESSAGE} for message in prompt]
    asked = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if task.start == "warm" and asked is None:
        raise UserError(f"{where}: none of the chat messages is the user's; use config.task.start=chat")
    if messages[-1]["role"] == "assistant":
        raise UserError(
            f"{where}: the last chat message is the assistant's, which the model would have to continue; end with the "
            "user's, and put what the assistant answers into the field 'answer'"
        )
    if task.start == "warm":
        messages[asked]["content"] = f"{instruction}\n\n{messages[asked]['content']}"
    return tuple(messages)


def _prompt_text(prompt: str | list) -> str:
    """Writes a record's prompt as one text, with only those fields of its messages that the model is given."""
    return repr(prompt if isinstance(prompt, str) else tuple({name: m[name] for name in _MESSAGE} for m in prompt))


def _answers(record: Mapping[str, Any], where: str) -> list[str]:
    """Writes a record's answer as texts: the first is the gold answer, others of a list are accepted too."""
    answer = record["answer"]
    texts = [_text(item, f"{where}: field 'answer'") for item in (answer if isinstance(answer, list) else [answer])]
    return [text.strip() for text in texts if text.strip()]


def own_examples(records: Iterable[tuple[str, Any]], task: ConfigDict) -> OwnExamples:
    """Makes examples from the (where, record) pairs of one split.

    Raises:
      UserError: a record is not as it must be; names file and record.
    """
    made, seen, columns = OwnExamples(), {}, read_columns(task.columns)
    for where, found in records:
        record = _renamed(found, columns, where)
        id = _text(record["id"], f"{where}: field 'id'") if "id" in record else where.rpartition(", ")[2]
        if not id.strip():
            raise UserError(f"{where}: the id is empty; write one, or leave the field out of every record")
        if id in seen:
            raise UserError(f"{where}: the id {id!r:.60} is that of {seen[id]}; ids must be unique")
        seen[id] = where
        prompt, answers = _prompt(record["prompt"], task, where), _answers(record, where)
        made.worked += any(WORKED in text and not text.startswith(WORKED) for text in answers)
        reason = "" if answers else "empty answer"
        if answers and task.answer_after:
            parts = [text.rpartition(task.answer_after) for text in answers]
            answers = [answer.strip() for _, marker, answer in parts if marker and answer.strip()]
            reason = "" if answers else f"no answer after task.answer_after={task.answer_after!r}"
        if reason:
            made.left_out.setdefault(reason, []).append(id)
            continue
        aliases = [_text(alias, f"{where}: field 'aliases'") for alias in record.get("aliases", [])]
        if task.answer_after:  # in an alias it may be missing
            aliases = [alias.rpartition(task.answer_after)[2] for alias in aliases]
        if not all(alias.strip() for alias in aliases):
            raise UserError(f"{where}: field 'aliases' holds an empty text, which an empty answer matches; remove it")
        others = dict.fromkeys((*answers[1:], *(alias.strip() for alias in aliases)))
        made.examples.append(Example(id, prompt, answers[0], tuple(x for x in others if x != answers[0])))
        made.prompts.append(hash_id(_prompt_text(record["prompt"])))
    return made
