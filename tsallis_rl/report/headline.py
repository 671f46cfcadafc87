"""Writes the few sentences at the report's top: the best method, the paper's claims, and whether rationales help."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tsallis_rl.report.merit import before_training
from tsallis_rl.report.orderings import TIES, UNTESTED, Ordering
from tsallis_rl.report.rationales import UNSAID, judged_methods
from tsallis_rl.report.runs import DONE, FAILED, Run, methods, settings
from tsallis_rl.report.statistics import Summary, spread, summarize
from tsallis_rl.runs.progress import count_of

_NAMED = 3  # names of a list that are written out; the others are counted
_VERDICTS = {  # verb for one claim, and for several; in the order of the sentence
    "holds": ("holds", "hold"), "holds in part": ("holds in part", "hold in part"),
    TIES: ("sees only ties", "see only ties"),
    UNTESTED: ("cannot be judged by these runs",) * 2, "does not hold": ("does not hold", "do not hold"),
}  # fmt: skip


class Sentence(NamedTuple):
    """A sentence of the headline as plain text, and the items it lists; it ends with a colon if it has items."""

    text: str
    items: Sequence[str] = ()


def headline(runs: Sequence[Run], claims: Sequence[Ordering]) -> list[Sentence]:
    """Writes the sentences; `claims` are the judged claims about the plainest runs."""
    found = settings(runs)
    where = {setting: f"{setting}: " if len(found) > 1 else "" for setting in found}
    sentences = [Sentence(f"{where[setting]}{_best(some)}") for setting, some in found.items()]
    if claims:
        whom = "the runs nearest to the defaults" if any(run.variant for run in runs) else "such runs"
        sentences.append(_claims(claims, whom))
    for setting, some in found.items():
        if of := judged_methods(some):
            sentences.append(_rationales(where[setting], of))
    if failed := [run.folder.name for run in runs if run.state == FAILED]:
        sentences.append(Sentence(f"Failed: {_listed(failed)}. The table of runs, at the end, says why."))
    return sentences


def _best(runs: Sequence[Run]) -> str:
    """Names the method with the highest mean p@1 on the test split, rounded as in the table of figures of merit."""
    of_method = methods(runs)
    ended = {
        method: found for method, some in of_method.items() if (found := _means(some, "pass@1")).values
    }  # fmt: skip
    if not ended:
        return _progress(runs)
    top = max(f"{found.mean:.3f}" for found in ended.values())
    best = [method for method, found in ended.items() if f"{found.mean:.3f}" == top]
    start = before_training(runs, "pass@1")
    before = f" (before training {start.mean:.3f})" if start.values else ""
    waiting = len(of_method) - len(ended)
    more = f" {count_of(waiting, 'further method')} without a finished run yet." if waiting else ""
    if not any(any(found.values) for found in ended.values()):
        return f"No method gave a right answer on the test split ({count_of(len(ended), 'method')}).{more}"
    if len(best) > 1:
        return f"The highest p@1 on the test split, {top}{before}, is that of {_listed(best)}.{more}"
    (name,) = best
    n, p1 = runs[0].samples, summarize(of_method[name], "pass@1")
    figures = f"p@1 {_figure(p1)}{before}, m@{n} {_figure(_means(of_method[name], f'maj@{n}'))} on the test split"
    near = [other for other, found in ended.items() if other != name and found.mean >= p1.low]
    within = f" Within its 95% interval over prompts: {_listed(near)}." if near else ""
    first = name if len(ended) == 1 else f"{name} has the highest p@1"
    return f"{first} ({count_of(len(p1.values), 'seed')}): {figures}.{within}{more}"


def _means(runs: Sequence[Run], name: str) -> Summary:
    return spread([value for run in runs if (value := run.metric_after(name)) is not None])


def _figure(found: Summary) -> str:
    if not found.values:
        return "not known"
    return f"{found.mean:.3f}" + ("" if np.isnan(found.sd) else f" ± {found.sd:.3f}")


def _progress(runs: Sequence[Run]) -> str:
    """Describes runs none of which has ended: the highest of their newest p@1 on validation."""
    newest = []
    for run in runs:
        steps, values = run.curve(f"eval/validation/{run.part}pass@1")
        if len(values):
            newest.append((values[-1], run, steps[-1]))
    if not newest:
        found = any(name.startswith("eval/validation/") for run in runs for record in run.records for name in record)
        return "No evaluation gave a number." if found else "No evaluation has finished yet."
    value, run, step = max(newest, key=lambda found: found[0])
    of = f"{run.method}, seed {run.config['seed']}, at step {step}"
    best = "the highest " if len(newest) > 1 else ""
    ended = "No run has finished" if len(runs) > 1 else "The run has not finished"
    if any(run.state == DONE for run in runs):
        ended = "No run has a number on the test split"
    return f"{ended}. So far {best}p@1 on validation is {value:.3f} ({of})."


def _claims(claims: Sequence[Ordering], whom: str) -> Sentence:
    """Counts the verdicts, and names the claims that do not hold."""
    count = {verdict: sum(x.verdict == verdict for x in claims) for verdict in _VERDICTS}
    if count[UNTESTED] == len(claims):
        return Sentence(f"None of the paper's {count_of(len(claims), 'claim')} about {whom} can be judged yet.")
    parts = [f"{number} {_VERDICTS[verdict][number > 1]}" for verdict, number in count.items() if number]
    counted = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    text = f"Of the paper's {count_of(len(claims), 'claim')} about {whom} {counted}"
    failing = [claim.claim for claim in claims if claim.verdict == "does not hold"]
    return Sentence(f"{text}{':' if failing else '.'}", failing)


def _rationales(where: str, of_method: dict[str, str]) -> Sentence:
    """Describes under which methods rationales help, from {method: verdict}."""
    of: dict[str, list[str]] = {}
    for method, verdict in of_method.items():
        of.setdefault(verdict, []).append(method)
    if len(of) > 1:
        items = [f"{verdict}: {_listed(some)}" for verdict, some in of.items()]
        return Sentence(f"{where}By the last evaluation, whether rationales help depends on the method:", items)
    ((verdict, some),) = of.items()
    whether = "whether rationales help " if verdict == UNSAID else ""
    under = {1: "", 2: " under both methods"}.get(len(some), f" under all {len(some)} methods")
    return Sentence(f"{where}By the last evaluation {whether}{verdict}{under}.")


def _listed(names: Sequence[str]) -> str:
    """Joins names; of many, only the first ones and a count of the others."""
    rest = len(names) - _NAMED
    return "; ".join(names) if rest <= 1 else f"{'; '.join(names[:_NAMED])}; and {rest} others"
