"""The programs of compaction and merging: retire finished rows, merge the rest of several batches, restore order.

Finished rows are scored and recorded at once, and the others continue in fewer rows. Retired rows keep the number of
their rollout, by which they are put in order at the end.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models import KeyValues, RowCache, take_rows
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.decode import DecodeInputs, DecodeShape, DecodeState, RowState
from tsallis_rl.sampler.record import Rows
from tsallis_rl.sampler.scoring import score_gold


class Retired(NamedTuple):
    """Rows that were retired.

    Attributes:
      rollout: [C, r] number of each row's rollout in its shard, counted prompt by prompt.
      rows: their record, [C, r, …].
    """

    rollout: Array
    rows: Rows


class Leftover(NamedTuple):
    """The rest of a batch once most of its rows are retired; a pytree, so that one program can merge several.

    Attributes:
      batch: its prompts.
      keys: [P].
      state: of the rows that continue, without their cache.
      retired: the other rows.
    """

    batch: PromptBatch
    keys: Array
    state: DecodeState
    retired: Retired


def take_state_rows(rows: RowState, index: Array) -> RowState:
    """Gathers rows per shard: [C, B, …] and index [C, r] → [C, r, …]."""
    return jax.tree.map(lambda x: take_rows(x, index), rows)


def share_rows(rows: RowState, shape: DecodeShape) -> RowState:
    """Regroups rows by shard and numbers them per shard: [P, M, …] → [C, B, …]; no change if they are already."""
    parts = len(rows.rollout)
    first = jnp.arange(parts) % (parts // shape.shards) * shape.num_rollouts
    rows = rows._replace(rollout=rows.rollout + first[:, None])
    return jax.tree.map(lambda x: x.reshape(shape.shards, -1, *x.shape[2:]), rows)


class Continuing(NamedTuple):
    """Rows that continue in fewer rows.

    Attributes:
      state: theirs, without a cache.
      index: [C, B'] their index among the rows before, by which `take_cache_rows` takes each layer's cache.
    """

    state: DecodeState
    index: Array


@functools.partial(jax.jit, static_argnames=("shape", "slots", "keep"))
def retire(
    inputs: DecodeInputs, state: DecodeState, *, shape: DecodeShape, slots: int, keep: int
) -> tuple[Continuing | None, Retired]:
    """Retires rows: scores and records all but `keep` rows of each shard. Running rows are kept.

    Args:
      inputs: see `DecodeInputs`.
      state: at most `keep` rows of a shard still run.
      shape: see `DecodeShape`.
      slots: R, at least the retired rows of any prompt.
      keep: rows a shard that continue; 0 retires all.

    Returns:
      the rows that continue, or None if there are none, and the retired rows.
    """
    continuing, rows = None, state.rows
    if keep:
        rows = share_rows(rows, shape)
        running_first = jnp.argsort(rows.progress.done, axis=1, stable=True)
        index, retired = running_first[:, :keep], running_first[:, keep:]
        kept = take_state_rows(rows._replace(cache=()), index)
        continuing = Continuing(state._replace(rows=kept), index)
        rows = take_state_rows(rows, retired)
    return continuing, Retired(rows.rollout, score_gold(inputs, rows, shape=shape, slots=slots))


@jax.jit
def take_cache_rows(layer: KeyValues | RowCache, index: Array) -> KeyValues | RowCache:
    """Gathers rows of a layer's cache per shard: [P, M, …] or [C, B, …], and index [C, r] → [C, r, …]."""
    shared = jax.tree.map(lambda x: x.reshape(len(index), -1, *x.shape[2:]), layer)
    return jax.tree.map(lambda x: take_rows(x, index), shared)


@jax.jit
def concatenate_rows(parts: Sequence[Any]) -> Any:
    """Concatenates trees of arrays [C, r, …] of the same shards to one of [C, B, …]."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *parts)


@functools.partial(jax.jit, static_argnames="shards")
def concatenate_prompts(batches: Sequence[Any], *, shards: int) -> Any:
    """Concatenates trees of arrays [P, …], batch after batch in each shard: [P, …] × n → [n P, …]."""

    def concatenated(*xs: Array) -> Array:
        apart = [x.reshape(shards, -1, *x.shape[1:]) for x in xs]
        return jnp.concatenate(apart, axis=1).reshape(-1, *xs[0].shape[1:])

    return jax.tree.map(concatenated, *batches)


@functools.partial(jax.jit, static_argnames="shape")
def merge_batches(leftovers: Sequence[Leftover], *, shape: DecodeShape) -> Leftover:
    """Merges the leftovers of equally large batches into one, without caches; each keeps its own position."""
    each = len(leftovers[0].keys) // shape.shards * shape.num_rollouts  # rollouts of a shard in each batch
    states = [leftover.state for leftover in leftovers]
    rows = concatenate_rows(
        [state.rows._replace(rollout=state.rows.rollout + i * each) for i, state in enumerate(states)]
    )
    state = DecodeState(
        position=jnp.concatenate([state.position for state in states]),
        running=(~rows.progress.done).sum(axis=1, dtype=jnp.int32).max(),
        most_running=functools.reduce(jnp.maximum, [state.most_running for state in states]),
        most_done=functools.reduce(jnp.maximum, [state.most_done for state in states]),
        rows=rows,
    )
    batch, keys = concatenate_prompts([(leftover.batch, leftover.keys) for leftover in leftovers], shards=shape.shards)
    retired = [
        leftover.retired._replace(rollout=leftover.retired.rollout + i * each) for i, leftover in enumerate(leftovers)
    ]
    return Leftover(batch=batch, keys=keys, state=state, retired=concatenate_rows(retired))


@functools.partial(jax.jit, static_argnames="num_rollouts")
def restore_order(retired: Retired, *, num_rollouts: int) -> Rows:
    """Sorts retired rows by the number of their rollout: [C, P / C · M, …] → [P, M, …]."""
    order = jnp.argsort(retired.rollout, axis=1)
    return jax.tree.map(lambda x: take_rows(x, order).reshape(-1, num_rollouts, *x.shape[2:]), retired.rows)
