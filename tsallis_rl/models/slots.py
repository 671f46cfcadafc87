"""Rollouts of several prompts in rows without regard to these, and where they sit to ask their prompt's keys."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Seats(NamedTuple):
    """Rollouts of G prompts in B rows of a lane, of which L lanes hold P = L · G prompts: [L, B, …] is their [P, M, …].

    To ask its prompt's keys, a rollout takes one of the prompt's R seats.

    Attributes:
      row: [P, R] the row of its lane whose rollout sits there; any where a seat is empty.
      seat: [L, B] which of the lane's G · R seats a row's rollout has; any where it needs none.
    """

    row: Array
    seat: Array

    def seated(self, x: Array) -> Array:
        """[L, B, …] as [P, R, …]."""
        return rows_of(x, self.row.reshape(len(self.seat), -1)).reshape(*self.row.shape, *x.shape[2:])

    def back(self, x: Array) -> Array:
        """[P, R, …] as [L, B, …]."""
        return rows_of(x.reshape(len(self.seat), -1, *x.shape[2:]), self.seat)


def rows_of(x: Array, chosen: Array) -> Array:
    """Of x [L, B, …] in each lane the rows chosen, [L, r]: [L, r, …]."""
    return jax.vmap(lambda lane, rows: lane.at[rows].get(mode="promise_in_bounds"))(x, chosen)


def seats_for(prompt: Array, needed: Array, prompts: int, count: int) -> Seats:
    """Seats for those rows that need one.

    Args:
      prompt: [L, B] which of its lane's prompts each row's rollout has.
      needed: [L, B].
      prompts: G.
      count: R; of no prompt more rollouts need a seat.
    """

    def of_lane(prompt: Array, needed: Array) -> tuple[Array, Array]:
        prompt = jnp.where(needed, prompt, prompts)  # those that need none come last
        order = jnp.argsort(prompt, stable=True)
        first = jnp.searchsorted(prompt[order], jnp.arange(prompts + 1))
        row = order.at[first[:-1, None] + jnp.arange(count)].get(mode="clip")
        rank = jnp.argsort(order) - first[prompt]
        return row, jnp.where(needed, prompt * count + rank, 0)

    row, seat = jax.vmap(of_lane)(prompt, needed)
    return Seats(row.reshape(-1, count), seat)
