"""The group kernel's tiles, the limits of what its queries see, and its residuals; see `group_kernel`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from tsallis_rl.models.attention.parts import KeyValues
from tsallis_rl.models.attention.triton_programs import LEAST, triton_call


class Tile(NamedTuple):
    """The blocks of a program.

    Attributes:
      queries: queries per block.
      keys: keys per block.
      warps: warps per program.
      stages: pipeline stages: blocks that are loaded ahead, and the one in use.
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


# Each the fastest of some ten on one H200 (`python -m benchmarks.attention --tune`, heads of 128). For wider heads,
# fewer rows fit into a Hopper's registers.
TILES = Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), Tile(64, 128, 8, 3))
WIDE_TILES = Tiles(Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(32, 64, 8, 2), Tile(32, 64, 8, 2))


def tiles_for(head_dim: int) -> Tiles:
    """Chooses the tiles for heads of width `head_dim`."""
    return TILES if head_dim <= 128 else WIDE_TILES


class Limits(NamedTuple):
    """Bounds on what queries see, besides causality; None is no bound.

    Attributes:
      lengths: [P] keys of each prompt, at most S.
      start: [P, M, T] the first own key that each query sees, at most t; the prompt comes right before it. [P · M, T]
        in programs.
      window: how many positions back a query sees, its own included; at least 1. [1] in programs.
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
    """Clips a tile to the number of queries and keys, and collects a program's constants."""
    tokens, width = given.query.shape[1], 0 if given.prompt is None else given.prompt.keys.shape[1]
    longest = max(tokens, width) if of_prompt else tokens
    queries, keys = (max(LEAST, pl.next_power_of_2(size)) for size in (tokens, longest))
    clipped = tile._replace(queries=min(tile.queries, queries), keys=min(tile.keys, keys))
    return Sizes(clipped, tokens, width, scale)


def whole(size: int, block: int) -> int:
    """Rounds an axis' size up to whole blocks, for a block spec that spans the axis; only the axis itself is read."""
    return pl.cdiv(size, block) * block


def group_call(
    kernel: Callable[..., None], name: str, sizes: Sizes, *, interpret: bool, **arguments: Any
) -> Callable[..., Any]:
    """Makes a Pallas call of a kernel with its tile."""
    tile = sizes.tile
    program = functools.partial(kernel, sizes=sizes)
    return triton_call(program, name, tile.warps, tile.stages, interpret=interpret, **arguments)


def inside_rows(at: Array | int, size: int, end: int) -> Array | None:
    """Returns which of the rows from `at` on come before an axis' end; None if blocks divide the axis evenly."""
    return None if end % size == 0 else at + jnp.arange(size) < end
