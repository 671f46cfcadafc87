"""A study: a claim, its measurement, and the table from which the figure and the page are made."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

QS = (0.0, 0.25, 0.5, 0.75, 1.0)  # values of q that the paper trains with (docs/method.md §6)


class Study(NamedTuple):
    """A claim and its measurement.

    Attributes:
      name: of the study and of its files.
      title: one line.
      claim: what is claimed; formulas between backticks, in the notation of `mathml`.
      measured: the result, with its numbers.
      rows: the table; every row has the same keys.
    """

    name: str
    title: str
    claim: str
    measured: str
    rows: list[dict[str, Any]]

    def column(self, value: str, **where: Any) -> np.ndarray:
        """Returns a column of the rows that have the entries `where` → [rows]."""
        return np.array([row[value] for row in self.rows if all(row[key] == wanted for key, wanted in where.items())])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Fits the slope of log y against log x by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
