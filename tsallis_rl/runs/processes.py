"""One run in several processes: each has some of the devices, all run the same program on the same data.

The first process alone writes files and reads those that a run writes; it sends the others what it read.
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
    """Connects this process to the run's others; to be called before jax is asked for devices.

    $JAX_COORDINATOR_ADDRESS (HOST:PORT of the first), $JAX_NUM_PROCESSES and $JAX_PROCESS_ID say who they are; where
    they are not set, jax asks the TPU pod, Slurm or Open MPI. From then on only the first process prints to stdout,
    says how far it is, and lets libraries warn.

    Raises:
      UserError: the variables are incomplete or not numbers, or there is nothing to ask.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    try:
        count, index = (int(os.environ[name]) if name in os.environ else None for name in names)
        jax.distributed.initialize(num_processes=count, process_id=index)
    except (ValueError, RuntimeError) as error:  # a coordinator that does not answer is a RuntimeError
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
    """Tells whether this is the process that writes."""
    return jax.process_index() == 0


def from_first(function: Callable[[], Any]) -> Any:
    """Calls `function` on the first process alone; returns its value, or raises its UserError, on every process.

    Every process must call this. The value is anything that JSON can write.
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
    """Returns the least of the numbers, below 2³¹, that every process calls this with."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(number)).min())


def on_each(function: Callable[[], Any]) -> Any:
    """Calls `function` on every process and returns its own value; a UserError of any is raised on all.

    Every process must call this: one that failed alone would leave the others waiting for it.
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
