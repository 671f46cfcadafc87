"""What a study hands to the tables, the figures and the page."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

QS = (0.0, 0.25, 0.5, 0.75, 1.0)  # commitments that the paper trains with (METHOD §6)


class Study(NamedTuple):
    """One claim and what was measured of it.

    Attributes:
      name: of its files.
      title: one line.
      claim: what the paper says.
      measured: what came out, with the numbers.
      rows: the table; every row has the same keys.
    """

    name: str
    title: str
    claim: str
    measured: str
    rows: list[dict[str, Any]]

    def column(self, value: str, **where: Any) -> np.ndarray:
        """One column of the rows that have the given entries."""
        return np.array([row[value] for row in self.rows if all(row[key] == wanted for key, wanted in where.items())])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of log y against log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
