"""Writes web pages that open from disk: one style sheet, a flat list of sections, contents, a list of symbols."""

import html
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tsallis_rl.laboratory.symbols import glossary

_WIDE = 620  # CSS pixels: figures at least this wide scroll on a phone
_PIXELS = 96 / 160  # CSS pixels per pixel of a figure (figures.SETTINGS, savefig.dpi)
STYLE = """
:root { color-scheme: light dark; --text: #111; --soft: #555; --line: #ccc; --page: #fff; --link: #0b57d0; }
@media screen and (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --soft: #adadad; --line: #444; --page: #16171a; --link: #8ab4f8; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--page); overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; } a { color: var(--link); }
figure { margin: 1rem 0; } figcaption, .note { color: var(--soft); font-size: .93em; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.scroll { overflow-x: auto; } code, li, dd { overflow-wrap: anywhere; }
p, ul, dl { max-width: 62rem; } sub, sup { line-height: 0; }
.headline { font-size: 1.08em; } .headline li { margin: .3rem 0; } .headline ul { font-size: .93em; }
#contents ul { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; list-style: none; padding: .6rem 0;
  border: solid var(--line); border-width: 1px 0; }
table { border-collapse: collapse; font-size: .9em; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; }
th { vertical-align: bottom; }
td { min-width: 4.5rem; font-variant-numeric: tabular-nums; } .whole { white-space: nowrap; }
.symbol { color: inherit; text-decoration: none; } abbr { text-decoration: underline dotted var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; } dd { margin: 0; }
dt { font-style: italic; } summary { cursor: pointer; }
math { font-size: 1.05em; } .claim { color: var(--soft); }
.yes::before { content: "✓ "; } .no::before { content: "✗ "; } .part::before { content: "◐ "; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; } img.wide { max-width: none; width: 46rem; }
  table:has(td:nth-child(4)) { min-width: 44rem; }
  tr > :first-child { max-width: 9rem; } tr > :first-child .whole { white-space: normal; }
}
@media print {
  #contents { display: none; } .scroll { overflow: visible; } .whole { white-space: normal; }
  table { font-size: .7em; min-width: 0; } td { min-width: 0; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
"""


class Section(NamedTuple):
    """A section of a page.

    Attributes:
      name: its id, to which the contents and other pages link; the same on every page of a kind.
      title: its heading; if empty, the section has no heading and is not in the contents.
      body: markup; a section with an empty body is left out.
    """

    name: str
    title: str
    body: str


def web_page(title: str, opening: Section, sections: Sequence[Section]) -> str:
    """Writes a page: title, opening, contents, the `sections` that have a body, and the list of symbols."""
    written = [section for section in sections if section.body]
    if written:
        written.append(Section("symbols", "Symbols", glossary()))
    links = "".join(f'<li><a href="#{s.name}">{html.escape(s.title)}</a></li>\n' for s in written if s.title)
    contents = Section("contents", "", f'<nav aria-label="Contents"><ul>\n{links}</ul></nav>' if links else "")
    body = "\n".join(_markup(section) for section in (opening, contents, *written) if section.body)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}</style></head>
<body><h1>{html.escape(title)}</h1>
{body}
</body></html>
"""


def _markup(section: Section) -> str:
    heading = f"<h2>{html.escape(section.title)}</h2>\n" if section.title else ""
    return f'<section id="{section.name}">\n{heading}{section.body}</section>'


def figure(file: Path, address: str, title: str, caption: str) -> str:
    """Writes the markup of a figure: the PNG `file`, linked as `address`, and its caption, which is markup."""
    width, height = (round(pixels * _PIXELS) for pixels in struct.unpack(">II", file.read_bytes()[16:24]))
    wide = ' class="wide"' if width >= _WIDE else ""
    image = f'<img src="{address}" alt="{html.escape(title)}" width="{width}" height="{height}"{wide}>'
    return f'<figure><div class="scroll">{image}</div>\n<figcaption>{caption}</figcaption></figure>\n'
