"""Writes the report's page: one HTML file with everything in it but rollouts and answers, which it links to."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tsallis_rl.evaluation.intervals import RESAMPLES
from tsallis_rl.report.figures import Drawn
from tsallis_rl.report.orderings import TIES, UNTESTED, orderings
from tsallis_rl.report.rationales import rationales_section
from tsallis_rl.report.rollout_page import Pages, link, step_of
from tsallis_rl.report.runs import DONE, ESCAPED, Run, methods
from tsallis_rl.report.said import said
from tsallis_rl.report.statistics import Summary, largest_fall, spread, summarize
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
    sections = [_head(runs), _figures_of_merit(runs), _orderings(runs)]
    sections += [_figure(drawn) for drawn in figures]
    sections += [rationales_section(runs), _stability(runs), _answers(runs), _cells(runs, pages, folder)]
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
    begun = [run for run in runs if run.config]
    if not begun:
        return f"<p>{len(runs)} run(s): {counted}. None has begun, so there is nothing to show yet.</p>"
    config, seeds = begun[0].config, sorted({run.config["seed"] for run in begun})
    alone = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    text = (
        f"{alone}: {counted}. Task {config['task.name']}, {config['task.start']} start, {config['train.steps']} "
        f"steps of {config['train.prompts']} prompts × M = {config['rollouts.num_rollouts']}, "
        f"{config['optimizer.name']} with learning rate {config['optimizer.learning_rate']:g} and eps "
        f"{config['optimizer.eps']:g}; "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."
    )
    if begun[0].varied:
        text += (
            f" The runs also differ in {', '.join(begun[0].varied)} (first run's values here, each run's in its name)."
        )
    few = "" if len(seeds) >= 3 else " Fewer than three seeds: what is below is an anecdote."
    return f"<p>{html.escape(text + few)}</p>\n"


def _figures_of_merit(runs: Sequence[Run]) -> str:
    begun = [run for run in runs if run.config]
    if not begun:
        return ""
    n, part = begun[0].samples, begun[0].part
    names = ("pass@1", f"pass@{n}", f"maj@{n}")
    starts = {run.config["seed"]: run for run in reversed(begun) if run.metric_before("pass@1") is not None}
    before = {name: [starts[seed].metric_before(name) for seed in sorted(starts)] for name in names}
    untrained = [_merit(spread([x for x in values if x is not None])) for values in before.values()]
    rows = [["before training", "", *untrained, "", ""]]
    for method, some in methods(runs).items():
        done = sum(run.state == DONE for run in some)
        cells = [_merit(summarize(some, name)) for name in names]
        steps = [", ".join("never" if x is None else str(x) for x in found) for found in _escapes(some)]
        name = f'<span class="whole">{html.escape(method)}</span>'
        rows.append([name, f"{done} of {len(some)}", *cells, *(text or "–" for text in steps)])
    escapes = [f"first step with P̂ ≥ {ESCAPED}", f"with max c<sub>m</sub>/M<sup>q</sup> &gt; {ESCAPED}"]
    heads = ["method", "seeds done", "p@1", f"p@{n}", f"m@{n}", *escapes]
    prompts = begun[0].config.get("task.test_examples")
    half = " of the cold half" if part else ""
    caption = (
        f"Test split{half}, the checkpoint with the best validation m@{n}. Mean ± standard deviation over seeds; in "
        f"brackets a 95% bootstrap interval of that mean ({RESAMPLES} resamples of the test prompts within each run): "
        "it says how well these prompts measure these runs, not how other seeds would end; it has no width where every "
        "prompt came out alike"
        + (f", though then a rate of up to {3 / prompts:.1%} could be missed with {prompts} prompts" if prompts else "")
        + ". Below, every seed in order."
    )
    return f"<h2>Figures of merit</h2>\n{table(heads, rows, caption)}"


def _escapes(runs: Sequence[Run]) -> tuple[list[int | None], list[int | None]]:
    """Lists the runs' steps of escape by P̂, and by max c_m/M^q for those with a q."""
    begun = [run for run in runs if run.records]
    return [run.escape_step for run in begun], [run.advantage_step for run in begun if run.q is not None]


def _merit(found: Summary) -> str:
    if not found.values:
        return "–"
    around = "" if np.isnan(found.sd) else f" ± {found.sd:.3f}"
    interval = "" if np.isnan(found.low) else f"[{found.low:.3f}, {found.high:.3f}]<br>"
    seeds = ", ".join(f"{value:.3f}" for value in found.values)
    return f'<span class="whole"><b>{found.mean:.3f}</b>{around}<br>{interval}<span class=note>{seeds}</span></span>'


def _orderings(runs: Sequence[Run]) -> str:
    parts = []
    for variant in dict.fromkeys(run.variant for run in runs if run.config):
        found = orderings([run for run in runs if run.config and run.variant == variant])
        tested = [ordering for ordering in found if ordering.verdict != UNTESTED]
        rows = [
            [html.escape(o.claim), f'<span class="{_MARKS[o.verdict]}">{o.verdict}</span>', html.escape(o.detail)]
            for o in tested
        ]
        if rows:
            parts.append(table(["the paper", "here", "with these numbers"], rows, html.escape(variant)))
            rest = "; ".join(html.escape(ordering.claim) for ordering in found if ordering not in tested)
            if rest:
                parts.append(f'<p class="note">Not tested, for want of finished runs that could tell: {rest}.</p>\n')
    if not parts:
        return ""
    text = (
        "Statements of arXiv 2604.25907 about large models on FinQA, HotPotQA and MuSiQue, compared with these runs. "
        "Seeds are compared pair by pair. “Zero” is no right answer among all that were sampled on the test split; "
        "runs whose model gave one before training say nothing about it."
    )
    return f"<h2>The paper's orderings</h2>\n<p>{text}</p>\n{''.join(parts)}"


def _figure(drawn: Drawn) -> str:
    data = base64.b64encode(drawn.file.read_bytes()).decode()
    title, caption = html.escape(drawn.title), html.escape(drawn.caption)
    return (
        f'<h2>{title}</h2>\n<figure><img src="data:image/png;base64,{data}" alt="{title}: {caption}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _stability(runs: Sequence[Run]) -> str:
    rows = []
    for method, some in methods(runs).items():
        curves = [run.curve(f"eval/validation/{run.part}maj@{run.samples}")[1] for run in some]
        curves = [values for values in curves if len(values)]
        if not curves:
            continue
        measures = zip(("best", "last", "largest fall"), (np.max, lambda x: x[-1], largest_fall), strict=True)
        rows.append([html.escape(method), *(", ".join(f"{of(values):.3f}" for values in curves) for _, of in measures)])
    if not rows:
        return "<h2>Stability</h2>\n<p>No evaluation has finished yet.</p>\n"
    caption = "Validation m@n, every seed: its best, its last, and how far it was ever below its best so far."
    return f"<h2>Stability</h2>\n{table(['method', 'best', 'last', 'largest fall'], rows, caption)}"


def _answers(runs: Sequence[Run]) -> str:
    rows = said(runs)
    if not rows:
        return ""
    caption = (
        "Newest evaluation on validation, the first run of each method, the first of the samples of some examples; the "
        "pages below have all of them, with their rationales. Special tokens are shown."
    )
    heads = ["method", "example", "gold", "sampled answer", "samples that are right"]
    return f"<h2>What the model answers</h2>\n{table(heads, rows, caption)}"


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
