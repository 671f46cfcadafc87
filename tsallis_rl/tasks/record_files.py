"""Reads files record by record, never as a whole: JSON arrays and JSON lines, CSV and parquet, also in gzip.

Reading fails in three ways: the file is not there, cannot be read, or is not what it should be. Each is reported in one
sentence that says what to do.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import stat
import zlib
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import DOWNLOAD_AGAIN
from tsallis_rl.runs.paths import absent

_CHUNK = 1 << 20
MOST_DIGITS = 10_000  # of a number that is an answer
_DIGITS = 640  # of a whole number; Python may refuse to convert longer ones to int
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CUT_INSIDE = 16  # characters at the end of a chunk in which a number, a word or an escape may be cut


class Written(float):
    """A number with a point or an exponent, and its text, which may have more digits than a float.

    Attributes:
      text: as the file has it.
    """

    def __new__(cls, text: str) -> "Written":
        """Reads a number's text."""
        number = super().__new__(cls, text)
        number.text = text
        return number


class _FieldTwice(ValueError):
    """An object that has a field twice, of which a reader would silently take the last."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _FieldTwice(f"an object has the field {next(n for n in names if names.count(n) > 1)!r} twice")
    return made


def _whole(text: str) -> int | Decimal:
    return int(text) if len(text) <= _DIGITS else Decimal(text)


DECODER = json.JSONDecoder(parse_int=_whole, parse_float=Written, object_pairs_hook=_object)


def file_values(path: Path) -> Iterator[tuple[str, Any]]:
    """Reads the values of a data set's file one at a time; the end of its name tells CSV and parquet from JSON.

    Yields:
      (where, value); `where` names the record, the line or the row.

    Raises:
      UserError: the file is not there, cannot be read, is not what its name says, or is cut off; names the record.
    """
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    with _opened(path) as file:
        if suffix == ".parquet":
            yield from _parquet(file, path)
        elif suffix in (".csv", ".tsv"):
            yield from _csv(file, path, "\t" if suffix == ".tsv" else ",")
        else:
            yield from _json(file, path)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a file, unpacking gzip; errors here, and while the file is read, become one sentence."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{path} is a pipe or a device, which may be read without end; write a file")
        with path.open("rb") as raw, contextlib.ExitStack() as stack:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            yield stack.enter_context(gzip.open(raw)) if packed else raw
    except FileNotFoundError:
        raise UserError(f"{absent(path)}; check the path, or download it again") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is cut off or damaged ({error}); {DOWNLOAD_AGAIN}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path, or download it again") from None


def _not_utf8(path: Path, line: int, byte: int) -> UserError:
    return UserError(
        f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8, or download it again"
    )


def _json(file: BinaryIO, path: Path) -> Iterator[tuple[str, Any]]:
    """Reads an array or lines, whichever the file holds."""
    file = io.BufferedReader(file, _CHUNK) if isinstance(file, gzip.GzipFile) else file
    if file.peek(3)[:3] == _BYTE_ORDER_MARK:
        file.read(3)
    blank = 0  # lines before the first value
    while (first := file.peek(1)[:1]) and first in b" \t\r\n":
        blank += file.read(1) == b"\n"
    yield from (_array(_Text(file, path, blank + 1)) if first == b"[" else _lines(file, path, blank + 1))


def _lines(file: BinaryIO, path: Path, start: int) -> Iterator[tuple[str, Any]]:
    """Reads a value a line; only \\n ends a line, since a string may hold other line separators."""
    for number, line in enumerate(file, start):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, line[error.start]) from None
        if not text.strip():
            continue
        where = f"line {number}"
        try:
            yield where, DECODER.decode(text)
        except _FieldTwice as error:
            raise UserError(f"{path}, {where}: {error}; remove one") from None
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, {where}: not valid JSON, or cut off ({error}); expected one object a line, or one array of "
                "objects"
            ) from None


class _Text:
    """Text of a file, read as it is needed; consumed text is dropped."""

    def __init__(self, file: BinaryIO, path: Path, line: int):
        self.path, self._file, self._line = path, file, line
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._before, self._ended = "", 0, 0, False

    @property
    def position(self) -> int:
        """Number of characters before what is read next."""
        return self._before + self._at

    def _more(self, size: int) -> bool:
        """Reads `size` further bytes; returns False at the end of the file."""
        if self._ended:
            return False
        data = self._file.read(size)
        self._ended = not data
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._line + error.object.count(b"\n", 0, error.start)
            raise _not_utf8(self.path, line, error.object[error.start]) from None
        self._line += data.count(b"\n")
        self._text, self._before, self._at = self._text[self._at :] + text, self.position, 0
        return True

    def peek(self) -> str:
        """Skips white space and returns the next character, "" at the end of the file."""
        while True:
            self._at = json.decoder.WHITESPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_CHUNK):
                return ""

    def skip(self) -> None:
        """Skips the character that `peek` returned."""
        self._at += 1

    def value(self, where: str) -> Any:
        """Reads one JSON value, with ever longer parts of the file until it is complete."""
        self.peek()
        while True:
            wanted = max(_CHUNK, len(self._text) - self._at)
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                if end + 2 < len(self._text) or not self._more(wanted):  # else "1e+" may be cut after the 1
                    self._at = end
                    return value
            except _FieldTwice as error:
                raise UserError(f"{self.path}, {where}: {error}; remove one") from None
            except (ValueError, RecursionError) as error:
                message, place = getattr(error, "msg", str(error)), getattr(error, "pos", 0)
                cut = place > len(self._text) - _CUT_INSIDE or message.startswith("Unterminated string")
                if isinstance(error, RecursionError) or not cut or not self._more(wanted):
                    raise UserError(
                        f"{self.path}, {where}: not valid JSON, or cut off ({message} at character "
                        f"{self._before + place}); {DOWNLOAD_AGAIN}"
                    ) from None


def _array(text: _Text) -> Iterator[tuple[str, Any]]:
    """Reads the elements of an array one at a time, so that an error names its record."""
    text.peek()
    text.skip()
    index = 0
    while index or text.peek() != "]":
        where = f"record {index} (the first is 0)"
        yield where, text.value(where)
        mark = text.peek()
        if mark == "]":
            break
        if mark != ",":
            raise UserError(
                f"{text.path}, after {where}: the array breaks off at character {text.position}; {DOWNLOAD_AGAIN}"
            )
        text.skip()
        index += 1
    text.skip()
    if found := text.peek():
        raise UserError(
            f"{text.path}: after the array's end, at character {text.position}, there is {found!r}, which would not be "
            "read; make it one array, or one object a line"
        )


def _csv(file: BinaryIO, path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Reads rows under a line of column names; every row must have as many fields as there are columns."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    number = 1
    try:
        csv.field_size_limit(1 << 30)
        names = next(rows, [])
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path}, line 1: two columns are named {twice!r}; rename one")
        if len(names) == 1 and (other := next((sign for sign in ";\t|," if sign in names[0]), "")):
            raise UserError(
                f"{path}, line 1: the columns are separated by {other!r}, expected {delimiter!r}; write it again "
                "with commas as .csv, or with tabs as .tsv"
            )
        for row in rows:
            start, number = number + 1, rows.line_num
            if not row:
                continue
            if len(row) != len(names):
                raise UserError(
                    f"{path}, line {start}: {len(row)} fields, the first line names {len(names)} columns "
                    f"({', '.join(names)[:200]}); put a field that holds {delimiter!r} into double quotes"
                )
            yield f"line {start}", dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {number + 1}: not valid CSV ({error}); write it again") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, after line {number}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as "
            "UTF-8, or download it again"
        ) from None


def _parquet(file: BinaryIO, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads rows with pyarrow, in batches."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: parquet files need pyarrow; pip install 'tsallis_rl[data]'") from None
    try:
        opened, index = pyarrow.parquet.ParquetFile(file), 0
        names = opened.schema_arrow.names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path}: two columns are named {twice!r}; rename one")
        for batch in opened.iter_batches(256):
            columns = [_arrow_values(column, path, name) for name, column in zip(names, batch.columns, strict=True)]
            for row in zip(*columns, strict=True):
                yield f"row {index} (the first is 0)", dict(zip(names, row, strict=True))
                index += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is no parquet file, or damaged ({error}); write it again") from None


def _arrow_values(column: Any, path: Path, name: str) -> list[Any]:
    """Converts an arrow column to Python values."""
    try:
        values = column.to_pylist()
        return [shortest(value, column.type) for value in values] if is_short(column.type) else values
    except (ValueError, OverflowError) as error:  # a text that is not UTF-8, a date beyond the year 9999, …
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}, column {name!r} of {column.type}: a value cannot be read ({reason}); write the column again as "
            "text, or leave it out"
        ) from None


def is_short(kind: Any) -> bool:
    """Returns whether an arrow type has numbers of half or single precision anywhere in it."""
    return "float" in str(kind)


def shortest(value: Any, kind: Any) -> Any:
    """Gives numbers of half and single precision the shortest text that means them: 0.1, not 0.10000000149011612.

    Args:
      value: value that arrow's `to_pylist` returned.
      kind: its arrow type.
    """
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return shortest(value, kind.value_type)
    if value is None:
        return value
    if types.is_float16(kind) or types.is_float32(kind):
        short = str((np.float16 if types.is_float16(kind) else np.float32)(value))
        return value if float(value).is_integer() else Written(short)
    if types.is_struct(kind) and isinstance(value, Mapping):  # an image from the hub is no mapping here
        return {field.name: shortest(value[field.name], field.type) for field in kind}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [shortest(item, kind.value_type) for item in value]
    return value


def number_text(number: int | float | Decimal, where: str) -> str:
    """Writes a number as text, with every digit that the file has: 5, 2.50 → 2.5, 3.0 → 3, 1e3 → 1000, -0.0 → 0.

    Raises:
      UserError: it is no finite number, or takes more than 10,000 digits.
    """
    if isinstance(number, int):
        return str(number)
    long = UserError(f"{where} is a number of more than {MOST_DIGITS:,} digits; write it as text")
    try:
        exact = number if isinstance(number, Decimal) else Decimal(getattr(number, "text", repr(number)))
    except InvalidOperation:  # an exponent out of Decimal's range
        raise long from None
    if not exact.is_finite():
        raise UserError(f"{where} is {exact}, which is no number to train on; write the value that is meant, or text")
    _, digits, exponent = exact.as_tuple()
    if len(digits) + abs(exponent) > MOST_DIGITS:
        raise long
    text = f"{exact:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
