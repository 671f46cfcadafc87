"""Suggests what a person may have meant by a name that is not known."""

import difflib
from collections.abc import Iterable

_LEAST, _BEHIND = 0.65, 0.15  # the least likeness of a suggestion, and the most it may lag the best
_SHORT = {"lr": "learning_rate"}  # as people write it


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Lists the names of `known` that are most like `name`, the likeliest first.

    The field of section.field counts more than the section, and only the field counts if `name` has no section:
    `learning_rate`, `lr` and `optimiser.lr` all find `optimizer.learning_rate`.
    """
    section, dot, field = name.rpartition(".")
    field = _SHORT.get(field, field)

    def likeness(other: str) -> float:
        of_other = other.rpartition(".")
        same = _ratio(field, of_other[2])
        return 0.7 * same + 0.3 * _ratio(section, of_other[0]) if dot else same

    found = sorted(((likeness(other), other) for other in known), reverse=True)
    return [other for like, other in found if like >= max(_LEAST, found[0][0] - _BEHIND)][:most]


def _ratio(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right).ratio()
