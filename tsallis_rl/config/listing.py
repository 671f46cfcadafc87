"""Lists a config with the meaning of every field, and writes the table of all fields as a page."""

import re
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


def settings_page() -> str:
    """Writes the page of all fields in Markdown: a table a section, with default, meaning, limits and readers."""
    table = FIELDS | TASK_FIELDS
    lines = [
        "# Settings",
        "",
        "Set any field by `--config.section.field=value`; `python -m tsallis_rl.main --show_config` prints the fields "
        "of a config with their values. A field is read by every run unless its readers are named.",
    ]
    for section, told in {"": "", **SECTIONS}.items():
        of_section = {name: field for name, field in table.items() if name.rpartition(".")[0] == section}
        lines += ["", f"## {section}", "", f"{told[:1].upper()}{told[1:]}."] if section else []
        lines += ["", "| field | default | meaning |", "|---|---|---|"]
        for name, field in of_section.items():
            default = "" if field.default is None else f"`{_text(field.default)}`"
            notes = "".join(f"<br><small>{_cell(note)}</small>" for note in _notes(name, field))
            lines.append(f"| `{name}` | {_cell(default)} | {_cell(field.meaning)}{notes} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Escapes a cell of a Markdown table outside of code: bars end cells, and stars, underscores and < are markup."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\*_\[\]])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|").replace("\n", " ")


def _own(config: ConfigDict, name: str) -> Field:
    """Makes the row of a field that the schema lacks: an option of a user's own estimator, or a config file's field."""
    section, _, option = name.rpartition(".")
    if section == "estimator":
        return Field(ESTIMATORS[config.estimator.name].defaults.get(option), f"an option of {config.estimator.name}")
    return Field(None, "a field of this config file's own")


def _cells(config: ConfigDict, name: str, field: Field) -> tuple[str, str, str, str]:
    """Returns a field's mark, value, default and meaning as text."""
    value = value_of(config, name)
    default = "" if field.default is None else _text(field.default)
    mark = "*" if default and value != field.default else " "
    notes = _notes(name, field)
    meaning = f"{field.meaning} ({'; '.join(notes)})" if notes else field.meaning
    return mark, _text(value), default, meaning


def _notes(name: str, field: Field) -> list[str]:
    """Lists the values that a field accepts, and its readers."""
    notes = [f"choices: {', '.join(field.choices)}"] if field.choices else []
    if field.limit:
        is_open = field.limit.most >= 2**31 - 1  # which nobody reaches
        notes.append(re.sub(r"(,? at most| to) [\d.e+]+$", "", str(field.limit)) if is_open else str(field.limit))
    return notes + ([f"read by {who}"] if (who := _readers(name, field)) else [])


def _readers(name: str, field: Field) -> str:
    """Names the readers of a field that not every run reads; "" for other fields."""
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
