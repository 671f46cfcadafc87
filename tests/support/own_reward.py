"""Rewards of a user's own."""

import itertools
import os
import zlib

_calls = itertools.count()


def rare(prediction: str, example) -> float:
    """Is earned now and then by an untrained model: some groups have signal, some have none."""
    return float(zlib.crc32(f"{example.id} {prediction}".encode()) % 8 == 0)


def of_another_opinion(prediction: str, example) -> float:
    """Stands for a judge: every answer is right, but the second process soon says that none is."""
    return float(os.environ["JAX_PROCESS_ID"] == "0" or next(_calls) < 20)


def of_some_machines(prediction: str, example) -> float:
    """Stands for a function that not every machine's copy of a module has."""
    return 1.0


if os.environ.get("JAX_PROCESS_ID") in (None, "0", "1"):
    lacks_in_last = of_some_machines
if os.environ.get("JAX_PROCESS_ID") in (None, "0"):
    lacks_in_later = of_some_machines
