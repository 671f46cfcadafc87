"""Checks shapes on entry to functions that would silently compute something else if called wrongly; and divisors."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Expected(NamedTuple):
    """An argument and the shape that it must have.

    Attributes:
      name: the argument's name.
      array: its value; None is not checked.
      letters: dimensions as letters of the glossary (`tsallis_rl/__init__.py`), separated by spaces. A letter has the
        same size in all arguments; "M|1" is M or 1; a leading "..." is any number of dimensions.
      kind: required dtype, such as jnp.integer; None is any.
    """

    name: str
    array: Array | None
    letters: str
    kind: type | None = None


def check_shapes(*arguments: Expected, **sizes: int) -> None:
    """Checks that arguments have the ranks, sizes and dtypes that they are expected to have.

    Args:
      *arguments: checked in order; the first one with a letter that is not "M|1" fixes that letter's size.
      **sizes: sizes of letters that are already known.

    Raises:
      ValueError: an argument has another shape or dtype; the message names the argument, what it has and the letters.
    """
    known: dict[str, int | tuple[int, ...]] = {**sizes}
    for name, array, letters, kind in arguments:
        if array is None:
            continue
        if not _fits(array.shape, letters.split(), known):
            named = letters.replace("|", " ").split()
            shape = ", ".join(letter.replace("|", " or ") for letter in letters.split())
            fixed = ", ".join(f"{letter} = {size}" for letter, size in known.items() if letter in named)
            fixed = f" with {fixed}" if fixed else ""
            raise ValueError(f"{name} has shape {array.shape}, expected [{shape}]{fixed}")
        if kind is not None and not jnp.issubdtype(array.dtype, kind):
            raise ValueError(f"{name} has dtype {array.dtype}, expected {getattr(kind, '__name__', kind)} [{letters}]")


def _fits(shape: tuple[int, ...], letters: list[str], known: dict[str, int | tuple[int, ...]]) -> bool:
    """Returns whether a shape fits these letters; adds the sizes of letters that it fixes to `known`."""
    if letters[:1] == ["..."]:
        split = len(shape) - len(letters) + 1
        if split < 0 or known.setdefault("...", shape[:split]) != shape[:split]:
            return False
        shape, letters = shape[split:], letters[1:]
    if len(shape) != len(letters):
        return False
    for size, letter in zip(shape, letters, strict=True):
        first, _, other = letter.partition("|")
        if size != (known.get(first, size) if other else known.setdefault(first, size)) and str(size) != other:
            return False
    return True


def largest_divisor(size: int, most: int) -> int:
    """Returns the largest divisor of a size that is at most `most`; the size itself if `most` is 0."""
    return max(n for n in range(1, size + 1) if size % n == 0 and n <= (most or size))
