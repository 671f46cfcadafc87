"""A pseudo-terminal of a given width, and what a person sees of the text written to it."""

import fcntl
import os
import pty
import re
import struct
import termios
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def opened(columns: int) -> Iterator[tuple[TextIO, int]]:
    """Opens a terminal; yields the stream that a program writes, and the file descriptor to read its text from."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        yield stream, master
    os.close(master)


def written(master: int) -> str:
    """Reads what was written so far."""
    os.set_blocking(master, False)
    found = b""
    try:
        while data := os.read(master, 1 << 16):
            found += data
    except OSError:
        pass
    return found.decode()


def screen(text: str, columns: int) -> list[str]:
    """Returns the lines that a person sees; a character that does not fit begins a line, as on a terminal."""
    lines, row, column = [[]], 0, 0
    for mark in re.findall(r"\x1b\[A|.", text, re.DOTALL):
        if mark == "\x1b[A":
            row = max(row - 1, 0)
        elif mark == "\r":
            column = 0
        elif mark == "\n":
            row += 1
        elif unicodedata.combining(mark):
            lines[row][column - 1] += mark
        else:
            if column == columns:
                row, column = row + 1, 0
            lines += [[] for _ in range(row + 1 - len(lines))]
            lines[row] += [" "] * (column + 1 - len(lines[row]))
            lines[row][column] = mark
            column += 1
        lines += [[] for _ in range(row + 1 - len(lines))]
    return ["".join(line).rstrip() for line in lines]
