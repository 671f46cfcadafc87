"""Records from files that people bring: JSON arrays or JSON lines, with the file and record named when one is wrong."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsallis_rl.errors import UserError
from tsallis_rl.tasks.base import Example

Record = Mapping[str, Any]

# Fields by which a file of one of the known releases is recognised when it lies in another task's folder.
_SIGNATURES = {
    "FinQA": {"pre_text", "post_text", "table", "qa"},
    "HotPotQA": {"_id", "context", "supporting_facts"},
    "MuSiQue": {"paragraphs", "question_decomposition"},
}


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name the folder of the official files") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; convert the file to UTF-8 "
            "or download it again"
        ) from None


def _array(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON array one at a time, so that an error names the record that it stands in."""
    decoder = json.JSONDecoder()
    space = json.decoder.WHITESPACE
    position, index = space.match(text, text.index("[") + 1).end(), 0
    if text[position : position + 1] == "]":
        return
    while True:
        where = f"record {index} (the first is 0)"
        try:
            value, position = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(
                f"{path}, {where}: not valid JSON, or cut off ({error}); download or export the file again"
            ) from None
        yield where, value
        position = space.match(text, position).end()
        if text[position : position + 1] == "]":
            return
        if text[position : position + 1] != ",":
            raise UserError(
                f"{path}, after {where}: the array breaks off (expected ',' or ']' at character {position}); "
                "download or export the file again"
            )
        position, index = space.match(text, position + 1).end(), index + 1


def _lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number}: not valid JSON, or cut off ({error}); expected one JSON object a line, "
                    "or one JSON array"
                ) from None


def read_records(path: Path, fields: Mapping[str, type | tuple[type, ...]]) -> Iterator[tuple[str, Record]]:
    """Yields (where, record) from a JSON array or from JSON lines; which of the two is seen from the file.

    Args:
      path: the file.
      fields: field that every record must have -> its type.

    Raises:
      UserError: the file cannot be read, is not UTF-8, not JSON, cut off, empty, or a record lacks a field; the
        message names file and record.
    """
    text = _text(path)
    count = 0
    for where, record in (_array if text.lstrip()[:1] == "[" else _lines)(text, path):
        check_fields(record, fields, f"{path}, {where}")
        count += 1
        yield where, record
    if not count:
        raise UserError(f"{path} holds no records; download or export the file again")


def check_fields(record: Any, fields: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    """Raises UserError unless `record` is an object that holds `fields`, each of its type, all text being Unicode."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object, found a {type(record).__name__}")
    for field, kind in fields.items():
        if field not in record:
            found = ", ".join(sorted(record)[:12]) or "none"
            known = [name for name, signature in _SIGNATURES.items() if signature <= record.keys()]
            hint = f" (it looks like a {known[0]} record)" if known else ""
            raise UserError(f"{where}: field {field!r} is missing{hint}; its fields are: {found}")
        if not isinstance(record[field], kind) or (isinstance(record[field], bool) and kind is not bool):
            kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise UserError(f"{where}: field {field!r} is {record[field]!r:.60}, expected {kinds}")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])


def is_validation(id: str) -> bool:
    """Whether a development record belongs to validation (SHA-256 of its id, 8th byte even) or to test (odd)."""
    return _digest(id) % 2 == 0


def subset(examples: Sequence[Example], size: int) -> Sequence[Example]:
    """`size` examples, those whose ids have the least SHA-256, in their given order; 0 = all. The same in every run."""
    if not size or size >= len(examples):
        return examples
    chosen = set(sorted(range(len(examples)), key=lambda i: _digest(examples[i].id))[:size])
    return [example for i, example in enumerate(examples) if i in chosen]
