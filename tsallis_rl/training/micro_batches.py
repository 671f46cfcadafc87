"""Chooses how much of a step is computed at a time, from the memory of the devices there are.

config.train.micro_batch=0, .micro_rollouts=0 and config.rollouts.at_once=0 mean as much as fits by the count of --plan.
On processors that do not say how much they have (CPUs) that is all. The choice is kept in the run's micro_batches.json,
so that a run continues with the same slices on another card: they change nothing but rounding.
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
from tsallis_rl.runs.progress import labelled
from tsallis_rl.training.memory_plan import GIB, held_in_rollouts, plan
from tsallis_rl.training.setup import Setup

FILE = "micro_batches.json"
# Of a device's memory, that the count of an update may take. On one H200 updates of Qwen3-0.6B's shape had peaks of
# 1.01 to 1.28 times the count (27.6 GB for 27.3, 16.8 for 13.1).
UPDATE_SHARE = 0.75
# The same of rollouts. There their peak was 20.6 GB where 21.6 are counted (8 × 32 of 512 tokens behind prompts of
# 1,024), and 22.9 with caches that grow, as they do without our kernel of decoding.
ROLLOUT_SHARE = 0.8
MIB = 1 << 20


class MicroBatches(NamedTuple):
    """How much of a step is computed at a time; fields of config.train and config.rollouts have the same names.

    Attributes:
      micro_batch: prompts of an update, over all devices.
      micro_rollouts: rollouts of each of them.
      at_once: prompts that are rolled out, over all devices, in training and evaluation.
    """

    micro_batch: int
    micro_rollouts: int
    at_once: int


def device_limit() -> int | None:
    """Returns the bytes of the smallest device of all processes; None where devices do not say.

    Every process must call this.
    """
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    return least_of_all(min(limits) // MIB) * MIB or None


def leaves_open(config: ConfigDict) -> bool:
    """Tells whether the settings leave one of the slices to be chosen."""
    return not (config.train.micro_batch and config.train.micro_rollouts and config.rollouts.at_once)


def candidates(config: ConfigDict, shards: int) -> list[MicroBatches]:
    """Lists the updates that the settings leave, those of most tokens first: fewer prompts before fewer rollouts."""
    prompts, rollouts = config.train.prompts, config.rollouts.num_rollouts
    batches = [n for n in range(prompts, 0, -1) if not prompts % n and not n % shards]
    parts = [n for n in range(rollouts, 0, -1) if not rollouts % n]
    batches = [config.train.micro_batch] if config.train.micro_batch else batches
    parts = [config.train.micro_rollouts] if config.train.micro_rollouts else parts
    pairs = [(n, parts[0]) for n in batches] + [(batches[-1], n) for n in parts[1:]]
    return [MicroBatches(*pair, at_once=config.rollouts.at_once) for pair in pairs]


def prompts_at_once(config: ConfigDict, shards: int, *, trains: bool = True) -> list[int]:
    """Lists the numbers of prompts that the settings let be rolled out at a time, the largest first."""
    if config.rollouts.at_once:
        return [config.rollouts.at_once]
    wanted = (config.evaluate.prompts, *([config.train.prompts] if trains else []))
    return [
        n
        for n in range(max(wanted), 0, -1)
        if not n % shards and all(prompts <= n or not prompts % n for prompts in wanted)
    ]


def with_micro_batches(config: ConfigDict, chosen: MicroBatches) -> ConfigDict:
    """Copies the settings, with these slices."""
    config = copy.deepcopy(config)
    config.train.update(micro_batch=chosen.micro_batch, micro_rollouts=chosen.micro_rollouts)
    config.rollouts.at_once = chosen.at_once
    return config


def update_bytes(config: ConfigDict, arch: Architecture, fixed: int, devices: int) -> int:
    """Counts the bytes of an update on each device; arguments as for `plan`."""
    return sum(plan(config, arch, fixed, devices)["update"].values())


def rollout_bytes(config: ConfigDict, arch: Architecture, fixed: int, devices: int, *, trains: bool = True) -> int:
    """Counts the bytes of rollouts on each device, in training or evaluation; arguments as for `held_in_rollouts`."""
    return sum(held_in_rollouts(config, arch, fixed, devices, trains=trains).values())


def choose(config: ConfigDict, arch: Architecture, fixed: int, devices: int, limit: int) -> MicroBatches:
    """Chooses the largest slices whose count takes at most its share of a device; the smallest where none does.

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
        return update_bytes(with_micro_batches(config, chosen), arch, fixed, devices) <= UPDATE_SHARE * limit

    # Halving: a count is a second of tracing, and later ones need no more than earlier ones.
    first = 0 if fits(found[0]) else bisect.bisect_left(found, True, lo=1, key=fits)
    chosen = found[min(first, len(found) - 1)]
    return chosen._replace(at_once=choose_at_once(config, arch, fixed, devices, limit))


def choose_at_once(
    config: ConfigDict, arch: Architecture, fixed: int, devices: int, limit: int, *, trains: bool = True
) -> int:
    """Chooses the most prompts whose rollouts' count takes at most ROLLOUT_SHARE of a device.

    Arguments as above; `trains=False` is for an evaluation of parameters alone.
    """
    axes = mesh_shape(config.mesh, devices)
    numbers = prompts_at_once(config, axes["data"] * axes["fsdp"], trains=trains)
    config = copy.deepcopy(config)
    for config.rollouts.at_once in numbers:
        if rollout_bytes(config, arch, fixed, devices, trains=trains) <= ROLLOUT_SHARE * limit:
            break
    return config.rollouts.at_once


def fit_memory(setup: Setup, limit: int | None, workdir: Path, *, writes: bool = True) -> Setup:
    """Fixes the slices of a run's steps and says which; changes nothing where `limit` is None and none were kept.

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
    if not leaves_open(config):
        return setup
    axes = mesh_shape(config.mesh, devices)
    found = from_first(lambda: _read(workdir / FILE))
    # A run of before chose its updates alone, and rolled all prompts out at a time.
    everything = config.rollouts.at_once or max(config.train.prompts, config.evaluate.prompts)
    kept = MicroBatches(*found[:2], found[2] or everything) if found else None
    allowed = kept is not None and _is_allowed(kept, config, axes["data"] * axes["fsdp"])
    if limit is None:
        return _with(setup, kept) if allowed else setup
    counted = setup.counted_config()

    def needed(chosen: MicroBatches) -> tuple[int, int]:
        settings = with_micro_batches(counted, chosen)
        return tuple(count(settings, setup.arch, fixed, devices) for count in (update_bytes, rollout_bytes))

    chosen, shares = kept if allowed else None, (UPDATE_SHARE, ROLLOUT_SHARE)
    if chosen is None or any(size > share * limit for size, share in zip(needed(chosen), shares, strict=True)):
        chosen = choose(counted, setup.arch, fixed, devices, limit)
    of_update, of_rollouts = needed(chosen)
    print(labelled("rollouts", f"{chosen.at_once} prompts at a time{_misfit(of_rollouts, limit)}"))
    print(labelled("update", f"{_said(chosen)} at a time{_misfit(of_update, limit)}"))
    if kept and chosen != kept:
        was = f"{_said(kept)}, and sampled those of {kept.at_once} prompts"
        print(f"until now this run computed {was}; numbers differ by rounding from here on")
    if writes and chosen != kept:
        text = json.dumps(chosen._asdict(), indent=2) + "\n"
        from_first(lambda: write_whole(workdir / FILE, text.encode()))
    return _with(setup, chosen)


def _said(chosen: MicroBatches) -> str:
    """Names the slices of an update."""
    return f"{chosen.micro_batch} prompts × {chosen.micro_rollouts} rollouts"


def _misfit(needed: int, limit: int) -> str:
    """Says where to look if this takes more than a device has; "" where it does not."""
    if needed <= limit:
        return ""
    return f": {needed / GIB:.1f} of a device's {limit / GIB:.1f} GiB by the count of --plan, which says what to change"


def _with(setup: Setup, chosen: MicroBatches) -> Setup:
    """Copies the setup, with these slices."""
    return dataclasses.replace(setup, config=with_micro_batches(setup.config, chosen))


def _is_allowed(chosen: MicroBatches, config: ConfigDict, shards: int) -> bool:
    """Tells whether slices go with the settings and with this number of devices."""
    asked = {"micro_batch": config.train.micro_batch, "micro_rollouts": config.train.micro_rollouts}
    return (
        not config.train.prompts % chosen.micro_batch
        and not config.rollouts.num_rollouts % chosen.micro_rollouts
        and all(not value or value == getattr(chosen, name) for name, value in asked.items())
        and not chosen.micro_batch % shards
        and chosen.at_once in prompts_at_once(config, shards)
    )


def _read(file: Path) -> list[int] | None:
    """Reads an earlier choice, with 0 for an `at_once` that it has not; None where there is none."""
    if not file.exists():
        return None
    remedy = "remove it, and the choice is made again"
    kept = {"at_once": 0} | read_object(file, remedy)
    chosen = [kept.get(name) for name in MicroBatches._fields]
    if not all(type(n) is int for n in chosen) or min(chosen[:2]) < 1 or chosen[2] < 0:
        raise UserError(f"{file} does not hold counts above 0; {remedy}")
    return chosen
