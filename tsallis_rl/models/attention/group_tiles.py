"""The group kernel's tiles, what its queries see, what is kept of it, and all that is Triton's; see `group_kernel`.

Triton is imported where it is called, so that a jax without it serves other processors.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from tsallis_rl.models.attention.parts import KeyValues

LEAST = 16  # queries and keys of a tile: a tensor core's


class Tile(NamedTuple):
    """The blocks of a program.

    Attributes:
      queries: of a block.
      keys: of a block.
      warps: of a program.
      stages: blocks that are loaded ahead, and the one at work.
    """

    queries: int
    keys: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tile of each kernel."""

    forward: Tile
    d_query: Tile
    d_own: Tile
    d_prompt: Tile


# A compiler for Hopper spills no register of these; of wider heads fewer rows fit.
TILES = Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2), Tile(64, 128, 8, 2))
WIDE_TILES = Tiles(Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(32, 64, 8, 2), Tile(32, 64, 8, 2))


def tiles_for(head_dim: int) -> Tiles:
    """Chooses the tiles for heads of `head_dim` numbers."""
    return TILES if head_dim <= 128 else WIDE_TILES


class Limits(NamedTuple):
    """Bounds of what queries see besides the order of tokens; None is no bound.

    Attributes:
      lengths: [P] keys of each prompt, at most S.
      start: [P, M, T] the first own key that each query sees, at most t; the prompt stands before it. In programs of
        rows, [P · M, T].
      window: how many positions back a query sees, its own included; at least 1. In programs, [1].
    """

    lengths: Array
    start: Array | None = None
    window: Array | None = None


class Given(NamedTuple):
    """The arrays of the forward pass, or a program's blocks of them.

    Attributes:
      query: [P · M, T, K · G, h].
      own: [P · M, T, K, h].
      prompt: [P, S, K, h] or None.
      limits: see `Limits`.
    """

    query: Any
    own: KeyValues
    prompt: KeyValues | None
    limits: Limits


class Kept(NamedTuple):
    """The arrays of the backward pass: those of the forward pass, its result, and log-sum-exps [P · M, K · G, T]."""

    given: Given
    out: Array
    lse: Array


class How(NamedTuple):
    """The constants of a call."""

    scale: float
    tiles: Tiles
    interpret: bool


class Sizes(NamedTuple):
    """The constants of a program: its tile, T, S, and the factor of the scores."""

    tile: Tile
    tokens: int
    width: int
    scale: float


def program_sizes(given: Given, tile: Tile, scale: float, *, of_prompt: bool = True) -> Sizes:
    """Makes a tile no larger than what there is of queries and keys."""
    tokens, width = given.query.shape[1], 0 if given.prompt is None else given.prompt.keys.shape[1]
    longest = max(tokens, width) if of_prompt else tokens
    queries, keys = (max(LEAST, pl.next_power_of_2(size)) for size in (tokens, longest))
    clipped = tile._replace(queries=min(tile.queries, queries), keys=min(tile.keys, keys))
    return Sizes(clipped, tokens, width, scale)


def whole(size: int, block: int) -> int:
    """Rounds a size up to whole blocks: a block that is all of an axis, of which no more than the axis is read."""
    return pl.cdiv(size, block) * block


def triton_call(
    kernel: Callable[..., None], name: str, sizes: Sizes, *, interpret: bool, **arguments: Any
) -> Callable[..., Any]:
    """Makes a Pallas call in Triton."""
    from jax.experimental.pallas import triton

    parameters = triton.CompilerParams(num_warps=sizes.tile.warps, num_stages=sizes.tile.stages)
    program = functools.partial(kernel, sizes=sizes)
    return pl.pallas_call(program, compiler_params=parameters, interpret=interpret, name=name, **arguments)


def product(x: Array, y: Array) -> Array:
    """Multiplies [m, k] by [k, n] in float32."""
    return jax.lax.dot(x, y, preferred_element_type=jnp.float32)


def _rows(ref: Any, inside: Array) -> Array:
    return inside[:, None] if len(ref.shape) > 1 else inside


def load(ref: Any, inside: Array | None) -> Array:
    """Loads an array [n] or [n, h], with zeros for the rows that are not inside [n]; None is all inside."""
    from jax.experimental.pallas import triton

    return ref[...] if inside is None else triton.load(ref, mask=_rows(ref, inside), other=0)


def store(ref: Any, x: Array, inside: Array) -> None:
    """Stores the rows of x [n] or [n, h] that are inside [n], in the dtype of ref."""
    from jax.experimental.pallas import triton

    triton.store(ref, x.astype(ref.dtype), mask=_rows(ref, inside))


def inside_rows(at: Array | int, size: int, end: int) -> Array | None:
    """Tells which of the rows from `at` on come before an axis' end; None where blocks fit into it."""
    return None if end % size == 0 else at + jnp.arange(size) < end
