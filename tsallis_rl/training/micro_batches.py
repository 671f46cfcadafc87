"""Chooses how much of an update is computed at a time, from the memory of the devices there are.

config.train.micro_batch=0 and .micro_rollouts=0 mean as much as fits by the count of --plan. On processors that do not
say how much they have (CPUs) that is all. The choice is kept in the run's micro_batches.json, so that a run continues
with the same slices on another card: they change nothing but rounding.
"""

import bisect
import copy
import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from tsallis_rl.models import Architecture
from tsallis_rl.models.sharding import mesh_shape
from tsallis_rl.runs.cache import write_whole
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.runs.processes import from_first, least_of_all
from tsallis_rl.training.memory_plan import GIB, plan
from tsallis_rl.training.setup import Setup

FILE = "micro_batches.json"
# Of a device's memory, that the count of an update may take. On one H200 updates of Qwen3-0.6B's shape had peaks of
# 1.01 to 1.28 times the count (27.6 GB for 27.3, 16.8 for 13.1).
SHARE = 0.75
MIB = 1 << 20


class MicroBatches(NamedTuple):
    """How much of an update is computed at a time; the fields of config.train have the same names.

    Attributes:
      micro_batch: prompts, over all devices.
      micro_rollouts: rollouts of each of them.
    """

    micro_batch: int
    micro_rollouts: int


def device_limit() -> int | None:
    """Returns the bytes of the smallest device of all processes; None where devices do not say.

    Every process must call this.
    """
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    return least_of_all(min(limits) // MIB) * MIB or None


def candidates(config: ConfigDict, shards: int) -> list[MicroBatches]:
    """Lists the choices that the settings leave, those of most tokens first: fewer prompts before fewer rollouts."""
    prompts, rollouts = config.train.prompts, config.rollouts.num_rollouts
    batches = [n for n in range(prompts, 0, -1) if not prompts % n and not n % shards]
    parts = [n for n in range(rollouts, 0, -1) if not rollouts % n]
    batches = [config.train.micro_batch] if config.train.micro_batch else batches
    parts = [config.train.micro_rollouts] if config.train.micro_rollouts else parts
    return [MicroBatches(n, parts[0]) for n in batches] + [MicroBatches(batches[-1], n) for n in parts[1:]]


def with_micro_batches(config: ConfigDict, chosen: MicroBatches) -> ConfigDict:
    """Copies the settings, with these slices."""
    config = copy.deepcopy(config)
    config.train.update(chosen._asdict())
    return config


def update_bytes(config: ConfigDict, arch: Architecture, fixed: int, devices: int) -> int:
    """Counts the bytes of an update on each device; arguments as for `plan`."""
    return sum(plan(config, arch, fixed, devices)["update"].values())


def choose(config: ConfigDict, arch: Architecture, fixed: int, devices: int, limit: int) -> MicroBatches:
    """Chooses the largest slices whose count takes at most SHARE of a device; the smallest where none does.

    Args:
      config: the run's settings.
      arch: of its model.
      fixed: L + J, tokens of end-of-think and joint.
      devices: over which config.mesh is laid.
      limit: bytes of one device.
    """
    axes = mesh_shape(config.mesh, devices)
    found = candidates(config, axes["data"] * axes["fsdp"])

    def fits(chosen: MicroBatches) -> bool:
        return update_bytes(with_micro_batches(config, chosen), arch, fixed, devices) <= SHARE * limit

    # Halving: a count is a second of tracing, and later ones need no more than earlier ones.
    first = 0 if fits(found[0]) else bisect.bisect_left(found, True, lo=1, key=fits)
    return found[min(first, len(found) - 1)]


def fit_update(setup: Setup, limit: int | None, workdir: Path, *, writes: bool = True) -> Setup:
    """Fixes the slices of a run's updates and says which; changes nothing where `limit` is None and none were kept.

    Every process must call this.

    Args:
      setup: of the run.
      limit: bytes of the smallest device (`device_limit`).
      workdir: folder of the run, where the choice is kept.
      writes: keep it; False only reads what was kept.

    Raises:
      UserError: the file of an earlier choice cannot be used.
    """
    config, fixed, devices = setup.config, setup.markers.fixed_tokens, jax.device_count()
    if config.train.micro_batch and config.train.micro_rollouts:
        return setup
    axes = mesh_shape(config.mesh, devices)
    found = from_first(lambda: _read(workdir / FILE))
    kept = MicroBatches(*found) if found else None
    allowed = kept is not None and _is_allowed(kept, config, axes["data"] * axes["fsdp"])
    if limit is None:
        return _with(setup, kept) if allowed else setup
    counted = copy.deepcopy(config)
    counted.task.max_prompt = max(split.max_prompt for split in setup.splits.values())  # the widest that occurs

    def needed(chosen: MicroBatches) -> int:
        return update_bytes(with_micro_batches(counted, chosen), setup.arch, fixed, devices)

    chosen = kept if allowed else None
    if chosen is None or needed(chosen) > SHARE * limit:
        chosen = choose(counted, setup.arch, fixed, devices, limit)
    print(f"{'update:':<13}{_said(chosen)} at a time{_misfit(needed(chosen), limit)}")
    if kept and chosen != kept:
        print(f"until now this run computed {_said(kept)}; numbers differ by rounding from here on")
    if writes and chosen != kept:
        text = json.dumps(chosen._asdict(), indent=2) + "\n"
        from_first(lambda: write_whole(workdir / FILE, text.encode()))
    return _with(setup, chosen)


def _said(chosen: MicroBatches) -> str:
    return f"{chosen.micro_batch} prompts × {chosen.micro_rollouts} rollouts"


def _misfit(needed: int, limit: int) -> str:
    """Says where to look if an update takes more than a device has; "" where it does not."""
    if needed <= limit:
        return ""
    return f": {needed / GIB:.1f} of a device's {limit / GIB:.1f} GiB by the count of --plan, which says what to change"


def _with(setup: Setup, chosen: MicroBatches) -> Setup:
    return dataclasses.replace(setup, config=with_micro_batches(setup.config, chosen))


def _is_allowed(chosen: MicroBatches, config: ConfigDict, shards: int) -> bool:
    """Tells whether slices go with the settings and with this number of devices."""
    train = config.train
    divides = not train.prompts % chosen.micro_batch and not config.rollouts.num_rollouts % chosen.micro_rollouts
    asked = all(not train[name] or train[name] == value for name, value in chosen._asdict().items())
    return divides and asked and not chosen.micro_batch % shards


def _read(file: Path) -> list[int] | None:
    """Reads an earlier choice; None where there is none."""
    if not file.exists():
        return None
    remedy = "remove it, and the choice is made again"
    kept = read_object(file, remedy)
    chosen = [kept.get(name) for name in MicroBatches._fields]
    if not all(type(n) is int and n > 0 for n in chosen):
        raise UserError(f"{file} does not hold two counts above 0; {remedy}")
    return chosen
