"""Counts what a step holds in each device's memory, from its settings, before anything is compiled or loaded."""

import copy
import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding
from ml_collections import ConfigDict

from tsallis_rl.models import Architecture, lora, parameter_shapes
from tsallis_rl.models.architecture import with_settings
from tsallis_rl.models.backends import backend
from tsallis_rl.models.shapes import largest_divisor
from tsallis_rl.models.sharding import mesh_shape, prompt_shards, state_shardings
from tsallis_rl.objectives import Coefficients
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.hub import model_folder
from tsallis_rl.sampler.record import Rollouts, record_shapes
from tsallis_rl.sampler.schedule import ScheduleLimits, rollout_tokens
from tsallis_rl.training.checks import check
from tsallis_rl.training.learner import read_prompts, surrogate
from tsallis_rl.training.optimizer import State, make_optimizer, state_shapes
from tsallis_rl.training.packing import one_row_each
from tsallis_rl.training.reference import held_references

GIB = 1 << 30
Phases = dict[str, dict[str, int]]


def plan(config: ConfigDict, arch: Architecture, fixed: int, devices: int) -> Phases:
    """Counts the bytes on each device in the two phases of a step, by what holds them.

    Parameters, optimiser and caches follow from their shapes and shardings. Activations are what the traced backward
    pass keeps of the forward pass, for rollouts of the longest possible length. XLA's further temporaries are not
    counted.

    Args:
      config: the run's settings.
      arch: of its model.
      fixed: L + J, tokens of end-of-think and joint.
      devices: over which config.mesh is laid.

    Returns:
      phase ("rollouts", "update") -> part -> bytes.

    Raises:
      UserError: config.mesh does not fit the devices.
    """
    axes = mesh_shape(config.mesh, devices)
    shards = prompt_shards(axes)
    state, held = _held(config, arch, axes)
    local = _local(arch, axes["tensor"])
    train, rollouts, task = config.train, config.rollouts, config.task
    prompts = math.ceil((train.micro_batch or train.prompts) / shards)
    rows = largest_divisor(rollouts.num_rollouts, train.micro_rollouts)
    tokens = rollout_tokens(rollouts.max_rationale, fixed, task.max_answer)
    activations = _activations(local, prompts, rows, task.max_prompt, tokens)
    gradients = _sharded(lora.trained(state.params), _mesh(axes))
    if rows < rollouts.num_rollouts:  # that of the prompts' keys and values is summed over parts, in float32
        gradients += 4 * prompts * task.max_prompt * _numbers_of_position(local)
    return {
        "rollouts": held_in_rollouts(config, arch, fixed, devices),
        "update": held | {"gradients": gradients, "activations and logits": activations},
    }


def held_in_rollouts(
    config: ConfigDict, arch: Architecture, fixed: int, devices: int, *, trains: bool = True
) -> dict[str, int]:
    """Counts the bytes on each device while rollouts are sampled, by what holds them; see `plan`.

    `trains=False` counts an evaluation of parameters alone, without optimiser and reference parameters.
    """
    axes = mesh_shape(config.mesh, devices)
    state, held = _held(config, arch, axes)
    if not trains:
        held = {name: size for name, size in held.items() if name not in ("optimiser", "reference parameters")}
    # The sampler reads a copy of them for every token: cast, gathered over fsdp, unstacked into layers.
    read = {"parameters as decoding reads them": _sharded(state.params, _mesh(axes | {"fsdp": 1}), arch.dtype)}
    local = _local(arch, axes["tensor"])
    shards, rollouts = prompt_shards(axes), config.rollouts
    batches = [(config.evaluate.prompts, config.evaluate.samples)]
    batches += [(config.train.prompts, rollouts.num_rollouts)] if trains else []
    counts = (_caches(config, local, fixed, shards, *batch) for batch in batches)
    return held | read | max(counts, key=lambda parts: sum(parts.values()))


def _held(config: ConfigDict, arch: Architecture, axes: dict[str, int]) -> tuple[State, dict[str, int]]:
    """Returns the shapes of a run's state, and the bytes that it holds on each device in both phases."""
    state = state_shapes(arch, make_optimizer(config.optimizer, config.train.steps), held_references(config))
    mesh = _mesh(axes)
    held = {"parameters": _sharded(state.params, mesh), "optimiser": _sharded(state.opt_state, mesh)}
    if state.references:
        held["reference parameters"] = _sharded(state.references, mesh)
    if any(leaf.dtype != arch.dtype for leaf in jax.tree.leaves(state.params)):
        held["parameters cast for computing"] = _sharded(state.params, mesh, arch.dtype)
    return state, held


def _mesh(axes: dict[str, int]) -> AbstractMesh:
    return AbstractMesh(tuple(axes.values()), tuple(axes))


def _sharded(tree: Any, mesh: AbstractMesh, dtype: str | None = None) -> int:
    """Counts the bytes of a tree on one device of a mesh, in another dtype if one is named."""

    def size(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * jnp.dtype(dtype or leaf.dtype).itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, tree, state_shardings(mesh, tree))))


def _caches(
    config: ConfigDict, local: Architecture, fixed: int, shards: int, prompts: int, samples: int
) -> dict[str, int]:
    """Counts the bytes of the sampler's caches on one device, for a batch of `prompts` with `samples` of each."""
    rollouts, task = config.rollouts, config.task
    limits = ScheduleLimits()
    prompts = math.ceil(prompts / shards)
    at_once = min(math.ceil(rollouts.at_once / shards) or prompts, prompts)
    # Batches that wait to end together hold all of their prompts and a share of their rollouts.
    waiting = min(prompts // at_once, limits.merged_batches) - 1
    tokens = rollout_tokens(rollouts.max_rationale, fixed, task.max_answer)
    position = _numbers_of_position(local) * jnp.dtype(local.dtype).itemsize
    return {
        "cache of the prompts": at_once * (1 + waiting) * task.max_prompt * position,
        "cache of the rollouts": at_once * samples * tokens * position,
        "cache of rollouts that wait": at_once * waiting * (samples // limits.merged_batches) * tokens * position,
        # The first rows that are retired, a quarter of them, are scored beside those that continue.
        "cache of rows that are scored": limits.compacts(tokens) * at_once * (samples // 4) * tokens * position,
        "a layer's cache before it grew": at_once * samples * tokens * position // local.layers,
        "logits of a token, twice": 2 * 4 * at_once * samples * local.vocab_size,
    }


def _numbers_of_position(arch: Architecture) -> int:
    """Counts the numbers in the keys and values of one position in all layers."""
    return 2 * arch.layers * arch.kv_heads * arch.head_dim


def _local(arch: Architecture, tensor: int) -> Architecture:
    """Returns the part of the model that a device computes; a dimension that does not divide is replicated."""

    def part(size: int) -> int:
        return size if size % tensor else size // tensor

    heads, kv_heads = part(arch.heads), part(arch.kv_heads)
    if heads % kv_heads:
        kv_heads = math.gcd(heads, kv_heads)
    return dataclasses.replace(
        arch, heads=heads, kv_heads=kv_heads, ffn=part(arch.ffn), vocab_size=part(arch.vocab_size)
    )


def _activations(arch: Architecture, prompts: int, rows: int, prompt_tokens: int, tokens: int) -> int:
    """Counts the bytes of the logits, and those that the backward pass of [P, B, T] keeps."""
    in_chunk = min(backend().chunk_elements, prompts * rows * tokens * arch.vocab_size)
    logits = 3 * 4 * in_chunk  # and their softmax and gradient
    everything = _residuals(dataclasses.replace(arch, remat="none"), prompts, rows, prompt_tokens, tokens)
    if arch.remat == "none":
        return everything + logits
    # The inputs of all layers are kept, and beside them either the logits or all of one layer.
    kept = _residuals(arch, prompts, rows, prompt_tokens, tokens)
    return kept + max(logits, everything // arch.layers)


def _residuals(arch: Architecture, prompts: int, rows: int, prompt_tokens: int, tokens: int) -> int:
    """Counts the bytes that the backward pass of [P, B, T] keeps of the forward pass."""
    fixed, of_prompt, of_rollout = _residuals_by_part(arch, prompt_tokens, tokens)
    return fixed + prompts * (of_prompt + rows * of_rollout)


# Prompts and rollouts of the batch that `_residuals_by_part` traces: primes that divide no other size of the program.
_PROMPTS, _ROLLOUTS = 1009, 1013


@functools.cache
def _residuals_by_part(arch: Architecture, prompt_tokens: int, tokens: int) -> tuple[int, int, int]:
    """Splits these bytes into fixed ones, those of each prompt, and those of each rollout, by tracing a large batch.

    An array belongs to every rollout, or to every prompt, if its size is a multiple of their number. One trace, which
    takes a third of a second, serves all batches that `choose` and `remedies` ask for.
    """
    rollouts = record_shapes(_PROMPTS, _ROLLOUTS, prompt_tokens, tokens)
    params = parameter_shapes(arch)
    numbers = jax.ShapeDtypeStruct(rollouts.log_w.shape, jnp.float32)
    coefficients = Coefficients(score=numbers, path=numbers)

    def residuals(part: dict, params: dict, rollouts: Rollouts, coefficients: Coefficients) -> Any:
        def loss(part: dict) -> jax.Array:
            whole = lora.replace(params, part)
            rows = one_row_each(rollouts, coefficients)
            return surrogate(whole, read_prompts(whole, rows, arch), rows, arch)[0]

        return jax.vjp(loss, part)[1]  # a tree whose leaves are what the backward pass needs

    tree = jax.eval_shape(residuals, lora.trained(params), params, rollouts, coefficients)
    fixed, of_prompt, of_rollout = 0, 0, 0
    for leaf in jax.tree.leaves(tree):
        size = leaf.size * leaf.dtype.itemsize
        if not size % (_PROMPTS * _ROLLOUTS):
            of_rollout += size // (_PROMPTS * _ROLLOUTS)
        elif not size % _PROMPTS:
            of_prompt += size // _PROMPTS
        else:
            fixed += size
    own = sum(leaf.size for leaf in jax.tree.leaves(params)) * jnp.dtype(arch.dtype).itemsize
    return fixed - own, of_prompt, of_rollout


def peak(phases: Phases) -> int:
    """Returns the bytes of the phase that needs most."""
    return max(sum(parts.values()) for parts in phases.values())


def device_memory() -> int:
    """Returns the bytes of one device: those it reports, or its share of the machine's memory on CPU devices."""
    stats = jax.local_devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit", machine // jax.local_device_count())


def whole_change(config: ConfigDict, field: str, value: Any) -> dict[str, Any]:
    """Returns the change of a field with what it brings along: beside mesh.fsdp, mesh.data follows from the devices."""
    return {field: value} | ({"mesh.data": 0} if field == "mesh.fsdp" and config.mesh.data else {})


def as_flags(change: dict[str, Any]) -> str:
    """Renders changed fields as a command's flags."""
    return " ".join(f"--config.{field}={value}" for field, value in change.items())


def with_change(
    config: ConfigDict, arch: Architecture, change: dict[str, Any], devices: int
) -> tuple[ConfigDict, Architecture] | None:
    """Copies settings and architecture with other values of some fields; None if the settings are then refused."""
    trial = copy.deepcopy(config)
    trial.update_from_flattened_dict(change)
    try:
        check(trial, devices)
    except UserError:  # such as prompts that micro-batches no longer divide
        return None
    rank = trial.model.lora_rank or arch.lora_rank  # that of config.model.adapter
    return trial, dataclasses.replace(with_settings(arch, trial.model), lora_rank=rank)


def remedies(
    config: ConfigDict, arch: Architecture, fixed: int, devices: int, limit: int
) -> tuple[dict[str, Any], int]:
    """Finds changes that make a step fit, cheapest first; also returns the bytes that it then takes.

    Args:
      config: the run's settings.
      arch: of its model.
      fixed: L + J, tokens of end-of-think and joint.
      devices: over which config.mesh is laid.
      limit: bytes of one device.

    Returns:
      field -> value, {} if it fits already; the peak with these, above `limit` if they are not enough.
    """
    split = devices // config.mesh.tensor
    changes: dict[str, Any] = {
        "evaluate.prompts": split,
        "rollouts.at_once": split,
        "train.micro_batch": split,
        "train.micro_rollouts": 1,
        "model.remat": "layers",
        "mesh.fsdp": split,
        "model.dtype": "bfloat16",
        "train.prompts": split,
        "rollouts.max_rationale": config.rollouts.max_rationale // 2,
    }
    if model_folder(config.model.size).is_dir() and not config.model.adapter:
        changes["model.lora_rank"] = 16
    chosen: dict[str, Any] = {}
    phases = plan(config, arch, fixed, devices)
    for field, value in changes.items():
        if not _excess(phases, limit):
            break
        change = chosen | whole_change(config, field, value)
        changed = with_change(config, arch, change, devices)
        if changed and _excess(found := plan(*changed, fixed, devices), limit) < _excess(phases, limit):
            chosen, phases = change, found
    return chosen, peak(phases)


def _excess(phases: Phases, limit: int) -> int:
    """Sums the bytes by which phases exceed the limit, so that helping either phase counts, not only the peak."""
    return sum(max(0, sum(parts.values()) - limit) for parts in phases.values())


def report(config: ConfigDict, arch: Architecture, fixed: int, devices: int, limit: int) -> str:
    """Renders the plan as a table, with the settings to change if it does not fit."""
    phases = plan(config, arch, fixed, devices)
    lines = [f"GiB on each of {devices} device(s)"]
    for phase, parts in phases.items():
        lines += ["", *(f"{phase:<10}{part:<34}{size / GIB:>9.3f}" for part, size in parts.items())]
        lines.append(f"{phase:<10}{'in all':<34}{sum(parts.values()) / GIB:>9.3f}")
    lines.append(f"\na device has {limit / GIB:.1f} GiB; a step needs {peak(phases) / GIB:.1f}: ")
    chosen, lowest = remedies(config, arch, fixed, devices, limit)
    if peak(phases) <= limit:
        lines[-1] += "it fits"
    elif lowest <= limit:
        lines[-1] += f"it does not fit\nwith {as_flags(chosen)} it needs {lowest / GIB:.1f}"
    else:
        lines[-1] += (
            f"it does not fit, nor with {as_flags(chosen)} ({lowest / GIB:.1f}); choose a smaller config.model.size "
            "or more devices"
        )
    return "\n".join(lines)
