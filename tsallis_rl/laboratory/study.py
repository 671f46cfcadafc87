"""A study: a claim, what was measured, and the table from which figures and page are made."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

QS = (0.0, 0.25, 0.5, 0.75, 1.0)  # commitments that the paper trains with (docs/method.md §6)


class Study(NamedTuple):
    """A claim and what was measured of it.

    Attributes:
      name: of its files.
      title: one line.
      claim: what the paper says; formulas between backticks, as `mathml` reads them.
      measured: the result, with its numbers.
      rows: the table; every row has the same keys.
    """

    name: str
    title: str
    claim: str
    measured: str
    rows: list[dict[str, Any]]

    def column(self, value: str, **where: Any) -> np.ndarray:
        """Selects a column of the rows that have the given entries, [rows]."""
        return np.array([row[value] for row in self.rows if all(row[key] == wanted for key, wanted in where.items())])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Fits the slope of log y against log x by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
