"""Records from files that people bring: JSON arrays or JSON lines, with the file and record named when one is wrong."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tsallis_rl.runs.errors import UserError

Record = Mapping[str, Any]
Kind = Any  # a type, a tuple of alternatives, or [kind] for a list

# Fields by which a record of one release is recognised when it lies in another task's folder.
_SIGNATURES = {
    "FinQA": {"pre_text", "post_text", "table", "qa"},
    "HotPotQA": {"_id", "context", "question"},
    "MuSiQue": {"paragraphs", "question_decomposition"},
}


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8, "
            "or download it again"
        ) from None


def _array(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON array one at a time, so that an error names the record that it stands in."""
    decoder, space = json.JSONDecoder(), json.decoder.WHITESPACE
    position, index = space.match(text, text.index("[") + 1).end(), 0
    if text[position : position + 1] == "]":
        return
    while True:
        where = f"record {index} (the first is 0)"
        try:
            value, position = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}, {where}: not valid JSON, or cut off ({error}); download the file again") from None
        yield where, value
        position = space.match(text, position).end()
        if text[position : position + 1] == "]":
            return
        if text[position : position + 1] != ",":
            raise UserError(
                f"{path}, after {where}: the array breaks off at character {position}; download the file again"
            )
        position, index = space.match(text, position + 1).end(), index + 1


def _lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number}: not valid JSON, or cut off ({error}); expected one object a line, or one "
                    "array of objects"
                ) from None


def read_records(path: Path, fields: Mapping[str, Kind]) -> Iterator[tuple[str, Record]]:
    """Yields (where, record) from a JSON array or from JSON lines, whichever the file holds.

    Args:
      path: the file.
      fields: field that every record must have -> its kind.

    Raises:
      UserError: the file cannot be read, is not UTF-8, not JSON, cut off or empty, or a record lacks a field; names
        the file, the record and what to do.
    """
    text = _text(path)
    count = 0
    for where, record in (_array if text.lstrip()[:1] == "[" else _lines)(text, path):
        where = f"{path}, {where}"
        check_fields(record, fields, where)
        count += 1
        yield where, record
    if not count:
        raise UserError(f"{path} holds no records; download or write the file again")


def fits(value: Any, kind: Kind) -> bool:
    """Whether a JSON value is of a kind; true and false are no numbers, though Python's bool is an int."""
    if isinstance(kind, list):
        return isinstance(value, list) and all(fits(item, kind[0]) for item in value)
    if isinstance(kind, tuple):
        return any(fits(value, one) for one in kind)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _name(kind: Kind) -> str:
    if isinstance(kind, list):
        return f"list of {_name(kind[0])}"
    return " or ".join(map(_name, kind)) if isinstance(kind, tuple) else kind.__name__


def check_fields(record: Any, fields: Mapping[str, Kind], where: str) -> None:
    """Raises UserError unless `record` is an object that holds `fields`, each of its kind, all text being Unicode."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with the fields {', '.join(fields)}, found {record!r:.60}")
    for field, kind in fields.items():
        if field not in record:
            looks = [name for name, signature in _SIGNATURES.items() if signature <= record.keys()]
            raise UserError(
                f"{where}: field {field!r} is missing"
                + (f"; this is a {looks[0]} record, is it the right file?" if looks else "")
                + f" (fields found: {', '.join(sorted(record)[:12]) or 'none'})"
            )
        if not fits(record[field], kind):
            raise UserError(f"{where}: field {field!r} is {record[field]!r:.60}, expected {_name(kind)}")
        try:
            json.dumps(record[field], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: field {field!r} holds half of a surrogate pair; the text was cut inside a character, "
                "write it again"
            ) from None
