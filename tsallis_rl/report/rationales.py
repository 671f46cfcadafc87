"""Answers in the report whether rationales help, from the evaluations on validation."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tsallis_rl.laboratory.symbols import explained, symbol
from tsallis_rl.objectives import ESTIMATORS
from tsallis_rl.report.runs import Run, methods
from tsallis_rl.report.said import saved_answers, shortened
from tsallis_rl.report.tables import table
from tsallis_rl.runs.json_files import plain
from tsallis_rl.runs.progress import count_of

NOTHING = 0.1  # nats, an answer 1.1 times as likely: a smaller gain or loss counts as no difference
DIFFERENT = 0.25  # share of unique rationales from which on those of a prompt can be compared
HELP, HURT, NO_DIFFERENCE = "rationales help", "rationales hurt", "rationales make no difference"
IDLE, UNSAID = "what rationales say makes no difference", "cannot be said"
_GAIN = "rationale_gain"
_EXAMPLES = 2  # examples shown for each method
_CAPTION = (
    "On validation; start → end are a run's first and last evaluation, means over seeds. The gain is log P̂ − log "
    "p(gold with thinking closed at once), nats, the mean over prompts; each seed's at the end has ± 1.96 standard "
    "errors. Both terms are of one model: the gain says what its rationales do for it, not how a model "
    "would end that is trained without any. Unique: the share of a prompt's samples whose rationale no earlier one "
    "has. Spread: the standard deviation of log p(gold) over the different rationales of a prompt, nats; near 0 it "
    "makes no difference what they say. Entropy: of a rationale's next token, estimated by −log p of those sampled, "
    "nats."
)


class Course(NamedTuple):
    """A run's figures of rationales.

    Attributes:
      first, last: the records of its first and its last evaluation on validation that measured them.
      vanished: the step at which the guard found that they had vanished, or None.
    """

    first: dict[str, Any]
    last: dict[str, Any]
    vanished: int | None


def rationales(runs: Sequence[Run]) -> str:
    """Writes for each method an answer, figures, and rationales at start and end; "" if no run measured any."""
    answers, rows, texts = [], [], []
    for method, some in methods(runs).items():
        courses = [(run, course) for run in some if (course := course_of(run))]
        if courses:
            answers.append(answer(method, courses))
            rows.append([html.escape(method), *_cells(courses)])
            texts += _texts(method, [run for run, _ in courses])
        elif bare := [run for run in some if _is_bare(run)]:
            rows.append([html.escape(method), *_bare_cells(bare)])
    if not answers:
        return ""
    listed = "".join(f"<li>{html.escape(text)}</li>\n" for text in answers)
    heads = [
        "method",
        "seeds",
        symbol("p@1"),
        f"log {symbol('P̂')}",
        "gain by a rationale",
        "prompts it helps",
        "unique",
        "spread",
        "length",
        "entropy",
    ]
    shown = table([*heads, "vanished at step"], rows, explained(_CAPTION))
    if texts:
        caption = "Rationales of the first run of each method, the first sample of some validation examples."
        shown += table(["method", "example", "gold", "at the start", "at the end"], texts, caption)
    return f"<ul>{listed}</ul>\n{shown}"


def course_of(run: Run) -> Course | None:
    """Finds a run's figures of rationales; None if no evaluation measured any."""
    measured = [r for r in run.records if f"eval/validation/{run.part}{_GAIN}" in r]
    steps = [r["step"] for r in run.records if "guard/rationales_vanished" in r]
    return Course(measured[0], measured[-1], steps[0] if steps else None) if measured else None


def judged_methods(runs: Sequence[Run]) -> dict[str, str]:
    """Judges whether rationales help, for each method that measured it: {method: one of the verdicts above}."""
    found = {
        method: [(run, course) for run in some if (course := course_of(run))] for method, some in methods(runs).items()
    }
    return {method: verdict_of(courses) for method, courses in found.items() if courses}


def verdict_of(courses: Sequence[tuple[Run, Course]]) -> str:
    """Judges whether a method's rationales help, by its runs' last evaluations."""
    found = [x for run, course in courses if (x := _gain(run, course.last)) is not None]
    if len(found) < len(courses):
        return UNSAID
    return IDLE if _idle_spread(courses) is not None else _verdict(found)


def answer(method: str, courses: Sequence[tuple[Run, Course]]) -> str:
    """Describes in a sentence whether a method's rationales help, by its runs' last evaluations."""
    gained = [_gain(run, course.last) for run, course in courses]
    found = [x for x in gained if x is not None]
    steps = sorted({course.last["step"] for _, course in courses})
    when = f"at the last evaluation (step {' to '.join(map(str, dict.fromkeys((steps[0], steps[-1]))))})"
    gone = [course.vanished for _, course in courses if course.vanished is not None]
    vanished = f" They vanished at step {', '.join(map(str, gone))} ({len(gone)} of {count_of(len(courses), 'seed')})."
    if len(found) < len(gained):
        text = (
            f"{UNSAID}: {when} the gain is no number for {len(gained) - len(found)} of "
            f"{count_of(len(gained), 'seed')}; "
            "log P̂ is −∞ where no sampled rationale of a prompt closed (config.rollouts.unclosed)."
        )
    elif (spread := _idle_spread(courses)) is not None:
        differ = f"{when} those of a prompt are different, and log p(gold) after them differs by {spread:.2f} nats"
        text = (
            f"{IDLE}: {differ} (standard deviation, mean over prompts and seeds). Answering after one gains "
            f"{_interval(found)}"
        )
        is_gain = _verdict(found) == HELP
        text += ": the model is not used to answering without one." if is_gain else "."
    else:
        text = f"{_verdict(found)}: {when} answering after one gains {_interval(found)}."
    return f"{method}: {text}{vanished if gone else ''}"


def _idle_spread(courses: Sequence[tuple[Run, Course]]) -> float | None:
    """Computes the mean spread if rationales differ but the probability of gold does not depend on them; else None.

    Every seed must agree.
    """
    found = [(_value(run, c.last, "rationale_spread"), _value(run, c.last, "unique_rationales")) for run, c in courses]
    if all(None not in pair and pair[0] < NOTHING and pair[1] >= DIFFERENT for pair in found):
        return float(np.mean([spread for spread, _ in found]))
    return None


def _verdict(gained: Sequence[tuple[float, float]]) -> str:
    """Judges gains and their half-widths, one pair per seed; every seed must agree."""
    low, high = min(gain - half for gain, half in gained), max(gain + half for gain, half in gained)
    if low > -NOTHING and high < NOTHING:
        return NO_DIFFERENCE
    if low > 0:
        return HELP
    return HURT if high < 0 else UNSAID


def _interval(gained: Sequence[tuple[float, float]]) -> str:
    """Writes the mean over seeds, and each seed's interval over prompts."""
    each = ", ".join(f"{gain:z.2f} ± {half:.2f}" for gain, half in gained)
    mean = np.mean([gain for gain, _ in gained])
    return f"{mean:z.2f} nats of log p(gold) ({count_of(len(gained), 'seed')}: {each}, 95% over prompts)"


def _gain(run: Run, record: dict[str, Any]) -> tuple[float, float] | None:
    """Reads the gain and half of its 95% interval over prompts (∞ for one prompt); None if it is not a number."""
    gain, error = (_value(run, record, name) for name in (_GAIN, f"{_GAIN}_se"))
    return None if gain is None else (gain, np.inf if error is None else 1.96 * error)


def _value(run: Run, record: dict[str, Any], name: str) -> float | None:
    return plain(record.get(f"eval/validation/{run.part}{name}"))


def _cells(courses: Sequence[tuple[Run, Course]]) -> list[str]:
    """Writes the cells after a method's name in its row of the table."""

    def change(name: str, digits: int = 2) -> str:
        ends = [[_value(run, course[i], name) for run, course in courses] for i in (0, 1)]
        return " → ".join("–" if None in values else f"{np.mean(values):z.{digits}f}" for values in ends)

    gained = [_gain(run, course.last) for run, course in courses]
    each = ", ".join("–" if x is None else f"{x[0]:z.2f} ± {x[1]:.2f}" for x in gained)
    if len(gained) == 1:
        gain = f"<b>{change(_GAIN)}</b>" + ("" if gained[0] is None else f" ± {gained[0][1]:.2f}")
    else:
        gain = f"<b>{change(_GAIN)}</b><br><span class=note>{each}</span>"
    names = (
        *("rationale_helps", "unique_rationales", "rationale_spread", "rationale_length"), "rationale_token_entropy",
    )  # fmt: skip
    return [
        str(len(courses)), change("pass@1", 3), change("log_p_hat"),
        f'<span class="whole">{gain}</span>', *map(change, names),
        ", ".join(run.when(course.vanished) for run, course in courses),
    ]  # fmt: skip


def _is_bare(run: Run) -> bool:
    """Returns whether a run's estimator trains without rationales, and the run was evaluated."""
    row = ESTIMATORS.get(run.estimator)
    return row is not None and not row.rationale and len(run.curve(f"eval/validation/{run.part}pass@1")[0]) > 0


def _bare_cells(runs: Sequence[Run]) -> list[str]:
    """Writes the row of a method without rationales, the baseline of the others."""
    cells = []
    for name, digits in (("pass@1", 3), ("log_p_hat", 2)):
        curves = [values for run in runs if len(values := run.curve(f"eval/validation/{run.part}{name}")[1])]
        ends = [np.mean([values[i] for values in curves]) for i in (0, -1)] if curves else []
        cells.append(" → ".join(f"{x:z.{digits}f}" for x in ends) or "–")
    return [str(len(runs)), *cells, "none are sampled", *["–"] * 6]


def _texts(method: str, runs: Sequence[Run]) -> list[list[str]]:
    """Writes rationales at the first and the last evaluation, of the first run that saved both."""
    for run in runs:
        (first, before), (last, after) = (saved_answers(run.folder, choose) for choose in (min, max))
        earlier = {_name(group[0]): group[0] for group in before}
        pairs = [(group[0], earlier[_name(group[0])]) for group in after if _name(group[0]) in earlier]
        if first < last and pairs:
            name = f"{method}, steps {first} and {last}"
            return [
                [html.escape(text) for text in (name if i == 0 else "", _name(new), shortened(new.get("gold")))]
                + [html.escape(shortened(row.get("rationale"))) for row in (old, new)]
                for i, (new, old) in enumerate(pairs[:_EXAMPLES])
            ]
    return []


def _name(row: dict[str, Any]) -> str:
    return shortened(row.get("example"))
