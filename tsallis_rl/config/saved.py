"""Reads the settings of earlier runs."""

from pathlib import Path

from ml_collections import ConfigDict

from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_directory import flatten, read_settings


def run_config(folder: Path) -> ConfigDict:
    """Reads the config of the run in `folder`.

    Raises:
      UserError: config.json cannot be read, or lacks a field that runs have now.
    """
    settings = read_settings(folder)
    missing = sorted(flatten(base_config().to_dict()).keys() - flatten(settings).keys())
    if missing:
        raise UserError(f"{folder / 'config.json'} has no field {missing[0]}: another version of tsallis_rl wrote it")
    return ConfigDict(settings)
