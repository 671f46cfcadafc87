"""The one reader of JSON that comes from outside, from models and from runs (data sets: `tasks.record_files`).

Reading has three failures, each of them one sentence that says what to do: the file is not there, it cannot be read, it
is not what it should be.
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
LARGEST = 1e30  # of a number that a page or a figure shows


def read_object(file: Path, remedy: str = COPY_AGAIN) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
      file: the file.
      remedy: what to do when it cannot be used; the end of the sentence.

    Raises:
      UserError: the file is not there, cannot be read, is not JSON, or holds something else than an object.
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
    """Reads the objects of a file that a run appends to, one a line.

    A file that is not there has no lines. A line that was cut short, as a run that is killed leaves it, is left out.

    Raises:
      UserError: the file is there and cannot be read.
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
    """Returns a number that can be computed with, drawn and written; None for whatever else JSON holds in its place.

    That is another type, true and false, NaN, infinities, and numbers beyond ±1e30, which may have hundreds of digits.
    """
    return value if type(value) in (int, float) and -LARGEST <= value <= LARGEST else None


def _check_kind(file: Path, remedy: str) -> None:
    """Refuses pipes and devices, which may be waited for without end, in the place of a file that a program wrote."""
    with contextlib.suppress(OSError):  # which `_read` tells
        mode = file.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{file} is a pipe or a device, no file; {remedy}")


def _read(file: Path, remedy: str) -> bytes:
    """Reads a whole file; a file that is not there and one that cannot be read are two sentences."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{absent(file)}; {remedy}") from None
    except OSError as error:
        raise UserError(f"{shortened(str(file))} cannot be read ({error.strerror or error}); {remedy}") from None
