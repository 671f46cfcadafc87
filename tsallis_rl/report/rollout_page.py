"""A page for each step whose rollouts a run saved: rollouts/step_….html, which opens from disk."""

import html
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsallis_rl.run_directory import json_lines

_TEMPLATE = Path(__file__).with_name("rollouts.html")
# Column of the page: field of the file. Those that a run did not save are left out.
_COLUMNS = {
    "rollout": "rollout", "rationale": "rationale", "closed": "closed", "answer": "answer", "log w": "log_w",
    "weight": "weight", "score": "score", "path": "path", "draws": "draws", "reward": "reward",
}  # fmt: skip


def write_pages(folder: Path, what: str, report: Path) -> list[Path]:
    """Writes the pages of the run in `folder`, called `what`, with links to the report; returns them step by step."""
    files = sorted((folder / "rollouts").glob("step_*.jsonl"))
    pages = [file.with_suffix(".html") for file in files]
    written = []
    back = html.escape(Path(os.path.relpath(report, folder / "rollouts")).as_posix())
    for i, (file, page) in enumerate(zip(files, pages, strict=True)):
        links = [f'<a href="{back}">report</a>']
        for text, other in (("‹ earlier", i - 1), ("later ›", i + 1)):
            if 0 <= other < len(pages):
                links.append(f'<a href="{pages[other].name}">{text} (step {step_of(files[other])})</a>')
        if rows := json_lines(file):
            page.write_text(rollout_page(rows, f"{what}: rollouts of step {step_of(file)}", links), "utf-8", "replace")
            written.append(page)
    return written


def step_of(file: Path) -> int:
    """Of a file of rollouts or its page."""
    return int(file.stem.partition("_")[2])


def rollout_page(rows: Sequence[Mapping[str, Any]], title: str, links: Sequence[str] = ()) -> str:
    """The page of rows as `tsallis_rl.transcripts.rows` makes them, group by group; `links` are markup."""
    columns = {column: field for column, field in _COLUMNS.items() if field in rows[0]}
    if "reward" not in columns:
        columns.pop("answer", None)  # it is the gold answer, behind every rationale
    groups: list[dict[str, Any]] = []
    table = []
    for group in _groups(rows):
        log_w = np.array([-np.inf if row["log_w"] is None else row["log_w"] for row in group])
        log_p = float(np.logaddexp.reduce(log_w) - np.log(len(log_w)))
        alone = {name: group[0][name] for name in ("example", "prompt", "gold")}
        groups.append(alone | {"logp": log_p if np.isfinite(log_p) else None})
        table += [[len(groups) - 1, *(row[field] for field in columns.values())] for row in group]
    data = json.dumps({"columns": ["group", *columns], "groups": groups, "rows": table}, ensure_ascii=False)
    closed = [row["closed"] for row in rows]
    about = f"{len(rows)} rollouts of {len(groups)} prompts. How rationales closed: " + ", ".join(
        f"{closed.count(how)} {how}" for how in dict.fromkeys(closed)
    )
    fields = {
        "title": html.escape(title),
        "about": html.escape(about + "."),
        "links": "\n".join(links),
        "data": data.replace("<", "\\u003c"),  # no text can end the script element
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: fields[found[1]], _TEMPLATE.read_text(encoding="utf-8"))


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows that follow each other, cut where the count of rollouts starts again."""
    starts = [i for i, row in enumerate(rows) if i == 0 or row["rollout"] <= rows[i - 1]["rollout"]]
    return [list(rows[a:b]) for a, b in itertools.pairwise([*starts, len(rows)])]
