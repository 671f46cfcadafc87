"""Checks that the processes of a run agree: they would train on different things, or wait for each other forever."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tsallis_rl.runs.errors import UserError, shortened
from tsallis_rl.runs.processes import from_first, on_each
from tsallis_rl.runs.run_lock import lock_text

_SEEN_WITHIN = 60.0  # seconds; a network file system may show a new file late


def check_same(found: Mapping[str, Any], remedy: str, *, shows: bool = True) -> None:
    """Refuses, on all processes, what is not the same on all of them. Every process must call this.

    Args:
      found: name → value, of JSON types.
      remedy: what to do.
      shows: whether the message has the values.

    Raises:
      UserError: names the process, and the first of its values that differs.
    """
    if jax.process_count() == 1:
        return
    first, *others = _gathered(found)
    for i, other in enumerate(others, start=1):
        for name in {**first, **other}:
            here, there = (json.dumps(values.get(name)) for values in (first, other))
            if here != there:
                told = f"{name} is {shortened(there, 80)} in process {i} and {shortened(here, 80)} in process 0"
                raise UserError(f"{told if shows else f'process {i} differs from process 0 in its {name}'}; {remedy}")


def _gathered(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gathers the values of all processes."""
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(found).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - len(text))))
    return [json.loads(row[:size].astype(np.uint8).tobytes()) for row, size in zip(texts, sizes, strict=True)]


def check_shared(folder: Path) -> None:
    """Refuses a run's folder that not every process sees; the first one holds its lock. Every process must call this.

    Raises:
      UserError: a process sees another folder there, or none.
    """
    if jax.process_count() == 1:
        return
    held = from_first(lambda: lock_text(folder))

    def look() -> None:
        end = time.monotonic() + _SEEN_WITHIN
        while _read(folder) != held:
            if time.monotonic() > end:
                raise UserError(
                    f"--workdir={folder}: process {jax.process_index()} does not see there what process 0 has written; "
                    "every process saves its part of a checkpoint, so name a folder that all machines share"
                )
            time.sleep(0.5)

    on_each(look)


def _read(folder: Path) -> str | None:
    try:
        return lock_text(folder)
    except OSError:
        return None
