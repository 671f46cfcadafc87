"""The table of settings as a page of the documentation."""

import re

from tsallis_rl.config import listing, schema
from tsallis_rl.config.listing import settings_page
from tsallis_rl.config.schema import FIELDS, SECTIONS, TASK_FIELDS, Field


def rows(page: str) -> dict[str, list[str]]:
    """Splits the rows of tables at bars that are not escaped: field → cells."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_page_lists_every_field_with_its_default_meaning_limits_and_readers():
    page = settings_page()
    found = rows(page)
    assert list(found) == sorted({**FIELDS, **TASK_FIELDS}, key=list(found).index)
    assert {len(row) for row in found.values()} == {2}
    assert re.findall(r"(?m)^## (.*)$", page) == list(SECTIONS)
    assert found["train.steps"] == [
        "`150`",
        "training steps; the one setting that may grow in a run's folder, to continue it<br><small>from 1</small>",
    ]
    assert found["estimator.q_end"][1].endswith(
        "hard\\_continuum, pkpo, curverl at estimator.schedule step, linear, cosine</small>"
    )
    assert "<small>choices: say, best, paft, lower\\_q</small>" in found["guards.on_collapse"][1]


def test_what_ends_a_cell_or_is_markup_is_escaped(monkeypatch):
    hostile = Field("a|b", "one | two `x|y` <think> *z* [q](r)\nnext", choices=("a|b", "c"))
    monkeypatch.setitem(schema.FIELDS, "log.to", hostile)
    assert listing.FIELDS is schema.FIELDS
    (row,) = [row for name, row in rows(settings_page()).items() if name == "log.to"]
    assert row == [
        r"`'a\|b'`",
        r"one \| two `x\|y` &lt;think> \*z\* \[q\](r) next<br><small>choices: a\|b, c</small>",
    ]
