"""Shows progress: a bar on a terminal, elsewhere a line every 30 seconds. All bars are made here.

If stderr is not a terminal, as in a Slurm log, a bar writes nothing itself. Inside `reporting`, a thread looks at the
open bars each second and prints where they stand, and also whether a step, or compiling a program, takes long.
"""

import contextlib
import io
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from tsallis_rl.runs.compiling import Program, under_way

EVERY = 30.0  # seconds between two lines of a log, at most
TICK = 1.0  # seconds between two looks
LONG = 5.0  # seconds of compiling after which a line names the program
VERY_LONG = 10.0  # seconds of compiling after which a line also reports its end
LABEL = 13  # columns of the label in a line of a run's description

_speaks = True


def speaks() -> bool:
    """Returns whether this process is the one that prints; does not start jax."""
    return _speaks


def be_silent() -> None:
    """Leaves printing to another process, for good."""
    global _speaks
    _speaks = False


class _Nowhere(io.StringIO):
    """A stream that discards what bars draw when there is no terminal."""

    def write(self, text: str) -> int:
        """Discards the text."""
        return len(text)


_NOWHERE = _Nowhere()


def width(text: str) -> int:
    """Counts the columns that a text takes on a terminal: none for a combining mark, two for a wide character."""
    return sum(0 if unicodedata.combining(x) else 1 + (unicodedata.east_asian_width(x) in "FW") for x in text)


def labelled(name: str, text: str) -> str:
    """Formats a line of a run's description: a label and its text."""
    return f"{f'{name}:':<{LABEL}}{text}"


def count_of(number: int, noun: str) -> str:
    """Writes a number and its noun: "1 step", "1,000 steps"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def on_terminal() -> bool:
    """Returns whether stderr is a terminal that has a size; without a size, tqdm would draw no bar."""
    with contextlib.suppress(AttributeError, ValueError, OSError):  # stderr is missing or closed
        return sys.stderr.isatty() and min(os.get_terminal_size(sys.stderr.fileno())) > 0
    return False


def span(seconds: float) -> str:
    """Formats a time as 1:05 or 2:01:05."""
    return tqdm.format_interval(seconds).removeprefix("0")


class Bar(tqdm):
    """A progress bar, on a terminal or in a log (see the module); takes the options of tqdm.

    Attributes:
      note: shown after the bar.
      more: shown after the note in a log, where there is more room.
      called: in a log, the name of what is counted.
    """

    last_print_t: float

    def __init__(self, iterable: Iterable | None = None, desc: str = "", *, called: str = "", **options: Any):
        self.note, self.more, self.called = "", "", called
        self._first: tuple[float, float] | None = None  # n and time after the first update, which may have compiled
        self._seen: tuple[float, float] | None = None  # n at the last log line, and since when it is the same
        file = sys.stderr if speaks() and on_terminal() else _NOWHERE
        super().__init__(iterable, desc, dynamic_ncols=True, file=file, **{"disable": False} | options)

    def update(self, n: float | None = 1) -> bool | None:
        """Adds n to the count."""
        shown = super().update(n)
        self._first = self._first or (self.n, time.time())
        return shown

    def __str__(self) -> str:
        shown, program = self.format_dict, under_way()
        compiled = f"compiling {program.name}" if program and time.time() - program.began >= TICK else ""
        innermost = max((bar.pos for bar in open_bars()), key=abs, default=self.pos) == self.pos
        shown["postfix"] = (innermost and compiled) or self.note or None
        marks = sum(map(bool, map(unicodedata.combining, f"{shown['postfix']}")))  # tqdm counts a column for each mark
        columns = shown["ncols"]
        text = self.format_meter(**shown | {"ncols": columns and columns + marks})
        while columns and width(text) > columns:
            text = text[:-1]
        return text

    @staticmethod
    def status_printer(file: Any) -> Any:
        """Returns the function that replaces the bar's text on its line."""
        last = 0

        def show(text: str) -> None:
            nonlocal last
            file.write("\r" + text + " " * (last - width(text)))
            file.flush()
            last = width(text)

        return show

    def seconds_left(self, now: float | None = None) -> float | None:
        """Estimates the seconds to the end, leaving out the first update if there are more; None before any count."""
        now = time.time() if now is None else now
        n, began = self._first or (self.initial, self.start_t)
        if n == self.n:
            n, began = self.initial, self.start_t
        return None if self.total is None or n == self.n else (now - began) / (self.n - n) * (self.total - self.n)

    def said(self, now: float) -> str:
        """Describes where it stands, for a log."""
        if self._seen is None or self._seen[0] != self.n:
            self._seen = (self.n, now)
        if self.total is None and not self.n:
            return f"{self.desc} for {span(now - self.start_t)}"
        n, total = (tqdm.format_sizeof(x) if self.unit_scale else f"{x:,}" for x in (self.n, self.total or 0))
        counted = f"{n} of {total}" if self.total else n
        parts = [f"{self.desc}: {counted} {self.called or self.unit.strip()}"]
        left = self.seconds_left(now)
        parts += [f"{span(left)} left"] if left is not None else []
        parts += [x for x in (self.note, self.more) if x]
        since = self._seen[1]
        parts += [f"the next is under way for {span(now - since)}"] if now - since >= EVERY else []
        return ", ".join(parts)

    def tick(self, now: float) -> None:
        """Draws the bar again on its terminal, so that its clock runs on while nothing is counted."""
        with self.get_lock():
            if not self.disable and self.fp is not _NOWHERE and now >= self.start_t + self.delay:
                self.display()
                self.last_print_t = max(self.last_print_t, self.start_t + self.delay)  # so that close() clears it


def open_bars() -> list[Bar]:
    """Lists the open bars, the outermost first."""
    with Bar.get_lock():
        every = list(getattr(Bar, "_instances", ()))
    found = [bar for bar in every if isinstance(bar, Bar) and hasattr(bar, "start_t")]
    return sorted(found, key=lambda bar: abs(bar.pos))


def doing(what: str) -> Bar:
    """Makes a bar for work without countable parts; it is shown if the work takes more than a second."""
    return Bar(desc=what, leave=False, delay=1, bar_format="{desc}: {elapsed}{postfix}")


class Reporter:
    """Decides which lines are printed, and when.

    Args:
      now: the present time, as in time.time().
    """

    def __init__(self, now: float):
        self.said_at = now
        self._told: Program | None = None  # a line has said that it is being compiled

    def ended(self, now: float, program: Program | None) -> list[str]:
        """Returns the line that reports the end of compiling a named program, if it took very long; else no line."""
        told = self._told
        if told is None or told == program:
            return []
        self._told = None
        return [f"compiled {told.name} in {now - told.began:.0f} s"] * (now - told.began >= VERY_LONG)

    def lines(self, now: float, bars: list[Bar], program: Program | None, *, log: bool) -> list[str]:
        """Lists the lines that are due; with `log`, also those that replace bars."""
        self.said_at = min(self.said_at, now)  # the machine's clock may have been set back
        found = self.ended(now, program)
        if program and not self._told and now - program.began >= LONG:
            self._told = program
            found.append(f"compiling {program.name} …")
        if log and now + TICK > self.said_at + EVERY and (text := standing(now, bars, program)):
            found.append(text)
        if found:
            self.said_at = now
        return found


def standing(now: float, bars: list[Bar], program: Program | None) -> str:
    """Describes in one line where all current work stands; "" if there is none."""
    parts = [bar.said(now) for bar in bars]
    return "; ".join(parts + ([f"compiling {program.name} for {span(now - program.began)}"] if program else []))


_reporter: Reporter | None = None


def _after_fork() -> None:
    """Gives a forked child a new lock: it lacks the thread that may have held its parent's."""
    global _reporter
    _reporter = None
    tqdm.set_lock(threading.RLock())


tqdm.set_lock(threading.RLock())  # tqdm's own lock is shared with other processes
os.register_at_fork(after_in_child=_after_fork)


def say(line: str) -> None:
    """Writes a line on stderr, above the bars; of several processes, only the first does."""
    if not speaks():
        return
    now, reporter = time.time(), _reporter
    with Bar.get_lock():  # the reporter's thread writes lines too
        for text in (*(reporter.ended(now, under_way()) if reporter else ()), line):
            tqdm.write(text, file=sys.stderr)
        if reporter:
            reporter.said_at = now


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Reports progress inside the block, from a thread that ends with it; nested, it does nothing."""
    global _reporter
    if _reporter:
        yield
        return
    _reporter, ended = Reporter(time.time()), threading.Event()
    thread = threading.Thread(target=_report, args=(_reporter, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        _reporter = None
        ended.set()
        thread.join(EVERY)  # not for ever: stderr may be a pipe that nobody reads


def _report(reporter: Reporter, ended: threading.Event) -> None:
    """Looks each second until the end, or until the stream cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        while not ended.wait(TICK):
            now = time.time()
            with Bar.get_lock():
                bars = open_bars()
                for line in reporter.lines(now, bars, under_way(), log=not on_terminal()):
                    say(line)
                for bar in bars:
                    bar.tick(now)
