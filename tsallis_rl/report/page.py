"""Writes the report's page: one HTML file with everything but rollouts and answers, to which it links."""

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tsallis_rl.laboratory.symbols import explained, symbol
from tsallis_rl.laboratory.web_page import Section, figure, web_page
from tsallis_rl.report.figures import Drawn
from tsallis_rl.report.headline import Sentence, headline
from tsallis_rl.report.merit import NOTE, figures_of_merit, paper_tables
from tsallis_rl.report.orderings import TIES, UNTESTED, Ordering, judge_groups
from tsallis_rl.report.rationales import rationales
from tsallis_rl.report.rollout_page import Pages, link, step_of
from tsallis_rl.report.runs import DONE, FAILED, Run, methods, settings
from tsallis_rl.report.said import said
from tsallis_rl.report.state_line import state_line
from tsallis_rl.report.statistics import largest_fall
from tsallis_rl.report.tables import table
from tsallis_rl.runs.cache import write_whole
from tsallis_rl.runs.progress import count_of

_CLAIMS = (
    "Statements of arXiv 2604.25907 about Qwen3-0.6B on FinQA, HotPotQA and MuSiQue, compared with these runs. On "
    "another task only claims are judged that name no set, or in which the same method is ahead on all three. Seeds "
    "are compared pair by pair. “Zero” means no right answer among all samples on the test split; runs whose "
    "model gave one before training are left out of those claims."
)
_STABILITY = (
    f"Validation {symbol('m@n')}, every seed: its best, its last, and how far it was ever below its best so far."
)
_ANSWERS = (
    "Newest evaluation on validation, first run of each method: the first sample for some examples. The pages linked "
    "from the last table have all samples, with their rationales. Special tokens are shown."
)
_MARKS = {"holds": "yes", "does not hold": "no", "holds in part": "part", TIES: "part"}


def write_page(folder: Path, runs: Sequence[Run], figures: Sequence[Drawn], pages: dict[Path, Pages]) -> Path:
    """Writes report.html into `folder`, with links to `pages`, the pages of each run's folder.

    The sections are siblings, each with an id that is the same in every report.
    """
    judged = judge_groups(runs)
    sections = [
        Section("merit", "Figures of merit", _by_setting(runs, figures_of_merit, NOTE)),
        Section("paper", "The paper's tables", paper_tables(runs)),
        Section("claims", "The paper's claims", _orderings(judged)),
        *_figures(figures),
        Section("do-rationales-help", "Do rationales help here?", _by_setting(runs, rationales)),
        Section("stability", "Stability", _by_setting(runs, _stability, _STABILITY)),
        Section("answers", "What the model answers", _by_setting(runs, _answers, _ANSWERS)),
        Section("runs", "Runs", _cells(runs, pages, folder)),
    ]
    page = web_page(f"Report: {folder.resolve().name}", Section("summary", "", _head(runs, judged)), sections)
    file = folder / "report.html"
    page = page.replace("</h1>", f"</h1>\n{state_line(runs, pages, folder)}", 1)  # must be a direct child of body
    write_whole(file, page.encode(errors="replace"))  # a folder's name may not be valid text
    return file


def _head(runs: Sequence[Run], judged: dict[tuple[str, str], list[Ordering]]) -> str:
    """Writes the state of the runs, the headline, and what the runs share."""
    states = [run.state for run in runs]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys([DONE, *states]) if state in states)
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    found = settings(runs)
    if not found:
        why = "; the table of runs says why some failed" if FAILED in states else ""
        return f"<p>{count}: {counted}. None has begun, so there is nothing to show yet{why}.</p>\n"
    plain = [x for (_, variant), some in judged.items() if not variant for x in some]
    said = "".join(_sentence(sentence) for sentence in headline(runs, plain))
    lines = [_setting(some) for some in found.values()]
    varied = next(iter(found.values()))[0].varied
    names = "a run's name has its values where they are not those of the run nearest to the defaults"
    if varied:
        lines.append(f"The runs also differ in {', '.join(varied)} ({names}).")
    shared = "".join(f'<p class="note">{explained(line)}</p>\n' for line in lines)
    return f'<p>{html.escape(f"{count}: {counted}.")}</p>\n<ul class="headline">\n{said}</ul>\n{shared}'


def _sentence(sentence: Sentence) -> str:
    items = "".join(f"<li>{html.escape(item)}</li>\n" for item in sentence.items)
    return f"<li>{explained(sentence.text)}{f'<ul>{items}</ul>' if items else ''}</li>\n"


def _setting(runs: Sequence[Run]) -> str:
    """Describes in one sentence what runs of one task and start share, from the values of the first."""
    config, seeds = runs[0].config, sorted({run.config["seed"] for run in runs})
    few = "" if len(seeds) >= 3 else " Fewer than three seeds: the differences below may be chance."
    return (
        f"Task {runs[0].setting}, {config['train.steps']} steps of {config['train.prompts']} prompts × M = "
        f"{config['rollouts.num_rollouts']}, {config['optimizer.name']} with learning rate "
        f"{config['optimizer.learning_rate']:g} and eps {config['optimizer.eps']:g}; "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}.{few}"
    )


def _orderings(judged: dict[tuple[str, str], list[Ordering]]) -> str:
    several = len({task for task, _ in judged}) > 1
    parts = []
    for (task, variant), found in judged.items():
        tested = [ordering for ordering in found if ordering.verdict != UNTESTED]
        if not tested and (variant or not several):
            continue
        title = ", ".join([task] * several + [variant] * bool(variant))
        rows = [
            [*map(html.escape, (o.claim, o.paper or "–")), _verdict(o.verdict), html.escape(o.detail)] for o in tested
        ]
        if rows:
            parts.append(table(["the paper", "its numbers", "here", "with these"], rows, html.escape(title)))
        rest = [ordering.claim for ordering in found if ordering not in tested]
        if rest and not variant:
            where = f" ({title})" if title else ""
            text = f"Not tested{where}, for want of finished runs that could tell: {'; '.join(rest)}."
            count = f"{count_of(len(rest), 'further claim')} not tested{where}"
            parts.append(f'<details><summary>{count}</summary><p class="note">{html.escape(text)}</p></details>\n')
    return f'<p class="note">{_CLAIMS}</p>\n{"".join(parts)}' if parts else ""


def _verdict(verdict: str) -> str:
    return f'<span class="{_MARKS[verdict]}">{verdict}</span>'


def _by_setting(runs: Sequence[Run], write: Callable[[Sequence[Run]], str], note: str = "") -> str:
    """Writes a part for each task and start, with its name as heading if there are several; "" if all are empty."""
    found = settings(runs)
    parts = {setting: part for setting, some in found.items() if (part := write(some))}
    title = "<h3>{}</h3>\n" if len(found) > 1 else ""
    body = "".join(f"{title.format(html.escape(setting))}{part}" for setting, part in parts.items())
    return (f'<p class="note">{note}</p>\n' if note and body else "") + body


def _figures(figures: Sequence[Drawn]) -> list[Section]:
    """Makes a section for each figure name, with one figure for each task and start."""
    sections: dict[str, Section] = {}
    for drawn in figures:
        data = base64.b64encode(drawn.file.read_bytes()).decode()
        title = f"<h3>{html.escape(drawn.setting)}</h3>\n" if drawn.setting else ""
        label = f"{drawn.title}: {drawn.setting}" if drawn.setting else drawn.title
        body = title + figure(drawn.file, f"data:image/png;base64,{data}", label, explained(drawn.caption))
        name = f"figure-{drawn.name}"
        sections[name] = Section(name, drawn.title, getattr(sections.get(name), "body", "") + body)
    return list(sections.values())


def _stability(runs: Sequence[Run]) -> str:
    rows = []
    for method, some in methods(runs).items():
        curves = [values for run in some if len(values := run.validation[1])]
        if not curves:
            continue
        measures = zip(("best", "last", "largest fall"), (np.max, lambda x: x[-1], largest_fall), strict=True)
        rows.append([html.escape(method), *(", ".join(f"{of(values):.3f}" for values in curves) for _, of in measures)])
    return table(["method", "best", "last", "largest fall"], rows) if rows else ""


def _answers(runs: Sequence[Run]) -> str:
    rows = said(runs)
    heads = ["method", "example", "gold", "sampled answer", "samples that are right"]
    return table(heads, rows) if rows else ""


def _cells(runs: Sequence[Run], pages: dict[Path, Pages], folder: Path) -> str:
    rows = []
    for run in runs:
        links = [_links(some, folder) for some in pages.get(run.folder, Pages([], []))]
        total = run.config.get("train.steps", "?")
        state = f"{run.state}{': ' + run.error if run.error else ''}"
        rows.append([html.escape(run.folder.name), html.escape(state), f"{run.updates} of {total}", *links])
    linked = any(some for of_run in pages.values() for some in of_run)
    caption = (
        "Pages of rollouts, and of what the model answered on validation, are beside each run's files and open from "
        "disk; the numbers are their steps."
    )
    return table(["run", "state", "updates", "rollouts", "answers on validation"], rows, caption if linked else "")


def _links(pages: Sequence[Path], folder: Path) -> str:
    """Writes a link to each page, named by its step, from a report in `folder`."""
    links = {step_of(page): link(page, folder) for page in pages}
    return " ".join(f'<a href="{address}">{step}</a>' for step, address in links.items()) or "–"
