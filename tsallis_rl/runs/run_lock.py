"""One owner of a run directory: a lock that the kernel drops when its process ends, however it ends.

A file system without locks has the file owner.held instead: made by one process alone, and left behind by one that is
killed.
"""

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tsallis_rl.runs.cache import writing
from tsallis_rl.runs.errors import UserError


def described(text: str) -> tuple[str | None, str]:
    """The owner's host, and who it is in words."""
    try:
        owner = json.loads(text)
        return owner["host"], f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, "an unknown process"


def in_use(folder: Path) -> bool:
    """Whether a process owns the run in `folder`; one of another host is believed. Takes no lock."""
    try:
        owner = json.loads((folder / "owner.lock").read_text())
        host, pid = owner["host"], int(owner["pid"])
    except (OSError, ValueError, TypeError, KeyError):
        return False  # given back, or never taken
    if host == socket.gethostname():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's
    return True


def self_described() -> tuple[str, str]:
    """This host, and this process as `described` reads it."""
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
    return owner["host"], json.dumps(owner)


@contextmanager
def _locked(folder: Path, lock: TextIO) -> Iterator[bool]:
    """Holds the kernel's lock of `lock`; yields False where there are none, and owner.held is held instead."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder} belongs to {described(lock.read())[1]}; stop that one first") from None
    except OSError:
        held = folder / "owner.held"
        try:
            held.touch(exist_ok=False)
        except FileExistsError:
            raise UserError(
                f"{folder} belongs to {described(lock.read())[1]}; its file system has no locks, so that nobody sees "
                f"whether that one has ended: if it has, remove {held}"
            ) from None
        try:
            yield False
        finally:
            held.unlink()
    else:
        yield True


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Holds owner.lock in `folder`, made if need be; the file names host, pid and start time while it is held.

    Raises:
      UserError: another process holds it, or one of another host has not given it back, or it cannot be written.
    """
    file, (host, me) = folder / "owner.lock", self_described()
    with writing(file):
        folder.mkdir(parents=True, exist_ok=True)
        lock = file.open("a+", errors="replace")
    with lock:
        lock.seek(0)
        with _locked(folder, lock) as by_kernel:
            left = lock.read()
            if left:
                other_host, who = described(left)
                # Not every network file system tells hosts of each other's locks.
                if by_kernel and other_host not in (None, host):
                    raise UserError(f"{folder} belongs to {who}; if that one has ended, remove {file}")
                print(f"{folder}: its last owner ({who}) did not give it back; it has ended, going on", file=sys.stderr)
            with writing(file):
                lock.truncate(0)
                lock.write(me)
                lock.flush()
            try:
                yield
            finally:
                lock.truncate(0)
