"""Keys and values, the parts that attention takes them in, and writing tokens into a cache."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models.backends import backend
from tsallis_rl.models.slots import Slots

ATTENDED = "attended"  # checkpoint name of the arrays that the backward pass needs besides queries, keys and values
MASKED = -1e30  # finite, so that a fully masked part has probability exp(MASKED − top) = 0, not NaN


class KeyValues(NamedTuple):
    """Keys and values of one layer, or of all layers with a leading N.

    Attributes:
      keys: [P, K, h, S] for a prompt, [P, M, K, h, S] for rollouts.
      values: [P, K, S, h] and [P, M, K, S, h].
    """

    keys: Array
    values: Array

    @property
    def key_values(self) -> "KeyValues":
        """Returns itself, for the same interface as `RowCache`."""
        return self

    @property
    def rows(self) -> "RowCache":
        """Returns the same numbers as a `RowCache`."""
        return RowCache(self.keys.swapaxes(-1, -2), self.values)

    def padded(self, more: int) -> "KeyValues":
        """Appends `more` tokens of zeros: S → S + more."""
        rank = self.keys.ndim
        keys, values = ([(0, more if axis == at else 0) for axis in range(rank)] for at in (rank - 1, rank - 2))
        return KeyValues(jnp.pad(self.keys, keys), jnp.pad(self.values, values))

    def write(self, new: "KeyValues", at: "WriteAt") -> "KeyValues":
        """Writes one token per row; see `write_tokens`."""
        axis = self.keys.ndim
        return KeyValues(
            write_tokens(self.keys, new.keys, at, axis - 1), write_tokens(self.values, new.values, at, axis - 2)
        )


class RowCache(NamedTuple):
    """Keys and values, both [P, M, K, S, h] of rollouts or [P, K, S, h] of prompts; a head's token is a contiguous row.

    Decoding writes one token at a time. In `KeyValues.keys` its h numbers would lie S apart. Products read both layouts
    equally fast on a GPU.
    """

    keys: Array
    values: Array

    @property
    def key_values(self) -> KeyValues:
        """Returns the same numbers as `KeyValues`; products read them in place."""
        return KeyValues(self.keys.swapaxes(-1, -2), self.values)

    def padded(self, more: int) -> "RowCache":
        """Appends `more` tokens of zeros: S → S + more."""
        return RowCache(*(jnp.pad(x, [(0, 0)] * 3 + [(0, more), (0, 0)]) for x in self))

    def write(self, new: KeyValues, at: "WriteAt") -> "RowCache":
        """Writes one token per row; see `write_tokens`."""
        return RowCache(*(write_tokens(x, y, at, 3) for x, y in zip(self, new.rows, strict=True)))


def empty_cache(shape: tuple[int, int, int], tokens: int, head_dim: int, dtype: str) -> KeyValues | RowCache:
    """Makes an empty cache of length `tokens` for rollouts and key heads [P, M, K], in this processor's layout."""
    values = jnp.zeros((*shape, tokens, head_dim), dtype)
    if backend().row_cache:
        return RowCache(values, values)
    return KeyValues(jnp.zeros((*shape, head_dim, tokens), dtype), values)


def stored(kv: KeyValues) -> KeyValues | RowCache:
    """Returns a prompt's keys and values as this processor stores them for decoding."""
    return kv.rows if backend().row_cache else kv


class WriteAt(NamedTuple):
    """Where rows write their next token.

    Attributes:
      position: [n] positions of n batches, which started one after the other.
      batch: [P, M] each row's batch; None if there is one.
    """

    position: Array
    batch: Array | None = None

    @property
    def of_rows(self) -> Array:
        """Looks up the position of each row [P, M]; one number if there is one batch."""
        return self.position[0] if self.batch is None else self.position[self.batch]


def write_tokens(array: Array, new: Array, at: WriteAt, axis: int) -> Array:
    """Writes one token per row, of length 1 on `axis`, into array [P, M, …]; XLA does so in place."""
    update = jax.lax.dynamic_update_slice_in_dim
    if at.batch is None:
        return update(array, new, at.position[0], axis)
    if not backend().writes_by_batch:
        return jax.vmap(jax.vmap(functools.partial(update, axis=axis - 2)))(array, new, at.of_rows)

    def of_batch(i: Array, array: Array) -> Array:
        is_of_batch = (at.batch == i).reshape(*at.batch.shape, *[1] * (array.ndim - 2))
        old = jax.lax.dynamic_slice_in_dim(array, at.position[i], 1, axis)
        return update(array, jnp.where(is_of_batch, new, old), at.position[i], axis)

    return jax.lax.fori_loop(0, len(at.position), of_batch, array)


class Interval(NamedTuple):
    """The contiguous keys that each row's one query sees.

    Attributes:
      first: [P, M] or [P, 1] index of the first key seen; None is 0.
      end: number of keys, [P] for prompts, [P, M] for rollouts.
    """

    first: Array | None
    end: Array


class Part(NamedTuple):
    """One part of the attention's keys: a prompt's (rank 4) or the rollouts' own (rank 5).

    Attributes:
      kv: keys and values.
      mask: True at keys that a query may see, [P or 1, M or 1, T or 1, S].
      slots: through which rows of a compacted batch read a prompt's keys; the mask's M is then R.
      interval: the mask as numbers, for decoding.
    """

    kv: KeyValues
    mask: Array
    slots: Slots | None = None
    interval: Interval | None = None
