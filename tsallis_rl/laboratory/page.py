"""Writes the laboratory's page, figures with claims and measurements, and its tables."""

import csv
import html
from collections.abc import Sequence
from pathlib import Path

from tsallis_rl.laboratory.study import Study

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption { color: #333; }
h2 { margin-top: 3rem; } .claim { color: #555; }
@media print { h2 { break-before: page; } }
"""


def write_table(study: Study, folder: Path) -> None:
    """Writes the study's table as NAME.csv."""
    with open(folder / f"{study.name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, study.rows[0].keys())
        writer.writeheader()
        writer.writerows(study.rows)


def write_page(studies: Sequence[Study], folder: Path) -> Path:
    """Writes index.html, which shows the figures and tables beside it; returns its path."""
    sections = "\n".join(_section(study) for study in studies)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Tsallis loss: the laboratory</title><style>{_STYLE}</style></head>
<body><h1>The laboratory</h1>
<p>A policy with three rationales and two answers, small enough that its success probability, the gradient of every
member of the loss family and every pool of rollouts can be written down, in float64. What the estimators of
<code>tsallis_rl.objectives</code> give is held against that. Claims are those of arXiv 2604.25907 unless they say so;
"exact" in the tables means that all pools were enumerated, otherwise errors are one standard error.</p>
{sections}
</body></html>
"""
    file = folder / "index.html"
    file.write_text(page, encoding="utf-8")
    return file


def _section(study: Study) -> str:
    title, claim, measured = (html.escape(text) for text in (study.title, study.claim, study.measured))
    return f"""<h2>{title}</h2>
<figure><img src="{study.name}.png" alt="{title}">
<figcaption><p class="claim"><b>Claimed.</b> {claim}</p><p><b>Measured.</b> {measured}
(<a href="{study.name}.csv">table</a>, <a href="{study.name}.pdf">figure for print</a>)</p></figcaption></figure>"""
