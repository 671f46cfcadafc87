"""Counts the seconds in which programs are compiled, and says which; programs read from the cache are counted apart."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax

LOWERING = "/jax/core/compile/jaxpr_to_mlir_module_duration"
COMPILING = "/jax/core/compile/backend_compile_duration"  # of a program that is read from the cache as well
READING = "/jax/compilation_cache/cache_retrieval_time_sec"
LARGE = 0.5  # seconds of lowering from which a program is worth a line: small ones compile in less than a second


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


class _Clock:
    """Listens to jax's own events from the moment it is made."""

    def __init__(self):
        self.seconds = CompileSeconds()
        self.tells = False
        self._lowered, self._was_cached = 0.0, False
        jax.monitoring.register_event_duration_secs_listener(self._ended)
        jax.monitoring.register_scalar_listener(self._began)

    def _began(self, event: str, value: float, *, fun_name: str = "", **_: object) -> None:
        if event == COMPILING:
            self._was_cached = False
            if self.tells and self._lowered >= LARGE:
                from tqdm import tqdm  # here, since it is wanted by runs alone

                tqdm.write(f"compiling {fun_name}, unless the cache has it", file=sys.stderr)

    def _ended(self, event: str, seconds: float, **_: object) -> None:
        compiled, cached = self.seconds
        if event == LOWERING:
            self._lowered = seconds
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


@contextmanager
def told_compiles() -> Iterator[None]:
    """Says inside, a line on stderr, which large programs are compiled, as each begins."""
    _clock().tells = True
    try:
        yield
    finally:
        _clock().tells = False
