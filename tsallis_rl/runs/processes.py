"""Runs several processes as one: each has some of the devices, and all run the same program on the same data.

Only the first process writes files, and reads those that a run writes; it sends the others what it read.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tsallis_rl.runs.errors import UserError, sentence
from tsallis_rl.runs.progress import be_silent


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
        jax.distributed.initialize(num_processes=count, process_id=index)
    except (ValueError, RuntimeError) as error:  # RuntimeError: the coordinator does not answer
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--distributed: {reason}; start it by a script of launch/, or set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from None
    if not is_first():
        be_silent()
        warnings.simplefilter("ignore")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the rest of the process


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
        except UserError as error:
            answer = {"error": str(error)}
        except OSError as error:
            answer = {"error": sentence(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = multihost_utils.broadcast_one_to_all(text if is_first() else np.zeros(size, np.uint8))
    answer = json.loads(text.astype(np.uint8).tobytes())
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


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

    value, text = None, np.zeros(1024, np.uint8)
    try:
        value = function()
    except (UserError, OSError) as error:
        message = sentence(error) if isinstance(error, OSError) else str(error)
        words = np.frombuffer(message.encode(errors="replace")[: len(text)], np.uint8)
        text[: len(words)] = words
    for told in multihost_utils.process_allgather(text):
        if told.any():
            raise UserError(told.tobytes().rstrip(b"\0").decode(errors="ignore"))
    return value
