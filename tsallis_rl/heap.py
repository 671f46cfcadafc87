"""Memory that is free goes back to the system: glibc keeps what the compiler took, half a gigabyte for an update."""

import ctypes
import functools
import sys

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
LONG = 0.5  # seconds; what compiles faster takes little


@functools.cache
def give_back_after_compiling() -> None:
    """From now on, once a program is compiled and before it runs; without glibc, nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

    def heard(event: str, seconds: float, **_: object) -> None:
        if event == COMPILED and seconds > LONG:
            trim(0)

    if trim is not None:
        jax.monitoring.register_event_duration_secs_listener(heard)
