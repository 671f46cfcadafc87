"""Cache files that are checked when they are read: a damaged or foreign one is made again."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tsallis_rl.runs.cache import beside, remove_left, write_whole
from tsallis_rl.runs.paths import check_no_device


def sha256(file: Path) -> str:
    """Hashes a file, "" if it cannot be read, or is a pipe or a device."""
    try:
        check_no_device(file)
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return ""


def write_checked(file: Path, value: Any) -> None:
    """Writes a JSON value after its digest.

    Raises:
      UserError: it cannot be written.
    """
    text = json.dumps(value)
    write_whole(file, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())


def read_checked(file: Path) -> Any:
    """Reads what `write_checked` wrote; None if there is no such file, or it was changed."""
    try:
        check_no_device(file)
        digest, _, text = file.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    return json.loads(text)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all its content."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def whole_folder(folder: Path, is_whole: Callable[[], bool]) -> Iterator[Path]:
    """Yields a temporary folder to write into, which becomes `folder` at the end: whole or not at all.

    A `folder` that exists and is not whole is replaced; if two processes write the same one, the first one's stays.
    """
    remove_left(folder)
    partial = beside(folder)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        if folder.exists() and not is_whole():
            remove(folder)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@functools.cache
def code_digest() -> str:
    """Hashes the code of this package, on which all cached examples and ids depend."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
