"""Defines UserError, whose message is for the person at the keyboard, and how it ends a program.

`one_sentence` wraps every command. An OSError, such as an unreadable file, a full disk or a closed terminal, ends there
in one sentence too (`sentence`), unless code closer to it gave a better one.
"""

import atexit
import contextlib
import errno
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO


class UserError(ValueError):
    """A mistake in a flag, a config field or an input file.

    The message says which file, field or flag, what was found there and what to do. The entry points print it without
    a traceback and exit with `status`.
    """

    status = 2


class InUseError(UserError):
    """Another process works in the folder: not a mistake, and the same command may succeed later."""

    status = 75  # EX_TEMPFAIL


class LostProcessError(UserError):
    """Another process of the run has ended or cannot be reached."""

    status = 1


_GONE = ("Gloo", "NCCL", "Connection reset by peer", "Connection closed by peer", "Socket closed")  # said by jax
_fail: Callable[[str, int, str, bool], NoReturn] | None = None


def end_by(fail: Callable[[str, int, str, bool], NoReturn]) -> None:
    """Has `fail(message, status, written, follows)`, see `failures.Watch.fail`, end this process when it fails."""
    global _fail
    _fail = fail


def lost_process(error: BaseException) -> str:
    """Says that another process of the run is gone, if an error of jax comes from that; "" otherwise."""
    text = str(error)
    if isinstance(error, LostProcessError):
        return text
    if type(error).__name__ not in ("JaxRuntimeError", "ValueError") or not any(sign in text for sign in _GONE):
        return ""
    reason = shortened(" ".join(text.split()).rpartition("Error dispatching computation: ")[2])
    return f"another process of the run has ended or cannot be reached, and its own output says why ({reason})"


_REMEDIES: dict[tuple[int, ...], str] = {
    (errno.EACCES, errno.EPERM): "make it readable and writable for this user, or name another place",
    (errno.EROFS,): "name a place that can be written",
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "make room there: the same command then continues",
    (errno.ENOENT,): "check the path",
    (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY): "name another place, or remove what is there",
    (errno.ENAMETOOLONG,): "choose a shorter name",
    (errno.ELOOP,): "remove the link that leads back to itself",
    (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENXIO): (
        "the disk or the network file system does not answer: check it, then the same command again"
    ),
    (errno.EMFILE, errno.ENFILE): "raise the limit on open files (ulimit -n), then the same command again",
    (errno.ENOMEM, errno.EAGAIN): "end other programs or raise this one's limits, then the same command again",
}
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LONGEST, _LONGEST_MESSAGE = 200, 4000  # characters of a name, and of a message


def sentence(error: OSError) -> str:
    """Describes in one sentence what the operating system refused, where, and what to do."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    where = " and ".join(shortened(os.fsdecode(name)) for name in dict.fromkeys(names))
    links = [os.fsdecode(name) for name in names if os.path.islink(name) and not os.path.exists(name)]
    if links:
        return f"{shortened(links[0])} is a link to {os.readlink(links[0])}, which is not there; remove or mend it"
    reason = shortened(error.strerror or (str(error) or type(error).__name__).splitlines()[0].rstrip("."))
    remedy = next((what for numbers, what in _REMEDIES.items() if error.errno in numbers), "")
    remedy = remedy or "check that place, the disk and the network, then the same command again"
    if not where and not os.path.exists(os.curdir):
        where, remedy = "the working directory", "it was removed: change to one that is there"
    return f"{where}: {reason}; {remedy}" if where else f"{reason}; {remedy}"


def shortened(text: str, most: int = _LONGEST) -> str:
    """Cuts the middle out of text of more than `most` characters, such as a name that is too long for a message."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 4 :]}"


def visible(text: str) -> str:
    """Escapes characters that terminals and pages obey: \\x1b[2J clears a terminal, \\u202e reverses text.

    These are the control characters, except line breaks and tabs, and those that set the direction of text.
    """
    return _OBEYED.sub(lambda found: rf"\x{code:02x}" if (code := ord(found[0])) < 256 else rf"\u{code:04x}", text)


def as_name(text: str) -> str:
    """Writes a name found in a file, such as an example's id, for a message: one line, at most 60 characters."""
    return shortened(visible(" ".join(text.split())), 60)


@contextmanager
def one_sentence(*, is_process: bool = False) -> Iterator[None]:
    """Turns a UserError or OSError of an entry point into one sentence and exit status 2.

    A folder in use by another process gives status 75 (InUseError), Ctrl-C 130, a closed pipe 141. Closed standard
    streams are replaced by the null device, and output streams accept every character, whatever the locale.

    Args:
      is_process: the process ends with the block; a second Ctrl-C meanwhile is quiet, with the same status.
    """
    _open_streams()
    try:
        yield
        _flush(sys.stdout)  # what print buffered, so that its failure is reported too
    except UserError as error:
        _end(f"error: {error}", error.status, follows=isinstance(error, LostProcessError))
    except KeyboardInterrupt as stop:
        if is_process:
            _leave_quietly()
        stays = str(stop) or "what was saved stays, the same command continues from it"
        _end(f"stopped by SIGINT; {stays}", 128 + signal.SIGINT)
    except SystemExit:  # such as a stopped run, which waits for programs that threads compile
        if is_process:
            _leave_quietly()
        raise
    except BrokenPipeError:  # `| head` has read enough
        if _fail:
            _fail("its standard output was closed", 128 + signal.SIGPIPE, "", False)
        sys.exit(128 + signal.SIGPIPE)
    except MemoryError:
        _end("error: this machine has not enough free memory for that; end other programs, or choose smaller settings")
    except OSError as error:
        _end(f"error: {_full_stream(error)}{sentence(error)}")
    except Exception as error:  # a defect, told by its traceback
        if _fail and (lost := lost_process(error)):
            _end(f"error: {lost}", 1, follows=True)
        if _fail:
            reason = (str(error) or "no message").splitlines()[0]
            told = f"{type(error).__name__}: {shortened(reason)}; its own output has the traceback"
            _fail(told, 1, traceback.format_exc(), False)
        raise
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                _flush(stream)
            except OSError:
                _silence(stream)


def _leave_quietly() -> None:
    """Lets another Ctrl-C end the process at once, with nothing said."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # Python removes handlers at exit


def _end(message: str, status: int = 2, *, follows: bool = False) -> NoReturn:
    """Prints a message as one line and exits; `follows` if the cause is that another process of the run has ended."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()  # keeps the order in a log of both streams
    line = one_line(message)
    if _fail:
        _fail(line.removeprefix("error: "), status, line, follows)
    print_line(line)
    sys.exit(status)


def one_line(message: str) -> str:
    """Writes a message as one line of at most 4,000 characters, none of which a terminal obeys."""
    return visible(shortened(" ".join(message.splitlines()), _LONGEST_MESSAGE))


def print_line(text: str) -> None:
    """Prints text, unless it is empty, on stderr, or on stdout if stderr cannot be written."""
    for stream in (sys.stderr, sys.stdout) if text else ():
        with contextlib.suppress(OSError, ValueError):
            print(text, file=stream, flush=True)
            break


def _open_streams() -> None:
    """Points closed standard streams at the null device: a file opened later would otherwise take their number."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number and not _is_open(number):
                os.dup2(opened, number)
                opened = number
            setattr(sys, name, open(opened, mode, encoding="utf-8", closefd=False))  # noqa: SIM115, it stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # each line reaches a log at once


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _flush(stream: TextIO) -> None:
    if not stream.closed:
        stream.flush()


def _full_stream(error: OSError) -> str:
    """Names the standard stream that cannot be written, if it caused an error that names no file; "" otherwise."""
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF):
        for name, stream in (("standard output", sys.stdout), ("standard error", sys.stderr)):
            try:
                print(file=stream, flush=True)
            except OSError:
                return f"{name}: "
    return ""


def _silence(stream: TextIO) -> None:
    """Points a stream at the null device, so that Python's own flush at exit does not fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        stream.flush()
