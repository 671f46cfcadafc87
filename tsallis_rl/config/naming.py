"""Names runs by what they train: their estimator with its own options, and its commitment; and names their folders."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.config.schema import FIELDS
from tsallis_rl.objectives import followed_commitment
from tsallis_rl.runs.cache import fingerprint
from tsallis_rl.runs.json_files import plain
from tsallis_rl.runs.own_code import is_dotted
from tsallis_rl.runs.run_directory import deciding


def estimator_text(settings: Mapping[str, Any]) -> str:
    """Names the estimator of a config's estimator section; a user's own with the options that only it has."""
    name = settings["name"]
    own = [f"{option}={x}" for option, x in settings.items() if is_dotted(name) and f"estimator.{option}" not in FIELDS]
    return f"{name}({', '.join(own)})" if own else name


def commitment_text(settings: Mapping[str, Any], logged_q: float | None = None) -> str:
    """Names the commitment of a config's estimator section, such as "q = 0.75"; "" if its estimator has none.

    Args:
      settings: config.estimator.
      logged_q: see `followed_commitment`.
    """
    followed = followed_commitment(settings, logged_q)
    if "tau" in followed:
        return f"{followed['commitment']} τ = {followed['tau']:g}"
    if "q" not in followed:
        return ""
    schedule = settings.get("schedule", "constant")
    return f"q = {followed['q']:g}" + ("" if schedule == "constant" else f" → {settings['q_end']:g} ({schedule})")


def logged_q(records: Iterable[Mapping[str, Any]]) -> float | None:
    """Reads the first q from the records of a run's metrics.jsonl; None if it logged none."""
    return next((q for record in records if (q := plain(record.get("train/q"))) is not None), None)


def default_workdir(config: ConfigDict) -> str:
    """Names the folder of a run for which none is given; runs of different configs have different folders."""
    followed = followed_commitment(config.estimator)
    parts = [config.task.name, config.task.start, config.estimator.name]
    parts += [f"q{followed['q']:g}"] if "q" in followed else []
    parts += [f"{followed['commitment']}{followed['tau']:g}"] if "tau" in followed else []
    return f"runs/{'-'.join(parts)}-{fingerprint(deciding(config))}"
