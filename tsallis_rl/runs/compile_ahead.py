"""Compiles programs in threads, so that they are ready when they are called.

Tracing and lowering hold the GIL and are done by the caller; XLA compiles without it. Compiled programs go into jax's
own caches, so a program that was not begun ahead is compiled by its call, as usual.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from tsallis_rl.runs.compiling import waiting
from tsallis_rl.runs.devices import host_cores

SPARE_CORES = 2  # of a host: left for running programs and for reading and writing


class Call(NamedTuple):
    """A call of a jitted function, made now or expected later.

    Attributes:
      program: the jitted function.
      args: its positional arguments; `described` where there is no array yet. Numbers that change are arrays as well.
      kwargs: its keyword arguments, static ones included.
    """

    program: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def key(self) -> Hashable:
        """Identifies the program: its function, its static arguments, and its arrays as `described`."""
        leaves, structure = jax.tree.flatten((self.args, self.kwargs))
        return self.program, structure, tuple(map(_kind, leaves))

    def make(self) -> Any:
        """Makes the call."""
        return self.program(*self.args, **self.kwargs)


def _kind(leaf: Any) -> Hashable:
    if isinstance(leaf, jax.Array):
        leaf = described(leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.shape, leaf.dtype, leaf.weak_type, leaf.sharding
    return (leaf.shape, leaf.dtype, False, None) if isinstance(leaf, np.ndarray | np.generic) else leaf


def described(x: jax.Array) -> jax.ShapeDtypeStruct:
    """Describes an array by what distinguishes programs, even if it was donated: shape, dtype, weak type, sharding.

    The sharding is None for an array that is not committed to its devices.
    """
    is_weak = getattr(x, "weak_type", False)  # random keys have none
    sharding = x.sharding if x.committed else None
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=is_weak, sharding=sharding)


class CompileAhead:
    """Compiles the programs of calls in threads, each once.

    Attributes:
      threads: how many; with 0, only the calls themselves compile.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self._free = threading.Semaphore(threads)
        self._begun: dict[Hashable, Future[None]] = {}
        self._called: set[Hashable] = set()

    def begin(self, call: Call) -> None:
        """Begins to compile the program of a call, unless that has begun."""
        if self.threads and (key := call.key) not in self._begun:
            lowered, self._begun[key] = call.program.lower(*call.args, **call.kwargs), Future()
            threading.Thread(target=self._compile, args=(lowered, self._begun[key]), name="compile").start()

    def make(self, call: Call, likely: Callable[[], Iterable[Call]] = tuple) -> Any:
        """Makes a call once its program is compiled; the first time, begins compiling the `likely` next calls too.

        The wait counts as compiling. A program that no thread compiled, or that failed in one, is compiled by its call.
        """
        if not self.threads or (key := call.key) in self._called:
            return call.make()
        self._called.add(key)
        self.begin(call)
        compiled = self._begun[key]
        if compiled.done():
            made = call.make()
            self._begin_all(likely())  # while the device works
            return made
        self._begin_all(likely())
        if not compiled.cancel():
            with waiting(call.program.__name__):
                compiled.result()
        return call.make()

    def _begin_all(self, calls: Iterable[Call]) -> None:
        with contextlib.suppress(Exception):  # a guess must not end a run
            for call in calls:
                self.begin(call)

    def _compile(self, lowered: Any, compiled: Future[None]) -> None:
        """Compiles into jax's cache, as one of `threads`; skips programs still waiting when the command ends.

        A thread pool would not do: Python joins its threads while the main thread still counts as alive, so all
        programs would be compiled.
        """
        with self._free:
            if threading.main_thread().is_alive() and compiled.set_running_or_notify_cancel():
                with contextlib.suppress(Exception):  # the call itself will raise it
                    lowered.compile()
                compiled.set_result(None)


@functools.cache
def compile_ahead(threads: int) -> CompileAhead:
    """Returns the process's `CompileAhead` of `threads` threads, or fewer if the host has fewer cores to spare."""
    return CompileAhead(max(0, min(threads, host_cores() - SPARE_CORES)))
