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
TRIM, MAPPED = -1, -3  # mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
LARGE = 1 << 22  # bytes; blocks from this size on are apart from the heap, into which glibc would put larger ones
SLACK = 1 << 25  # bytes that are free at the heap's end and kept: less, and every decoding step would get them anew


@functools.cache
def keep_small() -> None:
    """From now on large blocks go back once free, others once a program is compiled; without glibc, nothing."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "malloc_trim"):
        return
    libc.mallopt(MAPPED, LARGE)
    libc.mallopt(TRIM, SLACK)

    def heard(event: str, seconds: float, **_: object) -> None:
        if event == COMPILED and seconds > LONG:
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(heard)
