"""Runs several processes as one: each has some of the devices, and all run the same program on the same data.

Only the first process writes files, and reads those that a run writes; it sends the others what it read.
"""

import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from tsallis_rl.runs.errors import UserError, end_by, lost_process, one_line, sentence
from tsallis_rl.runs.failures import GRACE, Watch
from tsallis_rl.runs.progress import be_silent

_LONGEST = 600  # characters of a message that one process of several sends
_ROOM = 8 * 1024  # bytes for such a message as JSON, whatever its characters
_watch: Watch | None = None  # of a process that has joined others


def join() -> None:
    """Connects this process to the run's others. Call it before jax is asked for devices.

    $JAX_COORDINATOR_ADDRESS (HOST:PORT of the first), $JAX_NUM_PROCESSES and $JAX_PROCESS_ID identify them; if they are
    not set, jax asks the TPU pod, Slurm or Open MPI. From then on only the first process prints to stdout, reports
    progress, and shows warnings of libraries.

    Raises:
      UserError: the variables are incomplete or not numbers, or jax finds no cluster to ask.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    try:
        count, index = (int(os.environ[name]) if name in os.environ else None for name in names)
        # Its handler would take SIGTERM away from us: before the first step the signal would not end the process.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(num_processes=count, process_id=index)
    except (ValueError, RuntimeError) as error:  # RuntimeError: the coordinator does not answer
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--distributed: {reason}; start it by a script of launch/, or set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from None
    _start_watch()
    if not is_first():
        be_silent()
        warnings.simplefilter("ignore")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the rest of the process


def _start_watch() -> None:
    """Starts to watch for failures of other processes (`failures`), before devices are asked for."""
    global _watch
    from jax._src import distributed  # there is no public way to the key-value store

    found = distributed.global_state
    _watch = Watch(found.client, found.process_id, found.num_processes)
    end_by(_watch.fail)


@contextmanager
def ending_itself() -> Iterator[None]:
    """Keeps a process that leaves the block by an exception from being ended for another's failure.

    If another process is lost, this one is not kept: what it does at its end may wait for that one.
    """
    try:
        yield
    except BaseException as error:
        if _watch and (lost := lost_process(error)):
            _watch.say(lost, 1)
        elif _watch:
            _watch.ends_itself()
        raise


@contextmanager
def _said_if_stuck(error: UserError | None) -> Iterator[None]:
    """Says that this process fails if the block takes longer than `GRACE` seconds: the others may never come."""
    if error is None or _watch is None:
        yield
        return
    timer = threading.Timer(GRACE, _watch.say, (str(error), error.status))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_first() -> bool:
    """Returns whether this is the first process, the one that writes."""
    return jax.process_index() == 0


def from_first(function: Callable[[], Any]) -> Any:
    """Calls `function` on the first process only; returns its value, or raises its UserError, on every process.

    Every process must call this. The value must be one that JSON can write.
    """
    if jax.process_count() == 1:
        return function()
    from jax.experimental import multihost_utils

    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": function()}
        except (UserError, OSError) as error:
            answer = {"error": _written(error)}
    told = json.dumps(answer).encode()
    # Spaces up to a power of two: each length is a program to compile.
    text = np.frombuffer(told.ljust(1 << max(10, (len(told) - 1).bit_length())), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = multihost_utils.broadcast_one_to_all(text if is_first() else np.zeros(size, np.uint8))
    answer = json.loads(text.astype(np.uint8).tobytes())
    if "error" in answer:
        raise _read(answer["error"])
    return answer["value"]


def _written(error: UserError | OSError) -> list[str]:
    """Writes an error for other processes: the name of its class, and its message."""
    return ["UserError", sentence(error)] if isinstance(error, OSError) else [type(error).__name__, str(error)]


def _read(written: list[str]) -> UserError:
    """Makes the error that another process wrote, of the same class."""
    classes, found = [UserError], {}
    while classes:
        found[classes[-1].__name__] = classes[-1]
        classes += classes.pop().__subclasses__()
    name, message = written
    return found[name](message)


def least_of_all(number: int) -> int:
    """Returns the least of the numbers, below 2³¹, that the processes pass. Every process must call this."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(number)).min())


def on_each(function: Callable[[], Any]) -> Any:
    """Calls `function` on every process and returns each its own value; an error of one is raised on all.

    Every process must call this: a process that failed alone would leave the others waiting for it.
    """
    if not jax.distributed.is_initialized():
        return function()
    from jax.experimental import multihost_utils

    value, error = None, None
    try:
        value = function()
    except (UserError, OSError) as failure:
        error = _written(failure)
        error[1] = one_line(error[1])[:_LONGEST]
    text = json.dumps(error).encode()
    with _said_if_stuck(_read(error) if error else None):
        try:
            told = multihost_utils.process_allgather(np.frombuffer(text.ljust(_ROOM), np.uint8))
        except Exception as gone:  # the others were ended, since they waited elsewhere
            raise _read(error) if error else gone from None
    for row in told:
        if (written := json.loads(row.astype(np.uint8).tobytes())) is not None:
            raise _read(written)
    return value
