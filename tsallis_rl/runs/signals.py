"""Stops a run between two steps when SIGINT or SIGTERM asks for it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
import numpy as np


class Interrupted(Exception):
    """The run was asked to stop and has saved its state; `signum` says by which signal."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopRequest:
    """The signal that asked this process to stop, or 0."""

    signum: int = 0

    def agreed(self) -> int:
        """Returns the signal that any process got. Every process must call this at the same step, so that all stop."""
        if jax.process_count() == 1:
            return self.signum
        from jax.experimental import multihost_utils

        return int(np.max(multihost_utils.process_allgather(np.int32(self.signum))))


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request that the loop reads between steps; a second kills at once."""
    request = StopRequest()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {signum: signal.getsignal(signum) for signum in signals}

    def ask(signum: int, frame: FrameType | None) -> None:
        request.signum = signum
        # Not print, because the signal may have interrupted a print.
        os.write(2, b"\nstopping: the work in progress is finished and saved; a second signal quits at once\n")
        for each in signals:
            signal.signal(each, signal.SIG_DFL)

    for signum in signals:
        signal.signal(signum, ask)
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
