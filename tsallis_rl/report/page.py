"""Writes the report's page: one HTML file with everything in it but rollouts and answers, which it links to."""

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tsallis_rl.report.figures import Drawn
from tsallis_rl.report.merit import NOTE, figures_of_merit, paper_tables
from tsallis_rl.report.orderings import TIES, UNTESTED, orderings
from tsallis_rl.report.rationales import rationales
from tsallis_rl.report.rollout_page import Pages, link, step_of
from tsallis_rl.report.runs import DONE, Run, methods, settings
from tsallis_rl.report.said import said
from tsallis_rl.report.statistics import largest_fall
from tsallis_rl.report.tables import table
from tsallis_rl.runs.cache import write_whole

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption, .note { color: #444; font-size: .93em; }
h2 { margin-top: 2.5rem; } .scroll { overflow-x: auto; } code { overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .9em; }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .7rem; text-align: left; vertical-align: top; }
td { min-width: 4.5rem; font-variant-numeric: tabular-nums; }
.whole { white-space: nowrap; }
.yes::before { content: "✓ "; } .no::before { content: "✗ "; } .part::before { content: "◐ "; }
@media print { figure, tr { break-inside: avoid; } }
"""
_MARKS = {"holds": "yes", "does not hold": "no", "holds in part": "part", TIES: "part"}


def write_page(folder: Path, runs: Sequence[Run], figures: Sequence[Drawn], pages: dict[Path, Pages]) -> Path:
    """Writes report.html into `folder`; `pages` are those of each run's folder, to which it links."""
    title = f"Report: {folder.resolve().name}"
    sections = [
        _head(runs),
        _section("Figures of merit", _by_setting(runs, figures_of_merit), NOTE),
        _section("The paper's tables", paper_tables(runs)),
        _orderings(runs),
        *(_figure(drawn) for drawn in figures),
        _section("Do rationales help here?", _by_setting(runs, rationales)),
        _section("Stability", _by_setting(runs, _stability) or "<p>No evaluation has finished yet.</p>\n"),
        _section("What the model answers", _by_setting(runs, _answers)),
        _cells(runs, pages, folder),
    ]
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head>
<body><h1>{html.escape(title)}</h1>
{"".join(sections)}
</body></html>
"""
    file = folder / "report.html"
    write_whole(file, page.encode(errors="replace"))  # a folder's name may be no text
    return file


def _head(runs: Sequence[Run]) -> str:
    states = [run.state for run in runs]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys([DONE, *states]) if state in states)
    found = settings(runs)
    if not found:
        return f"<p>{len(runs)} run(s): {counted}. None has begun, so there is nothing to show yet.</p>"
    alone = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    lines = [_setting(some) for some in found.values()]
    varied = next(iter(found.values()))[0].varied
    names = "a run's name has its values where they are not the plainest run's"
    differ = f" The runs also differ in {', '.join(varied)} ({names})." if varied else ""
    if len(lines) == 1:
        return f"<p>{html.escape(f'{alone}: {counted}. {lines[0]}{differ}')}</p>\n"
    listed = "".join(f"<li>{html.escape(line)}</li>\n" for line in lines)
    return f"<p>{html.escape(f'{alone}: {counted}.{differ}')}</p>\n<ul>{listed}</ul>\n"


def _setting(runs: Sequence[Run]) -> str:
    """Says in one sentence what runs of one task and start share: the values of the first."""
    config, seeds = runs[0].config, sorted({run.config["seed"] for run in runs})
    few = "" if len(seeds) >= 3 else " Fewer than three seeds: what is below is an anecdote."
    return (
        f"Task {runs[0].setting}, {config['train.steps']} steps of {config['train.prompts']} prompts × M = "
        f"{config['rollouts.num_rollouts']}, {config['optimizer.name']} with learning rate "
        f"{config['optimizer.learning_rate']:g} and eps {config['optimizer.eps']:g}; "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}.{few}"
    )


def _orderings(runs: Sequence[Run]) -> str:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.config:
            groups.setdefault((run.config["task.name"], run.variant), []).append(run)
    several = len({task for task, _ in groups}) > 1
    parts = []
    for (task, variant), some in groups.items():
        found = orderings(some)
        tested = [ordering for ordering in found if ordering.verdict != UNTESTED]
        if not tested and (variant or not several):
            continue
        title = ", ".join([task] * several + [variant] * bool(variant))
        rows = [
            [*map(html.escape, (o.claim, o.paper or "–")), _verdict(o.verdict), html.escape(o.detail)] for o in tested
        ]
        if rows:
            parts.append(table(["the paper", "its numbers", "here", "with these"], rows, html.escape(title)))
        if rest := "; ".join(ordering.claim for ordering in found if ordering not in tested):
            where = f" ({title})" if title else ""
            text = f"Not tested{where}, for want of finished runs that could tell: {rest}."
            parts.append(f'<p class="note">{html.escape(text)}</p>\n')
    if not parts:
        return ""
    text = (
        "Statements of arXiv 2604.25907 about Qwen3-0.6B on FinQA, HotPotQA and MuSiQue, compared with these runs; a "
        "task that is none of these is held to what the paper says of no set in particular, and to who is ahead on all "
        "three. Seeds are compared pair by pair. “Zero” is no right answer among all that were sampled on the test "
        "split; runs whose model gave one before training say nothing about it."
    )
    return f"<h2>The paper's orderings</h2>\n<p>{text}</p>\n{''.join(parts)}"


def _verdict(verdict: str) -> str:
    return f'<span class="{_MARKS[verdict]}">{verdict}</span>'


def _by_setting(runs: Sequence[Run], write: Callable[[Sequence[Run]], str]) -> str:
    """Writes a part of the page for each task and start, under its name where there are several."""
    found = settings(runs)
    parts = {setting: write(some) for setting, some in found.items()}
    title = "<h3>{}</h3>\n" if len(found) > 1 else ""
    return "".join(f"{title.format(html.escape(setting))}{part}" for setting, part in parts.items() if part)


def _section(title: str, parts: str, note: str = "") -> str:
    note = f'<p class="note">{note}</p>\n' if note else ""
    return f"<h2>{title}</h2>\n{note}{parts}" if parts else ""


def _figure(drawn: Drawn) -> str:
    data = base64.b64encode(drawn.file.read_bytes()).decode()
    title, caption = (
        html.escape(f"{drawn.title}: {drawn.setting}" if drawn.setting else drawn.title),
        html.escape(drawn.caption),
    )
    return (
        f'<h2>{title}</h2>\n<figure><img src="data:image/png;base64,{data}" alt="{title}: {caption}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _stability(runs: Sequence[Run]) -> str:
    rows = []
    for method, some in methods(runs).items():
        curves = [values for run in some if len(values := run.validation[1])]
        if not curves:
            continue
        measures = zip(("best", "last", "largest fall"), (np.max, lambda x: x[-1], largest_fall), strict=True)
        rows.append([html.escape(method), *(", ".join(f"{of(values):.3f}" for values in curves) for _, of in measures)])
    caption = "Validation m@n, every seed: its best, its last, and how far it was ever below its best so far."
    return table(["method", "best", "last", "largest fall"], rows, caption) if rows else ""


def _answers(runs: Sequence[Run]) -> str:
    rows = said(runs)
    caption = (
        "Newest evaluation on validation, the first run of each method, the first of the samples of some examples; the "
        "pages below have all of them, with their rationales. Special tokens are shown."
    )
    heads = ["method", "example", "gold", "sampled answer", "samples that are right"]
    return table(heads, rows, caption) if rows else ""


def _cells(runs: Sequence[Run], pages: dict[Path, Pages], folder: Path) -> str:
    rows = []
    for run in runs:
        steps = [record["step"] for record in run.records if "train/loss" in record]
        links = [_links(some, folder) for some in pages.get(run.folder, Pages([], []))]
        total = run.config.get("train.steps", "?")
        state = f"{run.state}{': ' + run.error if run.error else ''}"
        at = f"{steps[-1] + 1} of {total}" if steps else f"0 of {total}"
        rows.append([html.escape(run.folder.name), html.escape(state), at, *links])
    caption = (
        "Pages of rollouts, and of what the model answered on validation, are beside each run's files and open from "
        "disk; the numbers are their steps."
    )
    return f"<h2>Runs</h2>\n{table(['run', 'state', 'updates', 'rollouts', 'answers on validation'], rows, caption)}"


def _links(pages: Sequence[Path], folder: Path) -> str:
    """Writes a link to each page, named by its step, from a report in `folder`."""
    links = {step_of(page): link(page, folder) for page in pages}
    return " ".join(f'<a href="{address}">{step}</a>' for step, address in links.items()) or "–"
