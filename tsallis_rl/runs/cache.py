"""The user's cache folder: base models, tokenisers, prepared data, compiled programs."""

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tsallis_rl.runs.errors import UserError, shortened
from tsallis_rl.runs.paths import dangling, local_path

_DAY = 24 * 60 * 60  # seconds


def cache_folder(kind: str) -> Path:
    """Returns $TSALLIS_RL_CACHE/kind, or ~/.cache/tsallis_rl/kind."""
    root = os.environ.get("TSALLIS_RL_CACHE") or "~/.cache/tsallis_rl"
    return local_path(root, "TSALLIS_RL_CACHE").absolute() / kind


def keep_compiled_programs() -> None:
    """Lets jax keep what it compiles in the cache, and read it from there in later commands.

    If the folder cannot be made or written to, a note says so; what it lacks is then compiled anew by every command.
    JAX_COMPILATION_CACHE_DIR, which jax reads itself, names another folder; jax's other variables for that cache then
    apply as well.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    import jax  # here, because callers that cache only files do not need it

    from tsallis_rl.runs.progress import say

    folder = cache_folder("compiled")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = dangling(folder) or error.strerror
        say(f"NOTE: {folder} cannot be made ({reason}): what is compiled is not kept")
        jax.config.update("jax_compilation_cache_dir", None)
        return
    least = 0.5  # seconds that a program takes to compile, for it to be kept
    if not os.access(folder, os.W_OK):
        say(f"NOTE: {folder} cannot be written to: what is compiled is not kept")
        least = float("inf")  # jax would try, and warn of each program
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def fingerprint(settings: Any) -> str:
    """Hashes anything that JSON can write to twelve hexadecimal digits; equal settings give equal digits."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError of a block that writes `path`, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        above = (path, *path.parents) if error.errno in (errno.EEXIST, errno.ENOTDIR) else ()
        if file := next((part for part in above if part.is_file()), None):
            raise UserError(
                f"{shortened(str(path))} cannot be written ({file} is a file, where a folder is needed); move that "
                "file, or choose another folder"
            ) from error
        reason = "its name is too long" if error.errno == errno.ENAMETOOLONG else error.strerror or error
        raise UserError(
            f"{shortened(str(path))} cannot be written ({dangling(path) or reason}); make room there or make it "
            "writable: the same command then continues; or choose another folder"
        ) from error


def check_writable(folder: Path) -> None:
    """Refuses a folder that cannot be made or written to, minutes before it is needed; leaves nothing behind.

    Raises:
      UserError: it cannot be written.
    """
    with writing(folder):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
        with tempfile.TemporaryFile(dir=there) as file:  # in the nearest folder that exists
            file.write(bytes(4096))


@contextmanager
def reading(path: Path, remedy: str = "make it readable for this user") -> Iterator[None]:
    """Turns an OSError of a block that reads `path` into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{shortened(str(path))} cannot be read ({error.strerror or error}); {remedy}") from error


def beside(path: Path) -> Path:
    """Names a temporary file or folder beside `path`; a process id would not do: containers may have the same ones."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


def remove_left(path: Path) -> None:
    """Removes what killed processes left beside `path` a day ago or earlier; see `beside`."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _DAY:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, even if the process is killed or another process writes it too.

    Raises:
      UserError: it cannot be written.
    """
    partial = beside(path)
    with writing(path):
        anew = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            partial.replace(path)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
                if anew:
                    path.parent.rmdir()
            raise
