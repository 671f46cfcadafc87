"""Keys and values, the parts that they come in, and writing tokens into a cache of them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models.slots import Slots

ATTENDED = "attended"  # checkpoint name of what the backward pass needs besides queries, keys and values
MASKED = -1e30  # finite: a part that is masked whole gets probability exp(MASKED − top) = 0, not NaN


class KeyValues(NamedTuple):
    """Keys and values of one layer, or of all with a leading N.

    Attributes:
      keys: [P, K, h, S] for a prompt, [P, M, K, h, S] for rollouts.
      values: [P, K, S, h] and [P, M, K, S, h].
    """

    keys: Array
    values: Array

    def padded(self, more: int) -> "KeyValues":
        """Appends `more` tokens of zeros: S → S + more."""
        rank = self.keys.ndim
        keys, values = ([(0, more if axis == at else 0) for axis in range(rank)] for at in (rank - 1, rank - 2))
        return KeyValues(jnp.pad(self.keys, keys), jnp.pad(self.values, values))

    def write(self, new: "KeyValues", start: Array) -> "KeyValues":
        """Writes new tokens from `start` on, see `write_tokens`."""
        axis = self.keys.ndim
        return KeyValues(
            write_tokens(self.keys, new.keys, start, axis - 1), write_tokens(self.values, new.values, start, axis - 2)
        )


def write_tokens(array: Array, new: Array, start: Array, axis: int) -> Array:
    """Writes `new` into array [P, M, …] from `start` on along an axis; `start` is one number or each row's, [P, M]."""
    update = jax.lax.dynamic_update_slice_in_dim
    if not start.ndim:  # XLA can do this one in place
        return update(array, new, start, axis)
    return jax.vmap(jax.vmap(functools.partial(update, axis=axis - 2)))(array, new, start)


class Part(NamedTuple):
    """One part of the attention's keys: a prompt's (rank 4) or the rollouts' own (rank 5).

    Attributes:
      kv: keys and values.
      mask: True where a query may look, [P or 1, M or 1, T or 1, S].
      slots: where rows of a compacted batch ask for a prompt's keys; the mask's M is then R.
    """

    kv: KeyValues
    mask: Array
    slots: Slots | None = None
