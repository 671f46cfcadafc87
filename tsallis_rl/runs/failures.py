"""Ends every process of a run when one fails alone: the others would wait for it in their next collective call.

The process that fails says so in the key-value store of jax's coordination service, which a thread of each process
watches. A process that has not begun to end by itself within `GRACE` seconds is ended, with the message and the status
of the one that failed. None of them goes through jax's barrier at exit, where they would wait for each other.
"""

import atexit
import contextlib
import json
import os
import sys
import threading
import time
from typing import Any, NamedTuple, NoReturn

import jax

from tsallis_rl.runs.errors import one_line, print_line

GRACE = 5.0  # seconds
_PATIENCE = 2 * GRACE  # seconds to wait for processes that may be gone
_LONGEST = 300.0  # seconds to wait for processes that are ending, such as by a save
_EVERY = 1.0  # seconds between looks
_KEY = "tsallis_rl/failure"


class Failure(NamedTuple):
    """A failure as the process said it.

    Attributes:
      process: its index.
      message: why it fails, in one line.
      status: with which all processes end.
    """

    process: int
    message: str
    status: int


class Watch:
    """Watches for the failure of another process, and says that of this one.

    Args:
      client: of jax's coordination service.
      index: of this process.
      count: of processes.
    """

    def __init__(self, client: Any, index: int, count: int):
        self._client, self._index, self._count = client, index, count
        self._ends_itself = False
        self._leaving = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="failures of other processes", daemon=True)
        self._thread.start()
        atexit.register(self._end_with_others)

    def say(self, message: str, status: int) -> None:
        """Says that this process fails, though it may not come to its end; of several that fail, the first counts."""
        self._set("", json.dumps(Failure(self._index, one_line(message), status)))

    def ends_itself(self) -> None:
        """Notes that this process has begun to end, and may take its time, such as for a save."""
        self._ends_itself = True
        self._set(f"/ending/{self._index}", "")

    def fail(self, message: str, status: int, written: str, follows: bool) -> NoReturn:
        """Says that this process fails, prints why, and ends it once the others have ended too.

        Args:
          message: why.
          status: of the process.
          written: what is printed, such as the traceback; nothing if it is empty.
          follows: whether it fails because another process has ended: if that one said why, this is printed instead.
        """
        self._ends_itself = True
        self.say(message, status)
        if follows and (said := self._said()) and said.process != self._index:
            self._leave(said, _of_another(said))
        self._leave(Failure(self._index, message, status), written)

    def _watch(self) -> None:
        while (said := self._said()) is None:
            if self._stop.wait(_EVERY):
                return
        if not self._stop.wait(GRACE) and not self._ends_itself:
            self._leave(said, f"error: {said.message}" if said.process == self._index else _of_another(said))

    def _leave(self, said: Failure, written: str) -> NoReturn:
        """Prints what is written and ends the process at once, since its main thread may wait in a call forever."""
        self._leaving.acquire()  # never released: the other thread may come here, too
        print_line(written)
        self._set(f"/done/{self._index}", "")
        began = waited = time.monotonic()
        others = [str(i) for i in range(self._count) if i != self._index]
        while others := [i for i in others if self._get(f"/done/{i}") is None]:
            now = time.monotonic()
            if any(self._get(f"/ending/{i}") is not None for i in others):
                waited = now
            if now > min(waited + _PATIENCE, began + _LONGEST):
                break
            time.sleep(_EVERY / 10)
        if self._index == 0:  # the service ends with this process, and others still look
            time.sleep(_EVERY)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(said.status)

    def _end_with_others(self) -> None:
        """Waits at jax's barrier when this process has ended well; one that fails there meanwhile ends it."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.distributed.shutdown()
        self._stop.set()
        self._thread.join()  # it would abort the process if it were in the client when Python ends

    def _said(self) -> Failure | None:
        found = self._get("")
        return None if found is None else Failure(*json.loads(found))

    def _set(self, key: str, value: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # set before, or the service has ended
            self._client.key_value_set(_KEY + key, value)

    def _get(self, key: str) -> str | None:
        try:
            return self._client.key_value_try_get(_KEY + key)
        except jax.errors.JaxRuntimeError:  # not set, or the service does not answer now
            return None


def _of_another(said: Failure) -> str:
    return f"error: process {said.process} of the run failed: {said.message}"
