"""The one reader of JSON that comes from outside, from models and from runs (data sets: `tasks.record_files`).

Reading has three failures, each of them one sentence that says what to do: the file is not there, it cannot be read, it
is not what it should be.
"""

import json
from pathlib import Path
from typing import Any

from tsallis_rl.runs.errors import UserError

COPY_AGAIN = "copy the folder again"
DOWNLOAD_AGAIN = "download the file again"


def read_object(file: Path, remedy: str = COPY_AGAIN) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
      file: the file.
      remedy: what to do when it cannot be used; the end of the sentence.

    Raises:
      UserError: the file is not there, cannot be read, is not JSON, or holds something else than an object.
    """
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
    objects = []
    for line in _read(file, "make it readable, or remove it").splitlines() if file.exists() else ():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            objects.append(found)
    return objects


def _read(file: Path, remedy: str) -> bytes:
    """Reads a whole file; a file that is not there and one that cannot be read are two sentences."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no {file}; {remedy}") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); {remedy}") from None
