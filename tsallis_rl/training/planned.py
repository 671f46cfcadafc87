"""The table of --plan: what a step of a config would hold in each device's memory."""

import dataclasses

import jax
from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError
from tsallis_rl.training import memory_plan
from tsallis_rl.training.micro_batches import choose, device_limit, leaves_open, with_micro_batches
from tsallis_rl.training.setup import prepare

MOST_GIB = 1_000_000


def planned(config: ConfigDict, devices: int | None = None, memory: float | None = None) -> str:
    """Makes the table for a config that a run on these devices would accept.

    Args:
      config: the run's settings.
      devices: how many to plan for; None: those here.
      memory: GiB of one device; None: as the devices here have.

    Raises:
      UserError: memory is no number above 0, or a setting or a file is invalid.
    """
    if memory is not None and not 0 < memory < MOST_GIB:
        raise UserError(f"--memory={memory:g}: choose GiB above 0 and below {MOST_GIB:,}")
    devices = devices or jax.device_count()
    setup = prepare(config, devices)
    told = int(memory * memory_plan.GIB) if memory else device_limit()
    config = setup.counted_config()
    arch, fixed, notes = setup.arch, setup.markers.fixed_tokens, ""
    if told and leaves_open(config):
        chosen = choose(config, arch, fixed, devices, told)
        config, arch = with_micro_batches(config, chosen), dataclasses.replace(arch, remat=chosen.remat)
        notes = (
            f"an update is computed {chosen.described()} at a time, rollouts of {chosen.at_once} prompts are sampled "
            "at a time, as a run on such devices would choose\n\n"
        )
    return notes + memory_plan.report(config, arch, fixed, devices, told or memory_plan.device_memory())
