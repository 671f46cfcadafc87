"""Ends every process of a run when one fails alone: the others would wait for it in their next collective call.

The process that fails says so in the key-value store of jax's coordination service, which a thread of each process
watches. A process that has not begun to end by itself within `GRACE` seconds is ended, with the message and the status
of the one that failed.
"""

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any

import jax

GRACE = 5.0  # seconds
_PATIENCE = 2 * GRACE  # seconds to wait for the answers of the others
_EVERY = 1.0  # seconds between looks
_KEY = "tsallis_rl/failure"
_ENDS_ITSELF, _IS_ENDED = "ends itself", "is ended"


class Watch:
    """Watches for the failure of another process, and says that of this one.

    Args:
      client: of jax's coordination service.
      index: of this process.
      count: of processes.
    """

    def __init__(self, client: Any, index: int, count: int):
        self._client, self._index, self._count = client, index, count
        self._ends_itself = self._is_told = self._is_ended = False
        threading.Thread(target=self._watch, name="failures of other processes", daemon=True).start()

    def fails(self, message: str, status: int, *, is_told: bool) -> None:
        """Says that this process fails; of several that fail, the first counts.

        Args:
          message: why.
          status: with which all processes end.
          is_told: whether this process has printed the message and ends by itself.
        """
        if self._is_ended:  # by the watching thread; what fails here now is only that others have ended before
            time.sleep(_PATIENCE)
        self._is_told = self._is_told or is_told
        self._ends_itself = self._ends_itself or is_told
        said = {"process": self._index, "message": message, "status": status}
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first, or the service has ended
            self._client.key_value_set(_KEY, json.dumps(said))

    def ends_itself(self) -> None:
        """Notes that this process has begun to end, and may take its time, such as for a save."""
        self._ends_itself = True

    def _watch(self) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service has ended, and so has the run
            while (said := self._look(_KEY)) is None:
                time.sleep(_EVERY)
            time.sleep(GRACE)
            failed = json.loads(said)
            if failed["process"] == self._index:
                self._end_after_others(failed)
                return
            self._client.key_value_set(self._answer_of(self._index), _ENDS_ITSELF if self._ends_itself else _IS_ENDED)
            if not self._ends_itself:
                self._is_ended = True
                print(f"error: process {failed['process']} of the run failed: {failed['message']}", file=sys.stderr)
                if self._index == 0:  # the service ends with this process, and others still read the answers
                    time.sleep(_EVERY)
                _end(failed["status"])

    def _end_after_others(self, failed: dict[str, Any]) -> None:
        """Ends this process, which may itself wait for the others, unless one of them ends by itself."""
        until = time.monotonic() + _PATIENCE
        for other in range(self._count):
            while other != self._index and time.monotonic() < until:  # one that is gone gives no answer
                answer = self._look(self._answer_of(other))
                if answer == _ENDS_ITSELF:
                    return
                if answer is not None:
                    break
                time.sleep(_EVERY / 10)
        if not self._is_told:
            print(f"error: {failed['message']}", file=sys.stderr)
        _end(failed["status"])

    def _answer_of(self, index: int) -> str:
        return f"{_KEY}/{index}"

    def _look(self, key: str) -> str | None:
        try:
            return self._client.key_value_try_get(key)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise


def _end(status: int) -> None:
    """Ends the process at once, since its main thread may wait in a call that nothing else ends."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
