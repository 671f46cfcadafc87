"""Chooses how much of a step is computed at a time, from the memory of the devices.

config.train.micro_batch=0, .micro_rollouts=0 and config.rollouts.at_once=0 mean as much as fits by the count of --plan;
config.model.remat="auto" recomputes as little as that allows. Devices that do not report their memory (CPUs) compute
everything at once and recompute nothing. The choice is kept in the run's micro_batches.json, so that a run continues
with the same slices on another card that they fit: they change nothing but rounding.
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
from tsallis_rl.models.architecture import known_remat, with_settings
from tsallis_rl.models.sharding import mesh_shape, prompt_shards
from tsallis_rl.runs.cache import write_whole
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.runs.processes import from_first, least_of_all
from tsallis_rl.runs.progress import count_of, labelled
from tsallis_rl.sampler.schedule import rollout_tokens
from tsallis_rl.training.gradient_comparison import GradientComparison
from tsallis_rl.training.memory_plan import GIB, held_in_rollouts, plan
from tsallis_rl.training.packing import Slices, slice_tokens
from tsallis_rl.training.setup import Setup

FILE = "micro_batches.json"
# Share of a device's memory that an update may take, by the plan's count. On one H200, updates of Qwen3-0.6B's shape
# peaked at 1.01 to 1.28 times the count (27.6 GB for 27.3, 16.8 for 13.1).
UPDATE_SHARE = 0.75
# The share for rollouts. On one H200 they peaked at 20.6 GB where the plan counts 25.4 (8 × 32 of 512 tokens after
# prompts of 1,024, of equal lengths, so that no rows were retired early), and at 22.9 with caches that grow, as they do
# without our decoding kernel.
ROLLOUT_SHARE = 0.8
# The remats that "auto" tries, from fastest to smallest. "none" is left out: writing and reading its residuals moves
# more bytes than recomputing them with "matmuls". On one H200, 8 × 32 rollouts took 2.01 s with "none", a prompt at a
# time, and 1.84 with "layers", all at a time.
REMATS = ("matmuls", "attention", "layers")
# If a slice has fewer tokens of rollouts than this, a smaller remat is tried. By count, each slice adds every gradient
# to a sum, 20 bytes a parameter, and the faster remat saves it products of 2 FLOP a parameter and token. Both take
# equally long at 1,500 tokens.
ENOUGH_TOKENS = 2048
MIB = 1 << 20


class MicroBatches(NamedTuple):
    """How much of a step is computed at a time; fields of the config's sections have the same names.

    Attributes:
      micro_batch: prompts of an update, over all devices.
      micro_rollouts: rollouts of each of these prompts.
      at_once: prompts that are rolled out together, over all devices, in training and evaluation.
      remat: what the backward pass recomputes.
    """

    micro_batch: int
    micro_rollouts: int
    at_once: int
    remat: str

    def described(self) -> str:
        """Describes the slices of an update and its remat."""
        return (
            f"{count_of(self.micro_batch, 'prompt')} × {count_of(self.micro_rollouts, 'rollout')} (remat {self.remat})"
        )


def device_limit() -> int | None:
    """Returns the bytes of the smallest device of all processes; None if devices do not report them.

    Every process must call this.
    """
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    return least_of_all(min(limits) // MIB) * MIB or None


def leaves_open(config: ConfigDict) -> bool:
    """Returns whether any slice size, or the remat, is left to be chosen."""
    told = config.train.micro_batch and config.train.micro_rollouts and config.rollouts.at_once
    return not told or config.model.remat == "auto"


def remats(config: ConfigDict) -> tuple[str, ...]:
    """Lists the remats that the settings allow, fastest first."""
    return REMATS if config.model.remat == "auto" else (config.model.remat,)


def candidates(config: ConfigDict, shards: int, remat: str) -> list[MicroBatches]:
    """Lists the slices that the settings allow, largest first: prompts are reduced before rollouts."""
    prompts, rollouts = config.train.prompts, config.rollouts.num_rollouts
    batches = [n for n in range(prompts, 0, -1) if not prompts % n and not n % shards]
    parts = [n for n in range(rollouts, 0, -1) if not rollouts % n]
    batches = [config.train.micro_batch] if config.train.micro_batch else batches
    parts = [config.train.micro_rollouts] if config.train.micro_rollouts else parts
    pairs = [(n, parts[0]) for n in batches] + [(batches[-1], n) for n in parts[1:]]
    return [MicroBatches(*pair, at_once=config.rollouts.at_once, remat=remat) for pair in pairs]


def prompts_at_once(config: ConfigDict, shards: int, *, trains: bool = True) -> list[int]:
    """Lists how many prompts the settings allow to roll out at a time, largest first."""
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
    config.rollouts.at_once, config.model.remat = chosen.at_once, chosen.remat
    return config


def update_slices(config: ConfigDict, shards: int, room: int = 0) -> Slices:
    """Builds the slices of an update from the settings, or from the room on a device."""
    prompts = config.train.prompts
    return Slices(prompts // (config.train.micro_batch or prompts), config.train.micro_rollouts, shards, room)


def room_of(config: ConfigDict, chosen: MicroBatches, fixed: int, shards: int) -> int:
    """Returns the tokens of a chosen slice on a device (see `Slices.room`); 0 if the settings fix its size.

    Args:
      config: the run's settings, before slices were chosen.
      chosen: slices for rollouts of the longest possible length.
      fixed: L + J, tokens of end-of-think and joint.
      shards: devices over which prompts are split.
    """
    if config.train.micro_batch or config.train.micro_rollouts:
        return 0
    of_prompt = slice_tokens(config.task.max_prompt, chosen.micro_rollouts, _tokens(config, fixed))
    return chosen.micro_batch // shards * of_prompt


def _tokens(config: ConfigDict, fixed: int) -> int:
    """Returns the tokens of the longest rollout."""
    return rollout_tokens(config.rollouts.max_rationale, fixed, config.task.max_answer)


def update_bytes(config: ConfigDict, arch: Architecture, fixed: int, devices: int) -> int:
    """Counts the bytes of an update on each device: as `plan`, but with config.model's dtype, remat and attention."""
    return sum(plan(config, with_settings(arch, config.model), fixed, devices)["update"].values())


def rollout_bytes(config: ConfigDict, arch: Architecture, fixed: int, devices: int, *, trains: bool = True) -> int:
    """Counts the bytes of rollouts on each device, in training or evaluation; arguments as for `held_in_rollouts`."""
    return sum(held_in_rollouts(config, arch, fixed, devices, trains=trains).values())


def choose(config: ConfigDict, arch: Architecture, fixed: int, devices: int, limit: int) -> MicroBatches:
    """Chooses the largest slices whose count takes at most its share of a device; the smallest if none does.

    Tries each remat, fastest first, and takes the first whose slices cover everything or hold ENOUGH_TOKENS.

    Args:
      config: the run's settings.
      arch: of its model.
      fixed: L + J, tokens of end-of-think and joint.
      devices: over which config.mesh is laid.
      limit: bytes of one device.
    """
    shards = prompt_shards(mesh_shape(config.mesh, devices))

    def fits(chosen: MicroBatches) -> bool:
        return update_bytes(with_micro_batches(config, chosen), arch, fixed, devices) <= UPDATE_SHARE * limit

    def is_enough(chosen: MicroBatches) -> bool:
        return chosen.micro_batch // shards * chosen.micro_rollouts * _tokens(config, fixed) >= ENOUGH_TOKENS

    for remat in remats(config):
        found = candidates(config, shards, remat)
        # Bisects, as a count takes a second of tracing; later candidates need no more than earlier ones.
        first = 0 if fits(found[0]) else bisect.bisect_left(found, True, lo=1, key=fits)
        chosen = found[min(first, len(found) - 1)]
        if first == 0 or (first < len(found) and is_enough(chosen)):
            break
    return chosen._replace(at_once=choose_at_once(config, arch, fixed, devices, limit))


def choose_at_once(
    config: ConfigDict, arch: Architecture, fixed: int, devices: int, limit: int, *, trains: bool = True
) -> int:
    """Chooses the most prompts whose rollouts take at most ROLLOUT_SHARE of a device, by the plan's count.

    Arguments as for `choose`; `trains=False` is for an evaluation of parameters alone.
    """
    numbers = prompts_at_once(config, prompt_shards(mesh_shape(config.mesh, devices)), trains=trains)
    config = copy.deepcopy(config)
    for config.rollouts.at_once in numbers:
        if rollout_bytes(config, arch, fixed, devices, trains=trains) <= ROLLOUT_SHARE * limit:
            break
    return config.rollouts.at_once


def fit_memory(setup: Setup, limit: int | None, workdir: Path, *, writes: bool = True) -> Setup:
    """Fixes the slices of a run's steps and prints them; changes nothing if `limit` is None and none were kept.

    Every process must call this.

    Args:
      setup: of the run.
      limit: bytes of the smallest device (`device_limit`).
      workdir: folder of the run, where the choice is kept.
      writes: keep the choice; False only reads an earlier one.

    Raises:
      UserError: the file of an earlier choice cannot be used.
    """
    config, fixed, devices = setup.config, setup.markers.fixed_tokens, jax.device_count()
    if not leaves_open(config):
        return setup
    shards = prompt_shards(mesh_shape(config.mesh, devices))
    found = from_first(lambda: _read(workdir / FILE))
    # Older runs chose no remat, and rolled out all prompts at a time.
    everything = config.rollouts.at_once or max(config.train.prompts, config.evaluate.prompts)
    kept = None
    if found:
        micro_batch, micro_rollouts, at_once, remat = found
        kept = MicroBatches(
            micro_batch, micro_rollouts, at_once or everything, remat or known_remat(config.model.remat)
        )
    allowed = kept is not None and _is_allowed(kept, config, shards)
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
    print(labelled("rollouts", f"{count_of(chosen.at_once, 'prompt')} at a time{_misfit(of_rollouts, limit)}"))
    print(labelled("update", f"{chosen.described()} at a time{_misfit(of_update, limit)}"))
    if kept and chosen != kept:
        was = f"{kept.described()} and sampled {count_of(kept.at_once, 'prompt')} at a time"
        print(f"until now this run computed {was}; numbers differ by rounding from here on")
    if writes and chosen != kept:
        text = json.dumps(chosen._asdict(), indent=2) + "\n"
        from_first(lambda: write_whole(workdir / FILE, text.encode()))
    return _with(setup, chosen)


def _misfit(needed: int, limit: int) -> str:
    """Returns where to look if this takes more than a device has; else ""."""
    if needed <= limit:
        return ""
    return f": {needed / GIB:.1f} of a device's {limit / GIB:.1f} GiB by the count of --plan, which says what to change"


def _with(setup: Setup, chosen: MicroBatches) -> Setup:
    """Copies the setup, with these slices."""
    shards = prompt_shards(mesh_shape(setup.config.mesh, jax.device_count()))
    room = room_of(setup.counted_config(), chosen, setup.markers.fixed_tokens, shards)
    config, arch = with_micro_batches(setup.config, chosen), dataclasses.replace(setup.arch, remat=chosen.remat)
    comparison = GradientComparison(config, arch, setup.sampling) if setup.comparison else None
    return dataclasses.replace(setup, config=config, arch=arch, room=room, comparison=comparison)


def _is_allowed(chosen: MicroBatches, config: ConfigDict, shards: int) -> bool:
    """Returns whether slices fit the settings and this number of shards."""
    asked = {"micro_batch": config.train.micro_batch, "micro_rollouts": config.train.micro_rollouts}
    return (
        not config.train.prompts % chosen.micro_batch
        and not config.rollouts.num_rollouts % chosen.micro_rollouts
        and all(not value or value == getattr(chosen, name) for name, value in asked.items())
        and not chosen.micro_batch % shards
        and chosen.at_once in prompts_at_once(config, shards)
        and chosen.remat in remats(config)
    )


def _read(file: Path) -> MicroBatches | None:
    """Reads an earlier choice, or None if there is none; a missing `at_once` is 0, a missing `remat` is ""."""
    if not file.exists():
        return None
    remedy = "remove it, and the choice is made again"
    kept = {"at_once": 0, "remat": ""} | read_object(file, remedy)
    *counts, remat = (kept.get(name) for name in MicroBatches._fields)
    if not all(type(n) is int for n in counts) or min(counts[:2]) < 1 or counts[2] < 0:
        raise UserError(f"{file} does not hold counts above 0; {remedy}")
    if not isinstance(remat, str):
        raise UserError(f"{file} holds a remat that is no text; {remedy}")
    return MicroBatches(*counts, remat)
