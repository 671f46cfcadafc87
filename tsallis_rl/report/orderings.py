"""Judges the paper's claims by the available runs: how many seeds agree, and with which numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tsallis_rl.report.claims import BASE, CLAIMS, FIGURES, HIGH, LOW, PAPER, SETS, Arm, Claim
from tsallis_rl.report.runs import DONE, ESCAPED, Run, step_part
from tsallis_rl.report.statistics import largest_fall
from tsallis_rl.runs.progress import count_of

UNTESTED, TIES = "not tested", "only ties"
ZERO = 5e-4  # the paper rounds to a tenth of a percent


class Ordering(NamedTuple):
    """A statement of arXiv 2604.25907, judged by the runs of one task.

    Attributes:
      claim: the paper's claim.
      paper: the paper's numbers; empty if it gives none.
      verdict: "holds" (on every run), "does not hold" (on no run), "holds in part", TIES or UNTESTED.
      detail: the numbers of these runs.
    """

    claim: str
    paper: str
    verdict: str
    detail: str


class _Found(NamedTuple):
    """A rule's finding: the claim as a sentence, one outcome per run, pair of runs or seed, and their numbers."""

    claim: str
    outcomes: Sequence[bool]
    detail: str
    only_ties: bool = False
    unit: str = "run"


_STEPS = {
    "advantage_step": "max c_m/M^q rises at once at q = 1, later at q = 0.75, and stays flat at q ≤ 0.5 (here: above "
    f"{ESCAPED})",
    "escape_step": f"P leaves its start first at q = 1, later at q = 0.75, and not at q ≤ 0.5 (here: P̂ ≥ {ESCAPED})",
}
Starts = Mapping[str, Sequence[Run]]  # cold, warm -> the runs of one task


def orderings(runs: Sequence[Run]) -> list[Ordering]:
    """Judges the claims about the starts that the runs have; the runs share one task and one variant.

    On a task that is not in the paper, only claims that name no set are judged. A mixed start, which the paper does not
    have, is judged by its cold half; not on steps, if a run logged P̂ and c_m/M^q for whole batches alone.
    """
    task = runs[0].config["task.name"]
    by_start: dict[str, list[Run]] = {}
    for run in runs:
        by_start.setdefault(run.config["task.start"], []).append(run)
    judged = [_judge(claim, task, by_start) for claim in CLAIMS if all(arm.start in by_start for arm in claim.arms)]
    if mixed := by_start.get("mixed"):
        by_half = bool(step_part(mixed))
        of_cold = [
            claim
            for claim in CLAIMS
            if {arm.start for arm in claim.arms} == {"cold"} and (by_half or claim.kind != "in order")
        ]
        judged += [_judge(claim, task, {"cold": mixed}, "mixed start's cold half") for claim in of_cold]
    return [x for x in judged if x]


def judge_groups(runs: Sequence[Run]) -> dict[tuple[str, str], list[Ordering]]:
    """Judges the runs that have begun, by task and variant: {(task, variant): its orderings}."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.config:
            groups.setdefault((run.config["task.name"], run.variant), []).append(run)
    return {group: orderings(some) for group, some in groups.items()}


def _judge(claim: Claim, task: str, starts: Starts, where: str = "") -> Ordering | None:
    """Judges one claim; returns None if the paper does not state it for the task.

    Args:
      claim: the paper's claim.
      task: the task of the runs.
      starts: the runs.
      where: text before the sentence; by default the claim's start, if it has only one.
    """
    if claim.sets and task not in claim.sets:
        return None
    if claim.kind == "compare":
        if not (ahead := leaders(claim, task)):
            return None
        claim = claim._replace(arms=ahead)
    paper = claim.paper or _tabulated(claim, task)
    found = RULES[claim.kind](claim, starts)
    first, *others = {arm.start for arm in claim.arms}
    sentence = found.claim if others else f"{where or f'{first} start'}: {found.claim}"
    n, k = len(found.outcomes), sum(found.outcomes)
    if not n:
        return Ordering(sentence, paper, UNTESTED, "")
    verdict = TIES if found.only_ties else "holds" if k == n else "does not hold" if k == 0 else "holds in part"
    return Ordering(sentence, paper, verdict, f"{k} of {count_of(n, found.unit)}: {found.detail}")


def leaders(claim: Claim, task: str) -> tuple[Arm, ...] | None:
    """Orders the two arms of a comparison by PAPER's figures on the task: ahead, behind.

    On a task that is not in the paper, the order must be the same on all sets. Returns None if the sets disagree, the
    figures are equal, or one is missing.
    """
    figures = _figures(claim, task)
    signs = {(x > y) - (x < y) for x, y in figures.values()}
    if len(signs) != 1 or len(figures) < (1 if task in SETS else len(SETS)):
        return None
    return {1: claim.arms, 0: None, -1: claim.arms[::-1]}[signs.pop()]


def _figures(claim: Claim, task: str) -> dict[str, tuple[float, ...]]:
    """Looks up the paper's figures on the task, or on all sets if it has no such task: {set: one figure per arm}."""
    column, found = FIGURES.index(claim.figure), {}
    for name in SETS:
        values = [PAPER.get(arm, {}).get(name, (None,) * 3)[column] for arm in claim.arms]
        if None not in values and (task == name or task not in SETS):
            found[name] = tuple(values)
    return found


def _tabulated(claim: Claim, task: str) -> str:
    """Writes the paper's figures for the arms of a claim, set by set; "" if the claim is not about one of FIGURES."""
    found = _figures(claim, task) if claim.figure in FIGURES else {}
    texts = {name: " against ".join(f"{x / 100:.3f}" for x in values) for name, values in found.items()}
    return "; ".join(f"{SETS[name]} {text}" for name, text in texts.items())


def by_seed(starts: Starts, arm: Arm) -> dict[int, Run]:
    """Selects the runs of an arm whose q is constant: {seed: run}."""
    return {run.config["seed"]: run for run in starts.get(arm.start, ()) if run.q_is_constant and _is_of(run, arm)}


def _is_of(run: Run, arm: Arm) -> bool:
    if arm.estimator == BASE:
        return run.samples_rationales and run.metric_before("pass@1") is not None
    return run.estimator == arm.estimator and run.commitment == "power" and arm.q in (None, run.q)


def figure(run: Run, name: str, estimator: str = "") -> float | None:
    """Reads one of FIGURES on the test split, after training, or before it if the estimator is BASE."""
    metric = {"p@1": "pass@1", "p@n": f"pass@{run.samples}", "m@n": f"maj@{run.samples}"}[name]
    return run.metric_before(metric) if estimator == BASE else run.metric_after(metric)


def _compare(claim: Claim, starts: Starts) -> _Found:
    """Compares the first arm's figure with the second's, seed by seed."""
    one, other = claim.arms
    a, b = by_seed(starts, one), by_seed(starts, other)
    pairs = [
        (figure(a[seed], claim.figure, one.estimator), figure(b[seed], claim.figure, other.estimator))
        for seed in sorted(a.keys() & b.keys())
    ]
    values = [(x, y) for x, y in pairs if x is not None and y is not None]
    names = [arm.method if one.start == other.start else f"{arm.start} {arm.method}" for arm in claim.arms]
    return _Found(
        f"{names[0]} is at or above {names[1]} ({claim.figure})",
        [x >= y for x, y in values],
        "; ".join(f"{x:.3f} against {y:.3f}" for x, y in values),
        only_ties=all(x == y for x, y in values),
    )


def _at_zero(claim: Claim, starts: Starts) -> _Found:
    """Tests whether p@1, zero before training, is still zero after it, or at least ESCAPED (for "leaves")."""
    (arm,) = claim.arms
    leaves = claim.kind == "leaves"
    says = {
        "zero": "stays at zero", "leaves": f"leaves zero (here: p@1 ≥ {ESCAPED})",
        "undefined": "is undefined (here: stays at zero)",
    }  # fmt: skip
    begun = [run for run in by_seed(starts, arm).values() if not run.metric_before("pass@1")]
    values = [value for run in begun if (value := run.metric_after("pass@1")) is not None]
    return _Found(
        f"{arm.method} {says[claim.kind]}",
        [value >= ESCAPED if leaves else value == 0 for value in values],
        "p@1: " + ", ".join(f"{x:.3f}" for x in values),
    )


def _in_order(claim: Claim, starts: Starts) -> _Found:
    """Tests whether a step comes first at q = 1, later at 0.75, and never at q ≤ 0.5."""
    (arm,) = claim.arms
    done = {start: [run for run in runs if run.state == DONE] for start, runs in starts.items()}
    of_q = {q: by_seed(done, arm._replace(q=q)) for q in (*LOW, *HIGH)}
    agree, details = [], []
    for seed in sorted(set.intersection(*(set(of) for of in of_q.values()))):
        steps = {q: getattr(of[seed], claim.figure) for q, of in of_q.items()}
        late, once = steps[0.75], steps[1.0]
        agree.append(once is not None and late is not None and once < late and all(steps[q] is None for q in LOW))
        words = (f"q = {q:g} {'never' if at is None else f'at step {at}'}" for q, at in steps.items())
        details.append(f"seed {seed}: {', '.join(words)}")
    return _Found(_STEPS[claim.figure], agree, "; ".join(details), unit="seed")


def _falls(claim: Claim, starts: Starts) -> _Found:
    """Tests whether validation m@n falls below half its best, or never does."""
    (arm,) = claim.arms
    falls = []
    for run in starts.get(arm.start, ()):
        _, values = run.validation
        if run.q_is_constant and _is_of(run, arm) and run.metric_after("pass@1") is not None and values.any():
            falls.append((run, largest_fall(values), values.max()))
    collapse = claim.kind == "falls"
    return _Found(
        f"{arm.method} {'falls below half its best' if collapse else 'holds what it reached'} (validation m@n)",
        [(fall > best / 2) == collapse for _, fall, best in falls],
        "largest falls: " + ", ".join(f"{run.method} {fall:.3f}" for run, fall, _ in falls),
    )


def _zero_by(claim: Claim, starts: Starts) -> _Found:
    """Tests whether validation m@n rises and is back at zero by a step."""
    (arm,) = claim.arms
    agree, details = [], []
    for seed, run in sorted(by_seed(starts, arm).items()):
        steps, values = run.validation
        if not len(steps):
            continue
        top = int(values.argmax())
        zero = steps[top:][values[top:] < ZERO]
        if values[top] < ZERO or (not len(zero) and steps[-1] < claim.by):
            continue  # it has not risen, or not reached that step
        agree.append(bool(len(zero)) and zero[0] <= claim.by)
        end = f"zero at {zero[0]}" if len(zero) else f"{values[-1]:.3f} at {steps[-1]}"
        details.append(f"seed {seed}: {values[top]:.3f} at step {steps[top]}, {end}")
    return _Found(f"{arm.method} peaks and is zero by step {claim.by} (validation m@n)", agree, "; ".join(details))


RULES: dict[str, Callable[[Claim, Starts], _Found]] = {
    "zero": _at_zero,
    "leaves": _at_zero,
    "undefined": _at_zero,
    "compare": _compare,
    "in order": _in_order,
    "holds": _falls,
    "falls": _falls,
    "zero by": _zero_by,
}
