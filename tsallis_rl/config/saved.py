"""Reads the settings of earlier runs."""

from pathlib import Path

from ml_collections import ConfigDict

from tsallis_rl.config.schema import FIELDS, base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_directory import flatten, read_settings

# Fields that runs were made without at first; such a run has them at their defaults.
LATER = tuple(f"evaluate.{name}" for name in ("examples", "temperature", "top_k", "top_p", "greedy", "save_prompts"))


def run_config(folder: Path, flag: str) -> ConfigDict:
    """Reads the config of the run in `folder`, which `flag` of a command line named.

    Raises:
      UserError: it is not the folder of a run, or config.json cannot be read, or lacks a field that runs have now.
    """
    if not (folder / "config.json").exists():
        raise UserError(f"{flag}: {folder} is not the folder of a run")
    settings = read_settings(folder)
    for name in LATER:
        section, _, key = name.partition(".")
        if isinstance(settings.get(section), dict):
            settings[section].setdefault(key, FIELDS[name].default)
    missing = sorted(flatten(base_config().to_dict()).keys() - flatten(settings).keys())
    if missing:
        raise UserError(f"{folder / 'config.json'} has no field {missing[0]}: another version of tsallis_rl wrote it")
    return ConfigDict(settings)
