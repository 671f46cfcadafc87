"""Reads all JSON that comes from outside, from models and from runs (data sets: `tasks.record_files`).

Reading can fail in three ways, each reported by one sentence that says what to do: the file does not exist, it cannot
be read, or it does not hold what it should.
"""

import contextlib
import json
import stat
from pathlib import Path
from typing import Any

from tsallis_rl.runs.errors import UserError, shortened
from tsallis_rl.runs.paths import absent

COPY_AGAIN = "copy the folder again"
DOWNLOAD_AGAIN = "download the file again"
LARGEST = 1e30  # magnitude of a number on a page or in a figure


def read_object(file: Path, remedy: str = COPY_AGAIN) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
      file: the file.
      remedy: what to do when it cannot be used; the end of the sentence.

    Raises:
      UserError: the file does not exist, cannot be read, is not JSON, or does not hold an object.
    """
    _check_kind(file, remedy)
    data = _read(file, remedy)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds {found!r:.60} where an object {{…}} is expected; {remedy}")
    return found


def json_lines(file: Path) -> list[dict[str, Any]]:
    """Reads the objects of a file that a run appends to, one per line.

    Returns no objects if the file does not exist. Skips lines that were cut short, as a killed run leaves them.

    Raises:
      UserError: the file exists and cannot be read.
    """
    objects, remedy = [], "make it readable, or remove it"
    _check_kind(file, remedy)
    for line in _read(file, remedy).splitlines() if file.exists() else ():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            objects.append(found)
    return objects


def plain(value: Any) -> int | float | None:
    """Returns `value` if it is a number that can be computed with, drawn and written, and None otherwise.

    None stands for other types, true and false, NaN, infinities, and numbers beyond ±1e30, which may have hundreds of
    digits.
    """
    return value if type(value) in (int, float) and -LARGEST <= value <= LARGEST else None


def _check_kind(file: Path, remedy: str) -> None:
    """Refuses a pipe or a device in place of a file: reading it might never end."""
    with contextlib.suppress(OSError):  # `_read` reports it
        mode = file.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{file} is a pipe or a device, no file; {remedy}")


def _read(file: Path, remedy: str) -> bytes:
    """Reads a whole file; a missing file and an unreadable one raise different sentences."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{absent(file)}; {remedy}") from None
    except OSError as error:
        raise UserError(f"{shortened(str(file))} cannot be read ({error.strerror or error}); {remedy}") from None
