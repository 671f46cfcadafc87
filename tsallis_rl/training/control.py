"""Control: everything that decides how the next step trains, in one small struct.

    q, estimator   what the next step weighs its rollouts with
    guards         updates skipped in a row, the best evaluation so far, collapses, rationales at the start

The struct is immutable: after a step or an evaluation, a function makes the next one from it and what was measured. It
is saved with every checkpoint, so that a run that was stopped decides as one that never was. Apart from it, a step
depends only on the config and its own number; metrics.jsonl is output only.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl import objectives
from tsallis_rl.runs.errors import UserError, as_name

LEAST_GAIN = 0.1  # nats: if rationales gain this much, few unique ones do not count as vanished
LEAST_BEST = 0.1  # a figure whose best is below this has nothing to lose

_LENGTH, _UNIQUE, _GAIN = "rationale_length", "unique_rationales", "rationale_gain"
_RISING = ("log_p_hat", "pass@1")  # a hard reward raises the second and may lower the first
_WATCHED = (_LENGTH, _UNIQUE, *_RISING, _GAIN)


@dataclasses.dataclass(frozen=True)
class Best:
    """The best value of a figure since the last collapse, and the step that reached it."""

    value: float
    step: int


@dataclasses.dataclass(frozen=True)
class ControlState:
    """The decisions that the next step trains by, and what later ones need to know.

    Attributes:
      estimator: its name.
      q: its commitment; with a schedule, the one at its start.
      skipped: updates skipped in a row.
      evaluated_at: the last step that was evaluated on validation; −1 before the first.
      tested_at: the last step at which the test split was evaluated; −1 before the first.
      collapses: how often a figure collapsed.
      best: figure -> its best since the last collapse.
      start: figure -> its value in the first evaluation, of the figures that `watch_rationales` compares; {} before.
      start_step: of that evaluation; −1 before.
      vanished_at: the step at which rationales were found to have vanished; −1 before.
      histories: quantity → its history over the batches so far (`objectives.histories`); {} if the estimator has none.
    """

    estimator: str
    q: float
    skipped: int = 0
    evaluated_at: int = -1
    tested_at: int = -1
    collapses: int = 0
    best: Mapping[str, Best] = dataclasses.field(default_factory=dict)
    start: Mapping[str, float] = dataclasses.field(default_factory=dict)
    start_step: int = -1
    vanished_at: int = -1
    histories: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the state as values that JSON can write."""
        return dataclasses.asdict(self)


def initial_control(config: ConfigDict) -> ControlState:
    """Makes the control state of a run's first step."""
    return ControlState(estimator=config.estimator.name, q=float(config.estimator.q))


def followed(control: ControlState, config: ConfigDict, step: int) -> dict[str, Any]:
    """Selects the commitment of step `step`, see `objectives.followed_commitment`.

    Returns:
      q, or commitment and tau; with a schedule also q_start, from which it computes q.
    """
    section = config.estimator
    found = objectives.followed_commitment({**section, "name": control.estimator, "q": control.q})
    if section.schedule == "constant" or not objectives.follows_q(control.estimator, section.commitment):
        return found
    q = objectives.scheduled_q(
        section.schedule, step, q=control.q, q_end=section.q_end, schedule_steps=section.schedule_steps
    )
    return found | {"q": float(q), "q_start": control.q}


def control_from_dict(saved: Mapping[str, Any]) -> ControlState:
    """Reads what `ControlState.to_dict` wrote.

    Raises:
      UserError: it is not what that writes.
    """
    try:
        made = ControlState(**{**saved, "best": {name: Best(**best) for name, best in saved["best"].items()}})
        if _is_written(made):
            return made
        reason = "a value is of another kind"
    except (TypeError, KeyError, AttributeError) as error:
        reason = str(error)
    raise UserError(
        f"a checkpoint's control state is not one that this version of tsallis_rl writes ({reason}); finish that run "
        "with the version that wrote it, or start again in another --workdir"
    )


def _is_written(control: ControlState) -> bool:
    """Returns whether every value of a control state that was read has the right type."""
    counts = (control.skipped, control.evaluated_at, control.tested_at, control.collapses)
    counts += (control.start_step, control.vanished_at)
    numbers = [control.q, *(best.value for best in control.best.values())]
    numbers += control.start.values()
    return (
        control.estimator in list(objectives.ESTIMATORS)
        and set(control.start) in (set(), set(_WATCHED))
        and all(type(count) is int for count in (*counts, *(best.step for best in control.best.values())))
        and all(type(number) in (int, float) for number in numbers)
        and all(_are_numbers(history) for history in control.histories.values())
    )


def _are_numbers(history: Any) -> bool:
    """Returns whether a history is a list of numbers, or of lists of numbers."""
    flat = [x for part in history for x in (part if isinstance(part, list) else [part])]
    return isinstance(history, list) and all(type(x) in (int, float) for x in flat)


@dataclasses.dataclass(frozen=True)
class StepMeasurement:
    """The measurements of a step that decide the next one.

    Attributes:
      skipped: whether the update was skipped, because a number was not finite.
      bad_examples: ids of the examples to blame, if it was.
      log_p_hat: mean log P̂ of the groups, nats; NaN where no rollout had weight.
      histories: those of the control state, extended by the step's batch.
    """

    skipped: bool
    bad_examples: Sequence[str] = ()
    log_p_hat: float = math.nan
    histories: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)


def evaluation_is_due(control: ControlState, config: ConfigDict, step: int) -> bool:
    """Returns whether step `step` is to be evaluated on validation, and has not been."""
    return control.evaluated_at < step and (step % config.evaluate.every == 0 or step == config.train.steps)


def after_step(control: ControlState, config: ConfigDict, step: int, measured: StepMeasurement) -> ControlState:
    """Makes the control state after step `step` from what it measured.

    Raises:
      UserError: config.guards.max_skipped updates in a row were skipped.
    """
    skipped = control.skipped + 1 if measured.skipped else 0
    if skipped >= config.guards.max_skipped:
        raise UserError(
            f"steps {step - skipped + 1} to {step}: loss, gradient or parameters were not finite in each, and nothing "
            f"was learnt (config.guards.max_skipped={config.guards.max_skipped}); examples of the last: "
            f"{', '.join(map(as_name, measured.bad_examples[:8]))}; the checkpoints are from before: try a lower "
            "config.optimizer.learning_rate or config.optimizer.clip in another --workdir"
        )
    return dataclasses.replace(control, skipped=skipped, histories=measured.histories)


def after_evaluation(
    control: ControlState, config: ConfigDict, step: int, scores: Mapping[str, float]
) -> tuple[ControlState, str | None]:
    """Updates control after an evaluation on validation; also returns a sentence that names the collapse, or None.

    Validation maj@k and the share of rationales that close by themselves are each compared with their best since the
    last collapse; losing more than config.guards.collapse_share of it is a collapse.

    Args:
      control: before the evaluation.
      config: the run's.
      step: updates made so far.
      scores: of `evaluation.Evaluation`.
    """
    figures = (f"maj@{config.evaluate.samples}", "closed_sampled")
    best = {name: control.best.get(name, Best(scores[name], step)) for name in figures}
    best = {name: b if b.value >= scores[name] else Best(scores[name], step) for name, b in best.items()}
    fallen = _find_collapse(best, scores, figures, config.guards.collapse_share)
    control = dataclasses.replace(control, evaluated_at=step, best=best)
    return (control if fallen is None else _after_collapse(control, config, step, scores)), fallen


def _find_collapse(
    best: Mapping[str, Best], scores: Mapping[str, float], figures: Sequence[str], share: float
) -> str | None:
    """Names the first of the figures that has lost more than `share` of its best; None if none has."""
    for name in figures:
        was, now = best[name], scores[name]
        if was.value >= LEAST_BEST and now < (1 - share) * was.value:
            return f"eval/validation/{name} fell from {was.value:.3f} at step {was.step} to {now:.3f}"
    return None


def _after_collapse(control: ControlState, config: ConfigDict, step: int, scores: Mapping[str, float]) -> ControlState:
    """Does what config.guards.on_collapse asks for; from now on, figures are compared with what they fell to."""
    action, collapses = config.guards.on_collapse, control.collapses + 1
    return dataclasses.replace(
        control,
        estimator="paft" if action == "paft" else control.estimator,
        q=config.estimator.q * 0.5**collapses if action == "lower_q" else control.q,
        collapses=collapses,
        best={name: Best(scores[name], step) for name in control.best},
    )


def watch_rationales(
    control: ControlState, config: ConfigDict, step: int, scores: Mapping[str, float], closing: int = 1
) -> tuple[ControlState, str | None]:
    """Updates control after an evaluation on validation; also returns a sentence if rationales vanished, else None.

    Figures are compared with those of the run's first evaluation, while log P̂ or pass@1 is higher than it was then.
    Rationales have vanished if their mean length, without the tokens that close them, is at most
    config.guards.vanished_share of the first. They have also vanished if the share of unique ones is, and a rationale
    gains less than LEAST_GAIN: a model that is sure of the right rationale has few different ones too, but gains by
    them. If the gain is not finite, the share of unique ones decides alone. The sentence is returned only once.

    Args:
      control: before or after `after_evaluation`.
      config: the run's.
      step: updates made so far.
      scores: of `evaluation.Evaluation`; without figures of rationales nothing is compared.
      closing: L, which is included in each rationale's length.
    """
    share, start = config.guards.vanished_share, control.start
    if not share or _LENGTH not in scores:
        return control, None
    if not start:
        start = {name: scores[name] for name in _WATCHED}
        return dataclasses.replace(control, start=start, start_step=step), None
    gains = math.isfinite(scores[_GAIN]) and scores[_GAIN] >= LEAST_GAIN
    is_lost = {
        _LENGTH: start[_LENGTH] > closing and scores[_LENGTH] - closing <= share * (start[_LENGTH] - closing),
        _UNIQUE: scores[_UNIQUE] <= share * start[_UNIQUE] and not gains,
    }
    rises = any(scores[name] > start[name] for name in _RISING)
    if control.vanished_at >= 0 or not any(is_lost.values()) or not rises:
        return control, None
    names = [name for name in _WATCHED if is_lost.get(name, True)]
    changes = ", ".join(f"{name} went from {start[name]:.3g} to {scores[name]:.3g}" for name in names)
    told = f"rationales vanished between steps {control.start_step} and {step}: on validation {changes}"
    return dataclasses.replace(control, vanished_at=step), told


def check_guards(config: ConfigDict) -> None:
    """Refuses an action of config.guards that the estimator cannot take, with a UserError."""
    if config.guards.on_collapse == "paft" and config.estimator.name != "garl":
        raise UserError(f"config.guards.on_collapse='paft' is for estimator garl, not {config.estimator.name}")
    name, commitment = config.estimator.name, config.estimator.commitment
    if config.guards.on_collapse == "lower_q" and not objectives.follows_q(name, commitment):
        follows = f"estimator {name} takes no q" if commitment == "power" else f"a {commitment} has no q"
        raise UserError(f"config.guards.on_collapse='lower_q': {follows}")
