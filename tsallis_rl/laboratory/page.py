"""Writes the laboratory's page (figures with claims and measurements) and its tables."""

import csv
from collections.abc import Sequence
from pathlib import Path

from tsallis_rl.laboratory.mathml import with_formulas
from tsallis_rl.laboratory.study import Study
from tsallis_rl.laboratory.symbols import explained, symbol
from tsallis_rl.laboratory.web_page import Section, figure, web_page

_OPENING = f"""<p>A policy with three rationales and two answers, small enough that its success probability
{symbol("P")}, the gradient of every member of the loss family and every pool of rollouts can be written down, in
float64. The estimators of <code>tsallis_rl.objectives</code> are compared with these exact values. Claims are those of
arXiv 2604.25907 unless marked as ours; "exact" in the tables means that all pools were enumerated, otherwise errors are
one standard error. Each {symbol("q")} has one colour in all figures.</p>
"""


def write_table(study: Study, folder: Path) -> None:
    """Writes the study's table as NAME.csv."""
    with open(folder / f"{study.name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, study.rows[0].keys())
        writer.writeheader()
        writer.writerows(study.rows)


def write_page(studies: Sequence[Study], folder: Path) -> Path:
    """Writes index.html, which shows the figures beside it and links their tables; returns its path."""
    opening = Section("summary", "", _OPENING)
    page = web_page("The laboratory", opening, [_section(study, folder) for study in studies])
    file = folder / "index.html"
    file.write_text(page, encoding="utf-8")
    return file


def _section(study: Study, folder: Path) -> Section:
    caption = (
        f'<p class="claim"><b>Claimed.</b> {with_formulas(study.claim)}</p>\n'
        f"<p><b>Measured.</b> {explained(study.measured)}\n"
        f'(<a href="{study.name}.csv">table</a>, <a href="{study.name}.pdf">figure for print</a>)</p>'
    )
    shown = figure(folder / f"{study.name}.png", f"{study.name}.png", study.title, caption)
    return Section(f"study-{study.name}", study.title, shown)
