"""Guards over a run: updates that are not finite, and collapse. What they know is what metrics.jsonl holds.

So a resumed run's guards are those of the run that was stopped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl import objectives
from tsallis_rl.runs.errors import UserError

COLLAPSE = "guard/collapse"
_LOWEST = 0.1  # a figure whose best is below this has nothing to lose

Records = Sequence[Mapping[str, Any]]


def check(config: ConfigDict) -> None:
    """Refuses an action of config.guards that the estimator cannot take, with a UserError."""
    if config.guards.on_collapse == "paft" and config.estimator.name != "garl":
        raise UserError(f"config.guards.on_collapse='paft' is for estimator garl, not {config.estimator.name}")
    row = objectives.ESTIMATORS[config.estimator.name]
    if config.guards.on_collapse == "lower_q" and (row.q is not None or "q" not in row.needs):
        raise UserError(f"config.guards.on_collapse='lower_q': estimator {config.estimator.name} takes no q")
    if config.guards.on_collapse == "lower_q" and config.controller.nats:
        raise UserError(
            "config.guards.on_collapse='lower_q': config.controller.nats sets q itself; leave one at its default"
        )


def check_skipped(config: ConfigDict, records: Records) -> None:
    """Stops a run whose last config.guards.max_skipped updates were all left out, with a UserError."""
    updates = [record for record in records if "train/skipped" in record]
    last = updates[-config.guards.max_skipped :]
    if len(last) == config.guards.max_skipped and all(record["train/skipped"] for record in last):
        raise UserError(
            f"steps {last[0]['step']} to {last[-1]['step']}: loss, gradient or weights were not finite in each, and "
            f"nothing was learnt (config.guards.max_skipped={config.guards.max_skipped}); examples of the last: "
            f"{', '.join(last[-1]['skipped_examples'][:8])}; the checkpoints are from before: try a lower "
            "config.optimizer.learning_rate or config.optimizer.clip in another --workdir"
        )


def collapse(config: ConfigDict, records: Records) -> str | None:
    """What the last evaluation lost, in words: validation maj@k, or the share of rationales that close by themselves.

    Each is held against its best since the last collapse; more than config.guards.collapse_share lost is one.
    """
    evaluations: list[Mapping[str, Any]] = []
    for record in records:
        if COLLAPSE in record:
            evaluations = evaluations[-1:]
        elif "eval/validation/pass@1" in record:
            evaluations.append(record)
    for name in (f"eval/validation/maj@{config.evaluate.samples}", "eval/validation/closed_sampled"):
        best = max(evaluations, key=lambda record: record[name])
        now = evaluations[-1]
        if best[name] >= _LOWEST and now[name] < (1 - config.guards.collapse_share) * best[name]:
            return f"{name} fell from {best[name]:.3f} at step {best['step']} to {now[name]:.3f}"
    return None


def in_force(config: ConfigDict, records: Records, step: int) -> ConfigDict:
    """The settings of step `step`: `config` as the collapses up to there have changed it."""
    collapses = sum(COLLAPSE in record and record["step"] <= step for record in records)
    changed = config.copy_and_resolve_references()
    if collapses and config.guards.on_collapse == "paft":
        changed.estimator.name = "paft"
    elif config.guards.on_collapse == "lower_q":
        changed.estimator.q = config.estimator.q * 0.5**collapses
    return changed
