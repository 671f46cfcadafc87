"""Predicts the calls that are likely to follow a segment, for the host to compile meanwhile (`compile_ahead`)."""

from collections.abc import Iterator
from typing import Any

import jax

from tsallis_rl.runs.compile_ahead import Call, described
from tsallis_rl.sampler import compaction, decode
from tsallis_rl.sampler.decode import DecodeState, cache_length
from tsallis_rl.sampler.schedule import DecodeSchedule


def after_segment(segment: Call, schedule: DecodeSchedule) -> Iterator[Call]:
    """Yields the calls that are likely to follow a call of `decode.decode_segment`.

    All rows may continue in the next longer cache; while no row has been retired, all longer caches are predicted. Or
    enough rows finish that the others fit the next smaller row count. Finally all rows are retired. With fewer rows,
    each prompt is assumed to have its share of them.
    """
    inputs, state, *numbers = segment.args
    state = jax.tree.map(described, state)  # its arrays may be donated by now
    shape, slots = segment.kwargs["shape"], segment.kwargs["slots"]
    prompts, rows = len(inputs.keys) // shape.shards, state.rows.rollout.size // shape.shards

    def decoding(state: DecodeState, slots: int) -> Call:
        return Call(decode.decode_segment, (inputs, state, *numbers), {"shape": shape, "slots": slots})

    def retiring(state: DecodeState, keep: int) -> Call:
        slots = schedule.slots(rows - keep, prompts, 0)
        return Call(compaction.retire, (inputs, state), {"shape": shape, "slots": slots, "keep": keep})

    longer = [n for n in schedule.cache_lengths if n > cache_length(state.rows)]
    for n in longer if rows == schedule.rows else longer[:1]:
        yield decoding(with_length(state, n), slots)
    if fewer := schedule.stop_at(rows):
        yield retiring(state, fewer)
        index = state.rows.rollout.update(shape=(shape.shards, fewer))  # of the same type
        yield Call(compaction.take_cache_rows, (state.rows.cache[0], index), {})
        yield decoding(with_rows(state, shape.shards, fewer), schedule.slots(fewer, prompts, 0))
    yield retiring(with_length(state, schedule.cache_lengths[-1]), keep=0)


def with_length(state: DecodeState, length: int) -> DecodeState:
    """Changes a described state to caches of `length` tokens."""

    def padded(cache: Any) -> Any:
        return [layer.padded(length - cache_length(state.rows)) for layer in cache]

    grown = tuple(jax.eval_shape(padded, state.rows.cache))
    cache = jax.tree.map(lambda x, like: x.update(shape=like.shape), state.rows.cache, grown)
    return state._replace(rows=state.rows._replace(cache=cache))


def with_rows(state: DecodeState, shards: int, rows: int) -> DecodeState:
    """Changes a described state to `rows` rows a shard, as `CompactedBatch.keep` keeps them."""
    kept = jax.tree.map(lambda x: x.update(shape=(shards, rows, *x.shape[2:])), state.rows)
    return state._replace(rows=kept)
