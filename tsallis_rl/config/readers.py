"""Tells which estimators read a setting, and which settings a run would not read."""

from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.config.schema import FIELDS, Field, value_of
from tsallis_rl.objectives import ESTIMATORS

_SCHEDULED = ("q", "q_end", "schedule", "schedule_steps", "schedule_nats")  # for estimators that leave q to the config


def estimators_reading(option: str) -> tuple[str, ...]:
    """Names the rows of ESTIMATORS that read config.estimator.`option`."""
    if option in _SCHEDULED:
        return tuple(name for name, row in ESTIMATORS.items() if "q" in row.needs and row.q is None)
    return tuple(name for name, row in ESTIMATORS.items() if option in row.options)


def holds(config: ConfigDict, field: Field) -> bool:
    """Whether the other setting on which the field depends has a value with which it is read."""
    return field.when is None or value_of(config, field.when[0]) in field.when[1]


def unread(config: ConfigDict) -> dict[str, Any]:
    """Finds the options of config.estimator that were changed in vain: name → default.

    An option is read by the estimator, by the one that a guard or the controller may switch to, or by one of the
    gradient comparison.
    """
    name = config.estimator.name
    names = {name}
    if config.guards.on_collapse == "paft" or config.controller.collapse_nats:
        names.add("paft")
    if config.shadow.every:
        names |= {other.partition("@")[0] for other in config.shadow.estimators} & ESTIMATORS.keys()
    read = {"name"}.union(*(ESTIMATORS[each].options for each in names))
    if ESTIMATORS[name].q is None:
        read.update(_SCHEDULED)
    ignored = {}
    for field, row in FIELDS.items():
        section, _, option = field.partition(".")
        if section != "estimator" or config.estimator[option] == row.default:
            continue
        if option not in read or not holds(config, row):
            ignored[option] = row.default
    return ignored
