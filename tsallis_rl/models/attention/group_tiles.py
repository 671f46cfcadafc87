"""What the programs of the group kernel share: tiles, what queries see, what is kept, and the call of Triton."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from tsallis_rl.models.attention.parts import KeyValues

LEAST = 16  # queries and keys of a tile: a tensor core's


class Tile(NamedTuple):
    """What a program holds at a time.

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
    """What queries see besides the order of tokens; inside a kernel, the same of its block.

    Attributes:
      lengths: [P] keys of each prompt.
      start: [P · M, T] the first own key that each query sees, before which stands the prompt; None is 0 for all.
      window: [1] how many positions back a query sees, its own included; None is all.
    """

    lengths: Array
    start: Array | None
    window: Array | None


class How(NamedTuple):
    """Constants of a call."""

    scale: float
    tiles: Tiles
    interpret: bool


class Kept(NamedTuple):
    """Arrays that the backward pass needs: those of the forward pass, its result, log-sum-exps [P · M, K · G, T]."""

    query: Array
    own: KeyValues
    prompt: KeyValues | None
    limits: Limits
    out: Array
    lse: Array


def clipped(tile: Tile, tokens: int, prompt: KeyValues | None) -> Tile:
    """Makes a tile no larger than what there is of queries and keys."""
    queries, keys = (max(LEAST, pl.next_power_of_2(size)) for size in (tokens, max(tokens, width_of(prompt))))
    return tile._replace(queries=min(tile.queries, queries), keys=min(tile.keys, keys))


def width_of(prompt: KeyValues | None) -> int:
    """Returns S, which is 0 without a prompt."""
    return 0 if prompt is None else prompt.keys.shape[1]


def whole(size: int, block: int) -> int:
    """Rounds a size up to whole blocks: a block that is all of an axis, of which no more than the axis is read."""
    return pl.cdiv(size, block) * block


def triton_call(kernel: Callable[..., None], name: str, tile: Tile, how: How, **arguments: Any) -> Callable[..., Any]:
    """Makes a Pallas call in Triton."""
    parameters = plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages)
    return pl.pallas_call(kernel, compiler_params=parameters, interpret=how.interpret, name=name, **arguments)


def load_rows(ref: Any, at: Array | int, size: int, end: int) -> Array:
    """Loads `size` rows of ref [end, …] from `at` on; zeros after the end."""
    block = ref.at[pl.ds(at, size)]
    if end % size == 0:
        return block[...]
    inside = at + jnp.arange(size) < end
    return plgpu.load(block, mask=inside.reshape(-1, *[1] * (len(ref.shape) - 1)), other=0)
