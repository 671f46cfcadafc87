"""Judges the paper's orderings by the runs at hand: how many seeds agree, and with which numbers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tsallis_rl.report.runs import DONE, ESCAPED, Run
from tsallis_rl.report.statistics import largest_fall

UNTESTED, TIES = "not tested", "only ties"
LOW, HIGH = (0.0, 0.25, 0.5), (0.75, 1.0)


class Ordering(NamedTuple):
    """A statement of arXiv 2604.25907 and how these runs judge it.

    Attributes:
      claim: the paper's.
      verdict: "holds" on every run, "does not hold" on any, "holds in part", TIES or UNTESTED.
      detail: the numbers.
    """

    claim: str
    verdict: str
    detail: str


Rule = Callable[[Sequence[Run]], Ordering]
Method = tuple[str, float | None]


def orderings(runs: Sequence[Run]) -> list[Ordering]:
    """Judges the orderings of the runs' start, cold, mixed or warm; runs differ in estimator, q and seed alone.

    A mixed start, which the paper does not have, is judged by its cold half.
    """
    start = next((run.config["task.start"] for run in runs if run.config), "cold")
    return [rule(runs) for rule in (WARM if start == "warm" else COLD)]


def _value(run: Run, name: str) -> float | None:
    return run.metric_after(f"maj@{run.samples}" if name == "m" else "pass@1")


def _from_zero(runs: Sequence[Run]) -> list[tuple[Run, float]]:
    """Selects finished runs whose model gave no right answer before training, with their p@1."""
    return [
        (run, value)
        for run in runs
        if not run.metric_before("pass@1") and (value := run.metric_after("pass@1")) is not None
    ]


def _by_seed(runs: Sequence[Run], estimator: str, q: float | None = None) -> dict[int, Run]:
    """Selects a method's runs: {seed: run}."""
    return {r.config["seed"]: r for r in runs if r.config and r.estimator == estimator and q in (None, r.q)}


def _judge(claim: str, outcomes: Sequence[bool], detail: str) -> Ordering:
    n, k = len(outcomes), sum(outcomes)
    if not n:
        return Ordering(claim, UNTESTED, "")
    verdict = "holds" if k == n else "does not hold" if k == 0 else "holds in part"
    return Ordering(claim, verdict, f"{k} of {n} run{'s' * (n > 1)}: {detail}")


def _at_zero(estimator: str, q: float | None, zero: bool) -> Rule:
    """Makes the rule that the runs of a method end without, or with, a right answer."""

    def rule(runs: Sequence[Run]) -> Ordering:
        name = estimator.upper() if q is None else f"{estimator.upper()} q = {q:g}"
        claim = f"{name} stays at zero" if zero else f"{name} leaves zero"
        values = [value for _, value in _from_zero(list(_by_seed(runs, estimator, q).values()))]
        return _judge(
            claim, [(value == 0) == zero for value in values], "p@1: " + ", ".join(f"{x:.3f}" for x in values)
        )

    return rule


def _at_least(one: Method, other: Method, claim: str, name: str) -> Rule:
    """Makes the rule that, seed by seed, the first ends at or above the second; `name` is p for p@1, m for m@n."""

    def rule(runs: Sequence[Run]) -> Ordering:
        a, b = _by_seed(runs, *one), _by_seed(runs, *other)
        pairs = [(_value(a[seed], name), _value(b[seed], name)) for seed in sorted(a.keys() & b.keys())]
        values = [(x, y) for x, y in pairs if x is not None and y is not None]
        detail = "; ".join(f"{x:.3f} against {y:.3f}" for x, y in values)
        if values and all(x == y for x, y in values):
            return Ordering(claim, TIES, f"{len(values)} of {len(values)} run{'s' * (len(values) > 1)}: {detail}")
        return _judge(claim, [x >= y for x, y in values], detail)

    return rule


def _in_order(claim: str, step: Callable[[Run], int | None]) -> Rule:
    """Makes the rule that a GARL run's `step` comes at q = 1 first, at 0.75 later and at q ≤ 0.5 never."""

    def rule(runs: Sequence[Run]) -> Ordering:
        by_q = {q: _by_seed([run for run in runs if run.state == DONE], "garl", q) for q in (*LOW, *HIGH)}
        agree, details = [], []
        for seed in sorted(set.intersection(*(set(of) for of in by_q.values()))):
            steps = {q: step(of[seed]) for q, of in by_q.items()}
            late, once = steps[0.75], steps[1.0]
            agree.append(once is not None and late is not None and once < late and all(steps[q] is None for q in LOW))
            words = (f"q = {q:g} {'never' if at is None else f'at step {at}'}" for q, at in steps.items())
            details.append(f"seed {seed}: {', '.join(words)}")
        return _judge(claim, agree, "; ".join(details))

    return rule


def _paft_is_defined(runs: Sequence[Run]) -> Ordering:
    claim = "PAFT is undefined in a cold start, where P ≈ 0"
    values = _from_zero([run for run in runs if run.estimator == "paft" and run.q in HIGH])
    detail = "log-weights of finite answers have a largest one however small they are, so P̂ ≈ 0 is no obstacle"
    listed = ", ".join(f"q = {run.q:g} {value:.3f}" for run, value in values)
    return _judge(claim, [value == 0 for _, value in values], f"p@1 of PAFT: {listed} ({detail})" if values else "")


def _collapses(estimator: str, claim: str, collapse: bool) -> Rule:
    """Makes the rule that validation maj@n falls, or never falls, below half its best."""

    def rule(runs: Sequence[Run]) -> Ordering:
        falls = []
        for run in runs:
            _, values = run.curve(f"eval/validation/{run.part}maj@{run.samples}")
            if run.estimator == estimator and run.metric_after("pass@1") is not None and len(values):
                falls.append((run, largest_fall(values), values.max()))
        detail = "largest falls of validation m@n: " + ", ".join(f"{r.method} {fall:.3f}" for r, fall, _ in falls)
        return _judge(claim, [(fall > best / 2) == collapse for _, fall, best in falls], detail * bool(falls))

    return rule


COLD = (
    _at_zero("grpo", None, zero=True),
    *(_at_zero("garl", q, zero=True) for q in LOW),
    *(_at_zero("garl", q, zero=False) for q in HIGH),
    _at_least(("garl", 0.75), ("garl", 1.0), "GARL q = 0.75 ends at or above q = 1 (p@1)", "p"),
    _at_least(("garl", 0.75), ("garl", 1.0), "GARL q = 0.75 ends at or above q = 1 (m@n)", "m"),
    _in_order(
        "max c_m/M^q rises at once at q = 1, later at q = 0.75, and stays flat at q ≤ 0.5 (figure 3; here: above "
        f"{ESCAPED})",
        lambda run: run.advantage_step,
    ),
    _in_order(
        f"P leaves its start first at q = 1, later at q = 0.75, and not at q ≤ 0.5 (theory; here: P̂ ≥ {ESCAPED})",
        lambda run: run.escape_step,
    ),
    _paft_is_defined,
)
WARM = (
    _at_least(("garl", 0.25), ("grpo", None), "GARL q = 0.25 ends at or above GRPO (FinQA, m@n)", "m"),
    _at_least(("paft", 0.75), ("grpo", None), "PAFT q = 0.75 ends at or above GRPO (HotPotQA, m@n)", "m"),
    _at_least(("paft", 0.75), ("garl", 0.75), "PAFT q = 0.75 ends at or above GARL q = 0.75 (HotPotQA, m@n)", "m"),
    _collapses("garl", "GARL may peak and then fall to nothing (HotPotQA)", collapse=True),
    _collapses("paft", "PAFT holds what it reached", collapse=False),
)
