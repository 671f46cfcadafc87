"""Prints a config with what every field means."""

from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.config.files import field_names
from tsallis_rl.config.readers import estimators_reading
from tsallis_rl.config.schema import FIELDS, SECTIONS, TASK_FIELDS, Field, value_of
from tsallis_rl.objectives import ESTIMATORS

_WIDEST = 18  # a longer value pushes the rest of its line to the right


def listing(config: ConfigDict) -> str:
    """Lists every field with value, default and meaning, a section at a time; `*` marks a value that was changed."""
    table = FIELDS | TASK_FIELDS
    names = field_names(config)
    order = [name for name in table if name in names] + [name for name in names if name not in table]
    sections = ["", *SECTIONS, *sorted({name.rpartition(".")[0] for name in order} - {"", *SECTIONS})]
    rows = {name: _cells(config, name, table.get(name) or _own(config, name)) for name in order}
    widths = [min(max(len(row[i]) for row in rows.values()), _WIDEST) for i in (1, 2)]
    wide = max(map(len, rows))
    lines = [f"  {'field':<{wide}}  {'value':<{widths[0]}}  {'default':<{widths[1]}}  meaning"]
    for section in sections:
        if section:
            lines.append(f"\n  {section}" + (f": {SECTIONS[section]}" if section in SECTIONS else ""))
        for name in order:
            if name.rpartition(".")[0] == section:
                mark, value, default, meaning = rows[name]
                lines.append(f"{mark} {name:<{wide}}  {value:<{widths[0]}}  {default:<{widths[1]}}  {meaning}")
    return "\n".join(line.rstrip() for line in lines)


def _own(config: ConfigDict, name: str) -> Field:
    """Makes the row of a field that the schema lacks: an option of an estimator of one's own, or a config file's."""
    section, _, option = name.rpartition(".")
    if section == "estimator":
        return Field(ESTIMATORS[config.estimator.name].defaults.get(option), f"an option of {config.estimator.name}")
    return Field(None, "a field of this config file's own")


def _cells(config: ConfigDict, name: str, field: Field) -> tuple[str, str, str, str]:
    """Gives a field's mark, value, default and meaning as text."""
    value = value_of(config, name)
    default = "" if field.default is None else _text(field.default)
    mark = "*" if default and value != field.default else " "
    notes = [f"choices: {', '.join(field.choices)}"] if field.choices else []
    notes += [str(field.limit)] if field.limit else []
    notes += [f"read by {who}"] if (who := _readers(name, field)) else []
    meaning = f"{field.meaning} ({'; '.join(notes)})" if notes else field.meaning
    return mark, _text(value), default, meaning


def _readers(name: str, field: Field) -> str:
    """Says who reads a field that not every run reads."""
    readers = []
    section, _, option = name.partition(".")
    if section == "estimator" and option != "name":
        names = estimators_reading(option)
        readers.append("all estimators" if len(names) == len(ESTIMATORS) else ", ".join(names) or "no estimator")
    if field.tasks:
        readers.append(f"task {', '.join(field.tasks)}")
    if field.when:
        readers.append(f"{field.when.field} {', '.join(field.when.values)}")
    return " at ".join(readers)


def _text(value: Any) -> str:
    """Writes a value as a command line or a config file has it."""
    return str(value) if isinstance(value, float) else repr(value)
