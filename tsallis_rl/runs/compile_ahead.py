"""Compiles programs in threads, so that they are there when they are called.

Tracing and lowering hold Python's lock and are done by the caller; XLA compiles without it. What is compiled stands in
jax's own caches, so a program that nobody thought of in time is compiled by its call, as ever.
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

SPARE_CORES = 2  # of a host, for the programs that run and for what reads and writes


class Call(NamedTuple):
    """A call of a jitted function, or what is known of one that is to come.

    Attributes:
      program: the jitted function.
      args: of it; `described` where there is no array yet. Numbers that change are arrays as well.
      kwargs: the same, static arguments among them.
    """

    program: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def key(self) -> Hashable:
        """Hashes like the program: its function, static arguments, and what `described` says of its arrays."""
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
    """Describes an array as programs are told apart by it, whether or not it was given up.

    An array that may be moved to another device has no sharding there.
    """
    is_weak = getattr(x, "weak_type", False)  # keys of random numbers have none
    sharding = x.sharding if x.committed else None
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=is_weak, sharding=sharding)


class CompileAhead:
    """Compiles the programs of calls in threads, each once.

    Attributes:
      threads: how many; with 0 programs are compiled by their calls alone.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self._free = threading.Semaphore(threads)
        self._begun: dict[Hashable, Future[None]] = {}
        self._called: set[Hashable] = set()

    def begin(self, call: Call) -> None:
        """Begins to compile what a call will need, unless that has begun."""
        if self.threads and (key := call.key) not in self._begun:
            lowered, self._begun[key] = call.program.lower(*call.args, **call.kwargs), Future()
            threading.Thread(target=self._compile, args=(lowered, self._begun[key]), name="compile").start()

    def make(self, call: Call, likely: Callable[[], Iterable[Call]] = tuple) -> Any:
        """Makes a call once its program is compiled, and at its first time begins with what `likely` comes behind it.

        The wait counts as compiling. What no thread has begun with, or could not compile, is left to the call itself.
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
        with contextlib.suppress(Exception):  # what is no more than likely must not end a run
            for call in calls:
                self.begin(call)

    def _compile(self, lowered: Any, compiled: Future[None]) -> None:
        """Compiles into jax's cache, as one of `threads`; what still waits when the command ends is left alone.

        Threads of a pool would be waited for while the main thread is said to live, and so compile all of it.
        """
        with self._free:
            if threading.main_thread().is_alive() and compiled.set_running_or_notify_cancel():
                with contextlib.suppress(Exception):  # which the call itself says
                    lowered.compile()
                compiled.set_result(None)


@functools.cache
def compile_ahead(threads: int) -> CompileAhead:
    """Returns what compiles in so many threads, or as many as the host has cores to spare."""
    return CompileAhead(max(0, min(threads, host_cores() - SPARE_CORES)))
