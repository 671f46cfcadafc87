"""Reads the settings of earlier runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.config.schema import FIELDS, base_config, task_fields
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.hub import with_recorded_commit
from tsallis_rl.runs.paths import dangling
from tsallis_rl.runs.run_directory import flatten, read_settings

# Fields that earlier runs lack -> the value that says what such a run did.
LATER = {
    name: FIELDS[name].default
    for name in (
        *(f"evaluate.{key}" for key in ("examples", "temperature", "top_k", "top_p", "greedy", "save_prompts")),
        *(f"task.{key}" for key in ("end_of_think", "joint", "think_prefix", "end_of_answer", "metric", "reward")),
        *("model.lora_targets", "model.adapter", "rollouts.min_rationale", "train.init", "train.keep_checkpoints"),
        "train.refill",
        *(f"regularizer.{key}" for key in ("kl", "reference", "decay", "entropy", "length", "min_length")),
        *("estimator.scale_rewards", "estimator.length_norm", "estimator.commitment", "estimator.tau", "evaluate.kl"),
        *(f"log.{key}" for key in ("to", "project", "run", "tags")),
        *("proposal.name", "proposal.template"),
        *("rollouts.aliases", "estimator.kl", "estimator.std_share", "estimator.k"),
    )
} | {
    "rollouts.prompt_widths": 1,
    "train.length_window": 0,
    "rollouts.answer_needs_end": False,
    "evaluate.rationale": "sampled",
    "guards.vanished_share": 0.0,
}

_REMEDY = "choose the folder of a run, or copy it again"


def with_later(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Adds to a run's flat settings the fields that it lacks, with the values that say what such a run did."""
    of_task = {name: field.default for name, field in task_fields(flat.get("task.name")).items()}
    return of_task | LATER | dict(flat)


def check_values(flat: Mapping[str, Any], file: Path) -> None:
    """Refuses settings that no run has: of another type than their field's, or outside its limit.

    Args:
      flat: section.field → value, as `flatten` returns them.
      file: the file that they come from.

    Raises:
      UserError: names the first such setting.
    """
    for name, field in (FIELDS | task_fields(flat.get("task.name"))).items():
        if field.default is None:  # each task has a value of its own
            continue
        if section := next((other for other in flat if other.startswith(f"{name}.")), None):
            raise UserError(f"{file}: {name} holds {section}, which no run has; {_REMEDY}")
        if name not in flat:
            continue
        if not field.has_type(flat[name]) or (field.limit and not field.limit.accepts(flat[name])):
            raise UserError(f"{file}: {name} is {flat[name]!r:.60}, which no run has; {_REMEDY}")


def _odd_name(settings: Mapping[str, Any]) -> str | None:
    """Finds a key of nested settings that is no name; a ConfigDict accepts none with a dot."""
    for key, value in settings.items():
        if not key.isidentifier():
            return key
        if isinstance(value, Mapping) and (odd := _odd_name(value)) is not None:
            return odd
    return None


def run_config(folder: Path, flag: str) -> ConfigDict:
    """Reads the config of the run in `folder`, which `flag` of a command line named.

    Raises:
      UserError: it is not the folder of a run, or config.json cannot be read, lacks a field that runs have now, or
        has a choice that no longer exists.
    """
    if not (folder / "config.json").exists():
        raise UserError(f"{flag}: {dangling(folder) or f'{folder} is not the folder of a run'}")
    settings = read_settings(folder)
    if (odd := _odd_name(settings)) is not None:
        raise UserError(f"{folder / 'config.json'}: {odd!r:.60} is not the name of a setting; {_REMEDY}")
    for name, value in LATER.items():
        section, _, key = name.partition(".")
        if isinstance(settings.setdefault(section, {}), dict):
            settings[section].setdefault(key, value)
    missing = sorted(flatten(base_config().to_dict()).keys() - flatten(settings).keys())
    if missing:
        raise UserError(f"{folder / 'config.json'} has no field {missing[0]}: another version of tsallis_rl wrote it")
    flat = flatten(settings)
    check_values(flat, folder / "config.json")
    for name, field in FIELDS.items():
        if isinstance(field.default, tuple):  # JSON has only lists
            section, _, key = name.partition(".")
            settings[section][key] = tuple(flat[name])
        if field.choices and flat[name] not in field.choices:
            raise UserError(
                f"{folder / 'config.json'}: {name} is {flat[name]!r}, which this version of tsallis_rl does not have "
                f"(it has {', '.join(field.choices)}); use the version that wrote the run"
            )
    return with_recorded_commit(ConfigDict(settings), folder)
