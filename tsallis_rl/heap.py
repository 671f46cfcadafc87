"""Memory that is free goes back to the system, much of which glibc would keep.

That is half a gigabyte that compiling an update took, and a fifth of one of caches that rollouts outgrew: a block that
is freed is too small for the next one, which is larger.
"""

import ctypes
import functools
import sys

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
LONG = 0.5  # seconds; what compiles faster takes little


def give_back() -> None:
    """What is free now; some milliseconds. Without glibc, nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@functools.cache
def give_back_after_compiling() -> None:
    """From now on, once a program is compiled and before it runs."""

    def heard(event: str, seconds: float, **_: object) -> None:
        if event == COMPILED and seconds > LONG:
            give_back()

    jax.monitoring.register_event_duration_secs_listener(heard)
