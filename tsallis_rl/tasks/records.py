"""Reads records of data sets and checks the kinds of their fields; errors name the file and the record."""

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.record_files import file_values

Record = Mapping[str, Any]
Kind = Any  # a type, a tuple of alternatives, or [kind] for a list

# Fields that identify a record of one release in another task's folder.
_SIGNATURES = {
    "FinQA": {"pre_text", "post_text", "table", "qa"},
    "HotPotQA": {"_id", "context", "question"},
    "MuSiQue": {"paragraphs", "question_decomposition"},
}


def read_records(path: Path, fields: Mapping[str, Kind]) -> Iterator[tuple[str, Record]]:
    """Reads records one at a time from JSON, CSV or parquet (`record_files`), and checks their fields.

    Args:
      path: the file.
      fields: field that every record must have -> its kind; empty: records are not checked.

    Yields:
      (where, record); `where` names file and record.

    Raises:
      UserError: the file cannot be read, is not UTF-8, not JSON, cut off or empty, or a record lacks a field; names
        the file, the record and what to do.
    """
    count = 0
    for position, record in file_values(path):
        where = f"{path}, {position}"
        if fields:
            check_fields(record, fields, where)
        count += 1
        yield where, record
    if not count:
        raise UserError(f"{path} holds no records; download or write the file again")


def fits(value: Any, kind: Kind) -> bool:
    """Returns whether a JSON value is of a kind; unlike in Python, true, false, NaN and Infinity are no numbers."""
    if isinstance(kind, list):
        return isinstance(value, list) and all(fits(item, kind[0]) for item in value)
    if isinstance(kind, tuple):
        return any(fits(value, one) for one in kind)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _name(kind: Kind) -> str:
    if isinstance(kind, list):
        return f"list of {_name(kind[0])}"
    if isinstance(kind, tuple):
        return " or ".join(_name(one) for one in kind if one is not Decimal)  # the type of a long whole number
    return kind.__name__


def _shown(value: Any) -> str:
    """Writes a value for a message, as the file spells it where Python spells it differently."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Decimal):
        return f"a number of {len(str(value).lstrip('-'))} digits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{getattr(value, 'text', value):.60}, which is no finite number"
    return f"{value!r:.60}"


def check_fields(record: Any, fields: Mapping[str, Kind], where: str) -> None:
    """Checks that a record is an object that holds `fields`, each of its kind, with all text valid Unicode.

    Raises:
      UserError: it is not; names the field, what was found and what was expected.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with the fields {', '.join(fields)}, found {_shown(record)}")
    for field, kind in fields.items():
        if field not in record:
            looks = [name for name, signature in _SIGNATURES.items() if signature <= record.keys()]
            raise UserError(
                f"{where}: field {field!r} is missing"
                + (f"; this is a {looks[0]} record, is it the right file?" if looks else "")
                + f" (fields found: {', '.join(sorted(record)[:12])[:300] or 'none'})"
            )
        if not fits(record[field], kind):
            raise UserError(f"{where}: field {field!r} is {_shown(record[field])}, expected {_name(kind)}")
        try:
            json.dumps(record[field], ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: field {field!r} holds half of a surrogate pair; the text was cut inside a character, "
                "write it again"
            ) from None
