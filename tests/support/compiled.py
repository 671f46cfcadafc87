"""Counts the programs that jax compiles: by name and by whether the main thread compiles them, and the sampler's."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from tsallis_rl.runs.compiling import COMPILING
from tsallis_rl.sampler import compaction, decode, scoring

SAMPLER = (
    decode.gather_layers,
    decode.prefill,
    decode.decode_segment,
    decode.grow_cache,
    scoring.score_answers,
    scoring.score_prompts,
    compaction.retire,
    compaction.take_cache_rows,
    compaction.concatenate_rows,
    compaction.concatenate_prompts,
    compaction.merge_batches,
    compaction.restore_order,
)


def sampler_programs() -> int:
    """Counts the programs of the sampler that this process has compiled so far."""
    return sum(program._cache_size() for program in SAMPLER)


@contextmanager
def counted_programs() -> Iterator[Counter[tuple[str, bool]]]:
    """Counts programs as they are compiled, or read from the cache: (name, whether in the main thread) → count."""
    counts: Counter[tuple[str, bool]] = Counter()

    def listen(event: str, seconds: float, fun_name: str = "", **_: object) -> None:
        if event == COMPILING:
            name = fun_name.removeprefix("jit(").removesuffix(")")
            counts[name, threading.current_thread() is threading.main_thread()] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
