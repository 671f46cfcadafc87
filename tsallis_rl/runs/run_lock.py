"""The run lock: one process at a time works in a run directory.

It is a kernel lock on the file owner.lock; the kernel releases it when the process ends, in whatever way. The file
names the holder. On a file system without locks, the file owner.held serves as the lock; a killed process leaves it.

Removing the file removes its lock, and a second process may then make another. So before each write the holder checks
that the file still names it (`check_run_lock`), and stops otherwise.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from tsallis_rl.runs.cache import writing
from tsallis_rl.runs.errors import InUseError, UserError
from tsallis_rl.runs.paths import check_no_device

LOCK, HELD = "owner.lock", "owner.held"
_LONGEST = 4096  # characters of a lock's text
_held: dict[Path, str] = {}  # folder whose lock this process holds (`_names`) -> the text that it wrote into the file


class Holder(NamedTuple):
    """The process that a lock's text names.

    Attributes:
      host: its host; None if the text cannot be read.
      pid: its id there; 0 if the text cannot be read.
      words: how messages name the process.
    """

    host: str | None
    pid: int
    words: str


UNKNOWN = Holder(None, 0, "an unknown process")


def read_holder(text: str) -> Holder:
    """Reads a lock's text."""
    try:
        found = json.loads(text)
        host, pid, started = found["host"], found["pid"], found["started"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return UNKNOWN
    if not (isinstance(host, str) and type(pid) is int and 0 < pid < 2**31 and isinstance(started, str)):
        return UNKNOWN
    return Holder(host, pid, f"process {pid} on {host:.80}, started {started:.40}")


def lock_text(folder: Path) -> str:
    """Reads the head of the lock's file of a folder, which is long enough for all that a holder writes."""
    file = folder / LOCK
    check_no_device(file)
    with file.open(errors="replace") as opened:
        return opened.read(_LONGEST)


def describe_self() -> tuple[str, str]:
    """Returns this host, and this process as a lock's text."""
    host = socket.gethostname()
    holder = {"host": host, "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
    return host, json.dumps(holder)


def find_holder(folder: Path) -> Holder | None:
    """Finds the process that works in `folder`, or None. A file that names a process on another host is believed.

    For this host the kernel's lock decides: a killed process leaves its pid in the file, and another may have it now.
    """
    file = folder / LOCK
    with contextlib.suppress(OSError):  # never held
        check_no_device(file)
        with file.open(errors="replace") as lock:
            holder = read_holder(lock.read(_LONGEST))
            if holder.host and (holder.host != socket.gethostname() or _is_locked(lock, holder.pid)):
                return holder
    return None


def is_held(folder: Path) -> bool:
    """Returns whether a process works in `folder` (`find_holder`)."""
    return find_holder(folder) is not None


def _is_locked(lock: TextIO, pid: int) -> bool:
    """Returns whether a process of this host has the kernel's lock or, without locks, whether `pid` is alive."""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # held until the file is closed
    except BlockingIOError:
        return True
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's
        return True
    return False


def _names(folder: Path) -> set[Path]:
    """Returns a folder's path with and without symbolic links: a link may lead elsewhere by the next write."""
    return {folder.absolute(), folder.resolve()}


@contextmanager
def hold_run_lock(folder: Path) -> Iterator[None]:
    """Holds the run lock of `folder`, creating the folder if needed.

    Raises:
      InUseError: another process holds it.
      UserError: a process on another host did not release it, or it cannot be written.
    """
    file, (host, me) = folder / LOCK, describe_self()
    with writing(file):
        folder.mkdir(parents=True, exist_ok=True)
        check_no_device(file)
        lock = file.open("a+", errors="replace")
    with lock:
        lock.seek(0)
        with _hold(folder, lock) as by_kernel:
            left = lock.read(_LONGEST)
            if left:
                holder = read_holder(left)
                # Not every network file system shows one host's locks to another.
                if by_kernel and holder.host not in (None, host):
                    raise UserError(f"{folder} belongs to {holder.words}; if that one has ended, remove {file}")
                print(f"{folder}: {holder.words}, ended without releasing the run lock; continuing", file=sys.stderr)
            with writing(file):
                lock.truncate(0)
                if os.write(lock.fileno(), me.encode()) < len(me.encode()):  # a buffered file would retry at close
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            names = _names(folder)
            _held.update(dict.fromkeys(names, me))
            try:
                yield
            finally:
                lost = _lost(folder)
                for name in names:
                    del _held[name]
                if not lost:
                    lock.truncate(0)


def check_run_lock(folder: Path) -> None:
    """Refuses to go on if this process took the lock of `folder` and has lost it.

    Compares the text of the lock's file, which every holder writes: one small read, on any file system.

    Raises:
      UserError: the file was removed, cannot be read, or names another process.
    """
    if lost := _lost(folder):
        raise UserError(
            f"{lost} while this process worked in {folder}: the run may have another owner, and nothing more is "
            "written here; stop the other one if there is one, then the same command continues from the last checkpoint"
        )


def _lost(folder: Path) -> str:
    """Describes how this process lost the lock of `folder`; "" if it still has it, or never took it."""
    file = folder / LOCK
    me = next((_held[name] for name in _names(folder) if name in _held), None)
    if me is None:
        return ""
    try:
        found = lock_text(folder)
    except FileNotFoundError:
        return f"{file} was removed"
    except OSError as error:
        return f"{file} cannot be read ({error.strerror or error})"
    return "" if found == me else f"{file} names {read_holder(found).words} now"


def _lock(lock: TextIO) -> None:
    """Takes the kernel's lock; retries, because `find_holder` in another process takes it for a moment."""
    for _ in range(10):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.01)
    return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _hold(folder: Path, lock: TextIO) -> Iterator[bool]:
    """Holds the kernel's lock on `lock` and yields True; without kernel locks, holds owner.held and yields False.

    The package filelock (4.3) is not used: its substitute for flock handles only ENOSYS, while network file systems
    also return ENOLCK and EOPNOTSUPP; and it takes over a file that it judges stale.
    """
    try:
        _lock(lock)
    except BlockingIOError:
        holder = read_holder(lock.read(_LONGEST))
        raise InUseError(f"{folder} belongs to {holder.words}; stop that one first") from None
    except OSError:
        held = folder / HELD
        try:
            held.touch(exist_ok=False)
        except FileExistsError:
            holder = read_holder(lock.read(_LONGEST))
            raise UserError(
                f"{folder} belongs to {holder.words}; its file system has no locks, so nobody can tell "
                f"whether that process has ended: if it has, remove {held}"
            ) from None
        me = held.stat().st_ino
        try:
            yield False
        finally:
            with contextlib.suppress(OSError):  # removed meanwhile, and perhaps remade by another process
                if held.stat().st_ino == me:
                    held.unlink()
    else:
        yield True
