"""Counts the seconds in which programs are compiled, those read from the cache apart, and tells which one is.

What other threads than the main one compile is left out, as nothing waits for it; where something does, the wait is
counted.
"""

import functools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

LOWERING = "/jax/core/compile/jaxpr_to_mlir_module_duration"
COMPILING = "/jax/core/compile/backend_compile_duration"  # of a program that is read from the cache as well
READING = "/jax/compilation_cache/cache_retrieval_time_sec"


class CompileSeconds(NamedTuple):
    """Seconds of this process so far.

    Attributes:
      compiled: of lowering programs and compiling those that the cache lacked.
      cached: of reading programs from the cache.
    """

    compiled: float = 0.0
    cached: float = 0.0

    def since(self, before: "CompileSeconds") -> "CompileSeconds":
        """Returns what was added after `before`."""
        return CompileSeconds(self.compiled - before.compiled, self.cached - before.cached)


class Program(NamedTuple):
    """A program that is compiled.

    Attributes:
      name: of the function.
      began: as time.time() has it.
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
        import jax  # here, so that a command without it may show a bar

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
    """Returns the program that is compiled, or read from the cache, at this moment; None where none is."""
    return _clock().under_way if "jax" in sys.modules else None


@contextmanager
def waiting(name: str) -> Iterator[None]:
    """Counts the block as compiling a program of that name, which another thread compiles."""
    clock, began = _clock(), time.perf_counter()
    clock.under_way = Program(name, time.time())
    try:
        yield
    finally:
        clock.under_way = None
        clock.seconds = clock.seconds._replace(compiled=clock.seconds.compiled + time.perf_counter() - began)
