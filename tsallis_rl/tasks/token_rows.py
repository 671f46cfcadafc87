"""Rows of token ids of different lengths, stored one after the other."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class TokenRows(NamedTuple):
    """P rows of ids.

    Attributes:
      ids: int32 [sum of the lengths], row after row; may be mapped from a file.
      offsets: int64 [P + 1], where each row begins, and where the last ends.
    """

    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> "TokenRows":
        """Concatenates rows of ids."""
        rows = list(rows)
        ids = np.concatenate([np.asarray(row, np.int32) for row in rows] or [np.zeros(0, np.int32)])
        return cls(ids, np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """Lengths of the rows, int32 [P]."""
        return np.diff(self.offsets).astype(np.int32)

    def row(self, i: int) -> np.ndarray:
        """Reads one row, int32 [T]."""
        return np.asarray(self.ids[self.offsets[i] : self.offsets[i + 1]])

    def padded(self, indices: Sequence[int], width: int, value: int) -> np.ndarray:
        """Pads the rows at `indices` [n] on the right, and cuts longer ones → int32 [n, width]."""
        padded = np.full((len(indices), width), value, np.int32)
        for row, i in zip(padded, indices, strict=True):
            ids = self.row(i)[:width]
            row[: len(ids)] = ids
        return padded
