"""Turns a device's out-of-memory error into one sentence: which phase, what --plan counts, which setting to change."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from ml_collections import ConfigDict

from tsallis_rl.models import Architecture
from tsallis_rl.runs.errors import UserError
from tsallis_rl.training.memory_plan import GIB, as_flags, plan, whole_change, with_change
from tsallis_rl.training.setup import Setup

LOADING, ROLLOUTS, EVALUATION, UPDATE = "loading the parameters", "sampling rollouts", "an evaluation", "an update"
COMPARISON = "the gradient comparison"
# Settings to lower, cheapest first; --plan counts evaluations with the rollouts.
SETTINGS = {
    LOADING: ("mesh.fsdp",),
    ROLLOUTS: ("rollouts.at_once", "mesh.fsdp", "model.dtype", "rollouts.num_rollouts", "rollouts.max_rationale"),
    EVALUATION: ("evaluate.prompts", "rollouts.at_once", "mesh.fsdp", "model.dtype", "rollouts.max_rationale"),
    UPDATE: ("train.micro_batch", "train.micro_rollouts", "model.remat", "mesh.fsdp", "model.dtype", "train.prompts"),
}
COUNTED = {LOADING: "rollouts", ROLLOUTS: "rollouts", EVALUATION: "rollouts", UPDATE: "update"}


@contextmanager
def explained(phase: str, setup: Setup) -> Iterator[None]:
    """Raises a UserError if XLA runs out of a device's memory in a phase of the run; other errors pass through."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        advice = advise(phase, setup.counted_config(), setup.arch, setup.markers.fixed_tokens, jax.device_count())
        raise UserError(f"{phase} ran out of a device's memory ({_first_line(error)}); {advice}") from error


def advise(phase: str, config: ConfigDict, arch: Architecture, fixed: int, devices: int) -> str:
    """Returns what --plan counts for a phase, and the first setting whose change lowers it, as text.

    Args:
      phase: a key of SETTINGS, or COMPARISON.
      config: the run's settings.
      arch: of its model.
      fixed: L + J, tokens of end-of-think and joint.
      devices: over which config.mesh is laid.
    """

    if phase == COMPARISON:
        return "--plan does not count it: set --config.shadow.every=0, or name fewer config.shadow.estimators"

    def counted(config: ConfigDict, arch: Architecture) -> int:
        return sum(plan(config, arch, fixed, devices)[COUNTED[phase]].values())

    before = counted(config, arch)
    for field in SETTINGS[phase]:
        for value in _lower(config, field, devices):
            change = whole_change(config, field, value)
            changed = with_change(config, arch, change, devices)
            if changed and (after := counted(*changed)) < before:
                return (
                    f"by the count of --plan it needs {before / GIB:.1f} GiB, and {after / GIB:.1f} with "
                    f"{as_flags(change)}: set that, or see --plan"
                )
    return (
        f"by the count of --plan it needs {before / GIB:.1f} GiB: choose a smaller config.model.size, adapters "
        "(config.model.lora_rank) or more devices"
    )


def _lower(config: ConfigDict, field: str, devices: int) -> list[Any]:
    """Lists lower values of a setting, the smallest change first."""
    split = max(1, devices // config.mesh.tensor)
    prompts, rollouts = config.train.prompts, config.rollouts.num_rollouts
    half_of = {
        "rollouts.at_once": config.rollouts.at_once or max(prompts, config.evaluate.prompts),
        "evaluate.prompts": config.evaluate.prompts,
        "train.micro_batch": config.train.micro_batch or prompts,
        "train.prompts": prompts,
    }
    if field in half_of:
        return [value for value in (half_of[field] // 2, split) if 0 < value < half_of[field]]
    now = {
        "train.micro_rollouts": config.train.micro_rollouts or rollouts,
        "rollouts.num_rollouts": rollouts,
        "rollouts.max_rationale": config.rollouts.max_rationale,
    }
    if field in now:
        return [now[field] // 2] if now[field] > 1 else []
    fixed = {"model.remat": "layers", "model.dtype": "bfloat16", "mesh.fsdp": split}
    section, _, key = field.partition(".")
    return [fixed[field]] if config[section][key] != fixed[field] else []


def _first_line(error: Exception) -> str:
    """Returns the beginning of XLA's message."""
    return str(error).splitlines()[0][:160].rstrip(".")
