"""Rows of a compacted batch, which hold rollouts of several prompts in any order, and the slots of their prompts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Slots(NamedTuple):
    """Maps rows [C, B] of a compacted batch to slots [P, R] of its prompts; each shard has P / C prompts.

    A prompt's keys are stored once. To attend to them, rollouts are moved to slots of their prompt, [P, R, …].

    Attributes:
      row: [P, R] index, within its shard, of the row whose rollout takes the slot; any row if the slot is empty.
      slot: [C, B] index of the row's slot among the P / C · R of its shard; any slot if the row needs none.
    """

    row: Array
    slot: Array

    def to_slots(self, x: Array) -> Array:
        """Gathers rows into slots: x [C, B, …] → [P, R, …]."""
        return take_rows(x, self.row.reshape(len(self.slot), -1)).reshape(*self.row.shape, *x.shape[2:])

    def to_rows(self, x: Array) -> Array:
        """Gathers slots back into rows: x [P, R, …] → [C, B, …]."""
        return take_rows(x.reshape(len(self.slot), -1, *x.shape[2:]), self.slot)


def take_rows(x: Array, index: Array) -> Array:
    """Gathers rows per shard: x [C, B, …], index [C, n] → [C, n, …]."""
    return jax.vmap(lambda shard, rows: shard.at[rows].get(mode="promise_in_bounds"))(x, index)


def slots_for(prompt: Array, needed: Array, prompts: int, count: int) -> Slots:
    """Assigns each row that needs one a slot of its prompt.

    Args:
      prompt: [C, B] index of the row's prompt among those of its shard.
      needed: [C, B] True at rows that need a slot.
      prompts: prompts per shard, P / C.
      count: R, slots per prompt; no prompt may have more rows that need one.
    """

    def one_shard(prompt: Array, needed: Array) -> tuple[Array, Array]:
        prompt = jnp.where(needed, prompt, prompts)  # rows that need none come last
        order = jnp.argsort(prompt, stable=True)
        first = jnp.searchsorted(prompt[order], jnp.arange(prompts + 1))
        row = order.at[first[:-1, None] + jnp.arange(count)].get(mode="clip")
        rank = jnp.argsort(order) - first[prompt]
        return row, jnp.where(needed, prompt * count + rank, 0)

    row, slot = jax.vmap(one_shard)(prompt, needed)
    return Slots(row.reshape(-1, count), slot)
