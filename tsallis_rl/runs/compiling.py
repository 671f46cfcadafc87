"""Counts seconds of compiling and, separately, of reading the cache; names the program being compiled.

Programs that other threads compile are not counted, because nothing waits for them; where something does wait, the
wait is counted.
"""

import functools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

LOWERING = "/jax/core/compile/jaxpr_to_mlir_module_duration"
COMPILING = "/jax/core/compile/backend_compile_duration"  # also reported for a program that is read from the cache
READING = "/jax/compilation_cache/cache_retrieval_time_sec"


class CompileSeconds(NamedTuple):
    """Seconds that this process has spent so far.

    Attributes:
      compiled: lowering programs, and compiling those that the cache lacked.
      cached: reading programs from the cache.
    """

    compiled: float = 0.0
    cached: float = 0.0

    def since(self, before: "CompileSeconds") -> "CompileSeconds":
        """Returns the seconds added since `before`."""
        return CompileSeconds(self.compiled - before.compiled, self.cached - before.cached)


class Program(NamedTuple):
    """A program that is being compiled.

    Attributes:
      name: the function's name.
      began: when compiling began, as in time.time().
    """

    name: str
    began: float


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class _Clock:
    """Listens to jax's own events from the moment it is made."""

    def __init__(self):
        self.seconds = CompileSeconds()
        self.under_way: Program | None = None
        self._was_cached = False
        import jax  # here, so that a command without jax can show a bar

        jax.monitoring.register_event_duration_secs_listener(self._ended)
        jax.monitoring.register_scalar_listener(self._began)

    def _began(self, event: str, value: float, *, fun_name: str = "", **_: object) -> None:
        if event == COMPILING and _in_main_thread():
            self._was_cached = False
            self.under_way = Program(fun_name.removeprefix("jit(").removesuffix(")"), time.time())

    def _ended(self, event: str, seconds: float, **_: object) -> None:
        if not _in_main_thread():
            return
        compiled, cached = self.seconds
        if event == COMPILING:
            self.under_way = None
        if event == LOWERING:
            compiled += seconds
        elif event == READING:
            self._was_cached = True
        elif event == COMPILING and self._was_cached:
            cached += seconds
        elif event == COMPILING:
            compiled += seconds
        self.seconds = CompileSeconds(compiled, cached)


@functools.cache
def _clock() -> _Clock:
    return _Clock()


def compile_seconds() -> CompileSeconds:
    """Returns the seconds since this was first called in the process."""
    return _clock().seconds


def under_way() -> Program | None:
    """Returns the program that is being compiled, or read from the cache; None if there is none."""
    return _clock().under_way if "jax" in sys.modules else None


@contextmanager
def waiting(name: str) -> Iterator[None]:
    """Counts the block as compiling the program `name`, for which it waits on another thread."""
    clock, began = _clock(), time.perf_counter()
    clock.under_way = Program(name, time.time())
    try:
        yield
    finally:
        clock.under_way = None
        clock.seconds = clock.seconds._replace(compiled=clock.seconds.compiled + time.perf_counter() - began)
