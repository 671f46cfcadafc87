"""Reads the names of docs/metrics.md as patterns, to compare them with the names that a run logs."""

import re

from tests.support.paths import ROOT

PLACES = {
    "SPLIT": r"(?:validation|test|test_last)(?:/(?:cold|warm))?",
    "PART": r"(?:cold|warm)",
    "GRADE": r"\w+",
    "A@Q": r"\w+@[\d.]+",
    "B@Q": r"\w+@[\d.]+",
    "N": r"\d+",
}


def documented() -> dict[str, re.Pattern]:
    """Returns name → pattern for every row; {a,b} in a row means several names."""
    found = {}
    for line in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| `([^`]+)` \| [^|]+ \| .+ \|$", line):
            head, _, rest = match[1].partition("{")
            ends, _, tail = rest.partition("}")
            for end in ends.split(","):
                name = head + end + tail
                pattern = re.sub("SPLIT|PART|GRADE|[AB]@Q|N(?!O)", lambda place: PLACES[place[0]], name)
                assert name not in found, f"{name} is listed twice"
                found[name] = re.compile(pattern)
    return found


def unknown(names) -> list[str]:
    """Returns those of `names` that the table lacks."""
    table = documented().values()
    return sorted(name for name in names if name != "step" and not any(row.fullmatch(name) for row in table))


def never_logged(names) -> list[str]:
    """Returns the rows of the table that match none of `names`."""
    return sorted(name for name, row in documented().items() if not any(map(row.fullmatch, names)))
