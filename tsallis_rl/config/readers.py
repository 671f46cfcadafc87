"""Finds which estimators read a setting, and which settings a run would not read."""

from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.config.schema import FIELDS, Field, value_of
from tsallis_rl.objectives import ESTIMATORS, compared_estimators

# The options that set q, for estimators whose row in ESTIMATORS does not fix it.
_SCHEDULE = ("q", "q_end", "schedule", "schedule_steps")


def estimators_reading(option: str) -> tuple[str, ...]:
    """Names the rows of ESTIMATORS that read config.estimator.`option`.

    An estimator that takes no q reads the schedule, too: the logged loss is that of docs/method.md §2 at its q.
    """
    if option == "name":
        return tuple(ESTIMATORS)
    if option in _SCHEDULE:
        return tuple(name for name, row in ESTIMATORS.items() if row.q is None)
    return tuple(name for name, row in ESTIMATORS.items() if option in row.options)


def is_read(config: ConfigDict, field: Field) -> bool:
    """Returns whether the setting on which the field depends has a value with which the field is read."""
    return field.when is None or value_of(config, field.when.field) in field.when.values


def unread(config: ConfigDict) -> dict[str, Any]:
    """Finds the options of config.estimator that were changed in vain: name → default.

    An option may be read by the estimator, by the one that a guard may switch to, or by one of the gradient comparison.
    Only the estimator reads the schedule, since the others set q themselves. An option that depends on one that is not
    read is judged by that one's default.
    """
    name = config.estimator.name
    names = {name} | compared_estimators(config.shadow)
    if config.guards.on_collapse == "paft":
        names.add("paft")
    rows = [ESTIMATORS[other] for other in names]

    def has_reader(field: str) -> bool:
        option = field.partition(".")[2]
        if option in _SCHEDULE:
            return ESTIMATORS[name].q is None
        return option == "name" or any(option in row.options for row in rows)

    ignored = {}
    for field, row in FIELDS.items():
        section, _, option = field.partition(".")
        if section != "estimator" or config.estimator[option] == row.default:
            continue
        if row.when is not None and not has_reader(row.when.field):
            met = FIELDS[row.when.field].default in row.when.values
        else:
            met = is_read(config, row)
        if not has_reader(field) or not met:
            ignored[option] = row.default
    return ignored
