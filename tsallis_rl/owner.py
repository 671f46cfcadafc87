"""One owner of a run directory: a lock that the kernel drops when its process ends, however it ends."""

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tsallis_rl.errors import UserError


def _described(text: str) -> tuple[str | None, str]:
    """The owner's host, and who it is in words."""
    try:
        owner = json.loads(text)
        return owner["host"], f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    except (ValueError, TypeError, KeyError):
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


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Holds owner.lock in `folder`, made if need be; the file names host, pid and start time while it is held.

    Raises:
      UserError: another process holds it, or one of another host has not given it back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, host = folder / "owner.lock", socket.gethostname()
    with file.open("a+") as lock:
        lock.seek(0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} belongs to {_described(lock.read())[1]}; stop that one first") from None
        left = lock.read()
        if left:
            other_host, owner = _described(left)
            if other_host not in (None, host):  # not every network file system tells hosts of each other's locks
                raise UserError(f"{folder} belongs to {owner}; if that one has ended, remove {file}")
            print(f"{folder}: its last owner ({owner}) did not give it back; it has ended, going on", file=sys.stderr)
        lock.truncate(0)
        lock.write(json.dumps({"host": host, "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}))
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)
