"""One run in several processes: each has some of the devices, all run the same program on the same data.

The first process alone writes files and reads those that a run writes; it sends the others what it read.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tsallis_rl.runs.errors import UserError


def join() -> None:
    """Connects this process to the run's others; to be called before jax is asked for devices.

    $JAX_COORDINATOR_ADDRESS (HOST:PORT of the first), $JAX_NUM_PROCESSES and $JAX_PROCESS_ID say who they are; where
    they are not set, jax asks the TPU pod, Slurm or Open MPI. From then on only the first process prints to stdout.

    Raises:
      UserError: the variables are incomplete or not numbers, or there is nothing to ask.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    try:
        count, index = (int(os.environ[name]) if name in os.environ else None for name in names)
        jax.distributed.initialize(num_processes=count, process_id=index)
    except ValueError as error:
        raise UserError(
            f"--distributed: {error}; start it by a script of launch/, or set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from None
    if not is_first():
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

    told: dict[str, Any] = {}
    if is_first():
        try:
            told = {"value": function()}
        except UserError as error:
            told = {"error": str(error)}
    text = np.frombuffer(json.dumps(told).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = multihost_utils.broadcast_one_to_all(text if is_first() else np.zeros(size, np.uint8))
    told = json.loads(text.astype(np.uint8).tobytes())
    if "error" in told:
        raise UserError(told["error"])
    return told["value"]
