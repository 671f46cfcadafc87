"""Writes pages that show rollouts as text and open from disk: of saved steps, and of an evaluation's sampled answers.

A run has rollouts/step_….html, and evaluations/validation_….html for the model's answers on validation.
"""

import html
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from tsallis_rl.report.chat_turns import chat_turns
from tsallis_rl.runs.cache import write_whole
from tsallis_rl.runs.errors import UserError, visible
from tsallis_rl.runs.json_files import json_lines, plain
from tsallis_rl.runs.paths import plain_number
from tsallis_rl.runs.progress import say

_TEMPLATE = Path(__file__).with_name("rollouts.html")
# Column of the page: field of the file. A column is left out if no row has its field.
_COLUMNS = {
    "rollout": "rollout", "rationale": "rationale", "closed": "closed", "answer": "answer", "as sampled": "sampled",
    "correct": "correct", "log w": "log_w", "weight": "weight", "score": "score", "path": "path", "draws": "draws",
    "reward": "reward",
}  # fmt: skip
_TEXTS = ("example", "prompt", "gold", "rationale", "closed", "answer", "sampled")
_GRADE = "grade: "
PAGE_BYTES = 32 << 20  # bytes of text on a page; browsers are slow with more


class Saved(NamedTuple):
    """Texts that a run saves at steps.

    Attributes:
      files: their path in the run's folder, without _STEP.jsonl.
      title: a page's title, before the step.
    """

    files: str
    title: str


ROLLOUTS = Saved("rollouts/step", "rollouts of step")
ANSWERS = Saved("evaluations/validation", "answers on validation at step")


class Pages(NamedTuple):
    """The pages of one run, in order of steps: its saved rollouts, and its sampled answers on validation."""

    rollouts: list[Path]
    answers: list[Path]


def write_pages(folder: Path, name: str, report: Path, written: dict[Path, Hashable] | None = None) -> Pages:
    """Writes the pages of the run in `folder`, called `name`, with links to the report.

    `written` records what each page was made of, so that a later call does not write the same page again.
    """
    known = {} if written is None else written
    return Pages(*(_write_steps(folder, name, report, saved, known) for saved in (ROLLOUTS, ANSWERS)))


def _write_steps(folder: Path, name: str, report: Path, saved: Saved, written: dict[Path, Hashable]) -> list[Path]:
    """Writes a page for every step whose texts were saved; returns the pages in order of steps."""
    begin = folder / saved.files
    found = begin.parent.glob(f"{begin.name}_*.jsonl")
    files = sorted(
        (f for f in found if f.stem.rpartition("_")[0] == begin.name and saved_step(f) is not None), key=step_of
    )
    pages = [file.with_suffix(".html") for file in files]
    back = f'<a href="{link(report, begin.parent)}">report</a>'
    for i, (file, page) in enumerate(zip(files, pages, strict=True)):
        links = [back]
        for text, other in (("‹ earlier", i - 1), ("later ›", i + 1)):
            if 0 <= other < len(pages):
                links.append(f'<a href="{pages[other].name}">{text} (step {step_of(files[other])})</a>')
        title = f"{name}: {saved.title} {step_of(file)}"
        made_of = (title, *links, *file_stamp(file))
        if page in written and written[page] == made_of:
            continue
        try:
            rows, note = json_lines(file), ""
        except UserError as error:  # shown on the page, so that other files and runs still get theirs
            rows, note = [], str(error)
            say(f"WARNING: {note}")
        write_whole(page, rollout_page(rows, title, links, note).encode(errors="replace"))
        written[page] = made_of
    return pages


def file_stamp(file: Path) -> tuple[int, ...]:
    """Reads what changes when a file is written; () if there is no file."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def link(to: Path, folder: Path) -> str:
    """Returns the relative address by which a page in `folder` links to a file, with its name escaped."""
    return html.escape(quote(os.fsencode(Path(os.path.relpath(to, folder)).as_posix())))


def saved_step(file: Path) -> int | None:
    """Reads the step from a file's name, or None."""
    return plain_number(file.stem.rpartition("_")[2])


def step_of(file: Path) -> int:
    """Reads the step from the name of a file of rollouts, or of its page."""
    return int(file.stem.rpartition("_")[2])


def write_evaluation_page(file: Path, rows: Sequence[Mapping[str, Any]], title: str, note: str) -> None:
    """Writes the page of an evaluation's sampled answers, with as many whole examples as fit into PAGE_BYTES.

    Args:
      file: the page.
      rows: the rows of `Evaluation.answers`.
      title: the page's title.
      note: text at the top, such as the figures.
    """
    shown: list[Mapping[str, Any]] = []
    size = 0
    groups = _groups(rows)
    for group in groups:
        size += sum(len(str(row.get(name))) for row in group for name in ("rationale", "sampled", "answer"))
        size += len(str(group[0].get("prompt")))
        if shown and size > PAGE_BYTES:
            shown_groups = len(_groups(shown))
            note += f"\nThe first {shown_groups} of {len(groups)} examples are shown; samples.jsonl beside it has all."
            break
        shown += group
    write_whole(file, rollout_page(shown, title, note=note).encode(errors="replace"))


def rollout_page(rows: Sequence[Mapping[str, Any]], title: str, links: Sequence[str] = (), note: str = "") -> str:
    """Writes the page of rows from `tsallis_rl.sampler.transcripts`, group by group; `links` are markup.

    The cell of a field that a row lacks, or that has another type, stays empty.
    """
    rows = [_with_grades(row) for row in rows]
    columns = {column: field for column, field in _COLUMNS.items() if any(field in row for row in rows)}
    columns |= {field: field for field in dict.fromkeys(f for row in rows for f in row if f.startswith(_GRADE))}
    if not {"reward", "correct"} & columns.keys():
        columns.pop("answer", None)  # it would be the gold answer, the same after every rationale
    groups: list[dict[str, Any]] = []
    table, firsts = [], []
    for group in _groups(rows):
        alone = {name: _cell(group[0], name) for name in ("example", "prompt", "gold")}
        alone["turns"] = chat_turns(alone["prompt"])
        groups.append(alone | {"logp": _log_p_hat(group)})
        firsts += _firsts(group, len(table))
        table += [[len(groups) - 1, *(_cell(row, field) for field in columns.values())] for row in group]
    made = {"columns": ["group", *columns], "groups": groups, "rows": table, "firsts": firsts}
    data = json.dumps(made, ensure_ascii=False)
    closings = Counter(closed for row in rows if (closed := _cell(row, "closed")))
    about = f"{len(rows)} rollouts of {len(groups)} prompts."
    if closings:
        about += f" How rationales closed: {', '.join(f'{count} {how}' for how, count in closings.items())}."
    fields = {
        "title": html.escape(title),
        "about": html.escape(about),
        "note": f"<pre>{html.escape(note)}</pre>" if note else "",
        "links": "\n".join(links),
        "data": data.replace("<", "\\u003c"),  # so that no text can end the script element
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: fields[found[1]], _TEMPLATE.read_text(encoding="utf-8"))


def _firsts(group: Sequence[Mapping[str, Any]], begin: int) -> list[int]:
    """Finds for each row of a group the index, among all rows, of the first with the same rationale."""
    first: dict[Any, int] = {}
    return [first.setdefault(_cell(row, "rationale"), begin + i) for i, row in enumerate(group)]


def _with_grades(row: Mapping[str, Any]) -> dict[str, Any]:
    """Adds an answer's grades to the row's fields, under names that no other field has."""
    grades = row.get("grades")
    return {**row, **{f"{_GRADE}{name}": x for name, x in (grades if isinstance(grades, Mapping) else {}).items()}}


def _cell(row: Mapping[str, Any], field: str) -> str | float | None:
    """Reads a field of a row: None for a number that was not finite or for no answer, "" if the row lacks it."""
    found = row.get(field, "")
    if field in _TEXTS:
        if isinstance(found, str):
            return visible(found)
        return found if (found is None and field in ("answer", "sampled")) else ""
    if type(found) not in (int, float):  # excludes bool, which is an int in Python
        return None if found is None else ""
    return plain(found)


def _log_p_hat(group: Sequence[Mapping[str, Any]]) -> str | float | None:
    """Computes log P̂ of a group; None if no rollout has weight, "" if a log-weight was not saved."""
    names = ["log_w", "log_rho"] if "log_rho" in group[0] else ["log_w"]  # of a proposal, P̂ is the mean of w ρ
    terms = [[_cell(row, name) for name in names] for row in group]
    if any("" in of_row for of_row in terms):
        return ""
    log_w = [sum(-np.inf if x is None else x for x in of_row) for of_row in terms]
    log_p = float(np.logaddexp.reduce(log_w) - np.log(len(log_w)))
    return log_p if np.isfinite(log_p) else None


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Splits rows into groups, wherever the example changes or the rollout numbers start again."""

    def starts(i: int) -> bool:
        (example, last), (now, rollout) = keys[i - 1], keys[i]
        counted = isinstance(last, int) and isinstance(rollout, int)
        return example != now or (counted and rollout <= last)

    keys = [(_cell(row, "example"), _cell(row, "rollout")) for row in rows]
    cuts = [i for i in range(len(rows)) if i == 0 or starts(i)]
    return [list(rows[a:b]) for a, b in itertools.pairwise([*cuts, len(rows)])]
