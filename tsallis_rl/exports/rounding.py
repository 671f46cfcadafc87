"""Measures how much of training's change tensors keep when they are rounded to a shorter type.

bfloat16 has eight bits of mantissa: a number moves only if training changed it by more than a 512th of itself. At the
learning rates of reinforcement learning most numbers change by less, and a rounded export is then nearly the model that
training started from.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from tsallis_rl.models import Architecture, lora
from tsallis_rl.models.pretrained import Safetensors, stored_tensors

_AT_ONCE = 1 << 22  # elements compared at a time


class Kept(NamedTuple):
    """The part of a change Δ = new − start that remains after rounding: Δ' = round(new) − round(start).

    Attributes:
      moved: number of elements with Δ ≠ 0.
      share: the share of these with Δ' ≠ 0.
      norm: ‖Δ'‖ / ‖Δ‖. It may be above 1: what moves at all moves by a whole step of the shorter type.
      cosine: of the angle between Δ' and Δ.
    """

    moved: int
    share: float
    norm: float
    cosine: float

    def sentence(self, dtype: str) -> str:
        """Describes what is kept, in a sentence for people."""
        if not self.moved:
            return f"training moved no number, so nothing is lost in {dtype}"
        return (
            f"of the {self.moved:,} numbers that training moved, {self.share:.1%} still differ from the start in "
            f"{dtype}; the remaining change has {self.norm:.2f} of the change's norm, cosine {self.cosine:.2f}"
        )


def _measure(changes: Iterable[tuple[np.ndarray, np.ndarray]]) -> Kept:
    """Computes what is kept from pairs of arrays Δ and Δ' of one shape."""
    moved = left = 0
    norm = left_norm = product = 0.0
    for change, rounded in changes:
        changed = change != 0
        moved += int(changed.sum())
        left += int((changed & (rounded != 0)).sum())
        change, rounded = change.astype(np.float64).ravel(), rounded.astype(np.float64).ravel()
        norm += float(change @ change)
        left_norm += float(rounded @ rounded)
        product += float(change @ rounded)
    return Kept(
        moved=moved,
        share=left / moved if moved else 1.0,
        norm=(left_norm / norm) ** 0.5 if norm else 1.0,
        cosine=product / (left_norm * norm) ** 0.5 if left_norm and norm else 0.0,
    )


def kept_of_parameters(params: dict, arch: Architecture, source: Path, dtype: str) -> Kept:
    """Compares parameters, in float32, with the tensors of the pretrained folder that they started from.

    Both are read one tensor at a time.
    """
    files = Safetensors(source)

    def rounded(array: np.ndarray) -> np.ndarray:
        return array.astype(jnp.dtype(dtype)).astype(np.float32)

    def changes() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for name, array in stored_tensors(params, arch):
            start = files.slice(name, array.shape)[:].reshape(-1)
            new = array.reshape(-1)
            for i in range(0, new.size, _AT_ONCE):
                one, other = new[i : i + _AT_ONCE], start[i : i + _AT_ONCE].astype(np.float32)
                yield one - other, rounded(one) - rounded(other)

    return _measure(changes())


def kept_of_factors(factors: dict, arch: Architecture, dtype: str) -> Kept:
    """Compares the products α/r in × out of factors with those of the rounded factors, one layer's matrix at a time."""
    scale = np.float32(arch.lora_alpha / arch.lora_rank)

    def changes() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for name, stacked in factors["layers"].items():
            if name.endswith(lora.IN):
                outs = np.asarray(factors["layers"][name.removesuffix(lora.IN) + lora.OUT])
                for pair in zip(np.asarray(stacked), outs, strict=True):
                    into, out = pair[0].reshape(-1, arch.lora_rank), pair[1].reshape(arch.lora_rank, -1)
                    short = [x.astype(jnp.dtype(dtype)).astype(np.float32) for x in (into, out)]
                    rows = max(1, _AT_ONCE // out.shape[1])
                    for i in range(0, len(into), rows):
                        yield scale * (into[i : i + rows] @ out), scale * (short[0][i : i + rows] @ short[1])

    return _measure(changes())
