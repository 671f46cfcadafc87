"""Estimates the seconds of a training step of Qwen3-0.6B on machines that we do not have.

python -m benchmarks.estimate --config=configs/finq.py
python -m benchmarks.estimate --config=configs/finq.py --share=0.2

Every rationale takes --share of its budget; the model is in bfloat16, with remat. A phase takes the longer of its FLOPs
over the peak and its bytes over the bandwidth, plus the time of what it sends over the links. What devices send is read
from the programs, compiled for as many virtual devices: the update as it is, rollouts with one layer and with two, from
which the bytes for any number follow. The latency of collectives is left out.
"""

import argparse
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
from jax.stages import Lowered
from ml_collections import ConfigDict

from benchmarks.collectives import Collective, collectives
from tsallis_rl.config.command_line import load_config
from tsallis_rl.models import SIZES, Architecture
from tsallis_rl.models.attention import bands
from tsallis_rl.models.backends import backend
from tsallis_rl.models.sharding import prompt_shards, prompts_sharding, state_shardings
from tsallis_rl.objectives import Coefficients
from tsallis_rl.sampler import RolloutShape, roll_out
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.record import record_shapes
from tsallis_rl.sampler.rules import Rules
from tsallis_rl.sampler.sampling_settings import Sampling
from tsallis_rl.sampler.schedule import NO_COMPACTION
from tsallis_rl.sampler.token_sampling import TokenSampling
from tsallis_rl.training.learner import update
from tsallis_rl.training.optimizer import make_optimizer, state_shapes
from tsallis_rl.training.packing import Slices, one_row_each

Program = Callable[[], Lowered]

# Devices are virtual and programs never run: their kernels need not be fast.
FLAGS = (
    "--xla_force_host_platform_device_count=16 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)
# Forward passes that an update costs: one forward, two for backward, and one more if forward is recomputed.
PASSES = {"none": 3, "matmuls": 3, "attention": 4, "layers": 4}


class Machine(NamedTuple):
    """Published peaks of one device, and the mesh of the devices; FLOP/s are dense in bfloat16, bytes/s one way.

    `cache_share` is the mean length of a rollout's cache that is read, over its full length: 7/12 if the cache grows in
    six segments, 1/2 if our decoding kernel reads what is filled.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    fsdp: int
    tensor: int
    cache_share: float

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.fsdp * self.tensor


MACHINES = (
    Machine(
        name="v5e-16", flops=197e12, memory=16e9, bandwidth=819e9, link=200e9, fsdp=8, tensor=2, cache_share=7 / 12
    ),
    Machine(
        name="8 × H100", flops=989e12, memory=80e9, bandwidth=3350e9, link=450e9, fsdp=8, tensor=1, cache_share=1 / 2
    ),
)


class Work(NamedTuple):
    """The sizes of one device's work: P prompts of T0 tokens, M rollouts of rationale and answer tokens."""

    prompts: int
    prompt: int
    rollouts: int
    rationale: int
    answer: int

    @property
    def sequences(self) -> int:
        """Returns the number of rollouts, P · M."""
        return self.prompts * self.rollouts


def layer_parameters(arch: Architecture) -> int:
    """Counts the entries of all layers' matrices."""
    heads = 2 * (arch.heads + arch.kv_heads) * arch.head_dim
    return arch.layers * arch.width * (heads + 3 * arch.ffn)


def flops(arch: Architecture, tokens: float, scored: float, pairs: float) -> float:
    """Counts the FLOPs of a forward pass over `tokens`, with logits of `scored` of them and `pairs` in attention."""
    products = layer_parameters(arch) * tokens + arch.vocab_size * arch.width * scored
    return 2 * products + 4 * arch.layers * arch.heads * arch.head_dim * pairs


def in_order(tokens: int) -> float:
    """Returns the share of the pairs of tokens that attention computes, masked pairs included."""
    return (bands(tokens) + 1) / (2 * bands(tokens))


def position(arch: Architecture) -> int:
    """Counts the bytes of a token's keys and values."""
    return 2 * arch.layers * arch.kv_heads * arch.head_dim * jnp.dtype(arch.dtype).itemsize


class Counted(NamedTuple):
    """The FLOPs and bytes of a phase on one device."""

    flops: float
    bytes: float


def phases(arch: Architecture, work: Work, machine: Machine) -> dict[str, Counted]:
    """Counts the phases of a step on one device."""
    read = jnp.dtype(arch.dtype).itemsize * (layer_parameters(arch) + arch.vocab_size * arch.width)
    group, own = work.prompts * work.prompt, work.rationale + work.answer
    sampled, gold, all_own = (work.sequences * tokens for tokens in (work.rationale, work.answer, own))
    cached = machine.cache_share * work.rationale
    prompt_pairs = group * work.prompt * in_order(work.prompt)
    forward = flops(arch, group + all_own, all_own, prompt_pairs + all_own * (work.prompt + own * in_order(own)))
    kept = position(arch)
    counted = {
        "prompts": (flops(arch, group, 0, prompt_pairs), read + group * kept),
        "sampling": (
            flops(arch, sampled, sampled, sampled * (work.prompt + cached)),
            work.rationale * (read + (group + work.sequences * cached) * kept),
        ),
        "gold answers": (flops(arch, gold, gold, gold * (work.prompt + own)), read + (group + all_own) * kept),
        "update": (PASSES[arch.remat] * forward, 0.0),
    }
    return {name: Counted(f / machine.tensor, b / machine.tensor) for name, (f, b) in counted.items()}


def memory(arch: Architecture, work: Work, machine: Machine) -> float:
    """Counts bytes on a device while caches grow for the last time; parameters and moments are float32, all sharded."""
    parameters = layer_parameters(arch) + arch.vocab_size * arch.width
    growing = 1 + 1 / arch.layers  # a layer's old cache is still in memory while it grows
    caches = work.prompts * work.prompt + growing * work.sequences * (work.rationale + work.answer)
    read = jnp.dtype(arch.dtype).itemsize * parameters
    return 3 * 4 * parameters / machine.devices + (read + caches * position(arch)) / machine.tensor


def _like(tree: Any, mesh: Mesh) -> Any:
    """Returns the shapes of arrays [P, …], sharded over prompts."""
    sharding = prompts_sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def programs(config: ConfigDict, arch: Architecture, work: Work, mesh: Mesh) -> tuple[Program, Program]:
    """Makes the programs of rollouts and of the update; `work` is that of one device. Calling a program lowers it."""
    like = jax.ShapeDtypeStruct
    prompts = work.prompts * mesh.shape["fsdp"]
    optimizer = make_optimizer(config.optimizer, 100)
    state = state_shapes(arch, optimizer)
    shardings = state_shardings(mesh, state)
    state = jax.tree.map(lambda x, s: like(x.shape, x.dtype, sharding=s), state, shardings)
    ids = functools.partial(like, dtype=jnp.int32)
    count = ids((prompts,))
    batch = PromptBatch(
        prompt=ids((prompts, work.prompt)),
        prompt_length=count,
        gold=ids((prompts, work.answer)),
        gold_length=count,
    )
    batch = _like(batch, mesh)
    rules = Rules(
        budget=ids(()), end_of_think=ids((1,)), stop_ids=ids((1,)), joint=ids((0,)), close_unclosed=like((), bool)
    )
    sampling = Sampling(TokenSampling(like((), jnp.float32)), rules)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), prompts))
    shape = RolloutShape(arch, num_rollouts=work.rollouts, max_rationale=work.rationale)
    sample = jax.jit(functools.partial(roll_out, shape=shape, limits=NO_COMPACTION))
    rollouts = functools.partial(sample.lower, state.params, batch, keys, sampling)

    def one_step() -> Lowered:
        rolled = record_shapes(prompts, work.rollouts, work.prompt, work.rationale + 1 + work.answer)
        numbers = like((prompts, work.rollouts), jnp.float32)
        rows = _like(jax.eval_shape(one_row_each, rolled, Coefficients(score=numbers, path=numbers)), mesh)
        slices = Slices(shards=prompt_shards(mesh.shape))
        step = functools.partial(update, arch=arch, optimizer=optimizer, slices=slices)
        return jax.jit(step, out_shardings=(shardings, None), donate_argnums=0).lower(state, rows)

    return rollouts, one_step


def sent(found: list[Collective]) -> tuple[int, float]:
    """Counts bytes over a device's link outside of loops over tokens, and per token; an all-reduce counts twice."""

    def total(chosen: list[Collective]) -> int:
        return sum((2 if c.operation == "all-reduce" else 1) * c.bytes * c.times for c in chosen)

    inside = [c for c in found if c.loop]
    loops = len({c.loop for c in inside})  # decoding has one per cache length, and a token runs in one of them
    return total([c for c in found if not c.loop]), total(inside) / max(loops, 1)


def at_layers(layers: int, one: tuple[float, float], two: tuple[float, float]) -> tuple[float, float]:
    """Extrapolates what a program with unrolled layers sends, from the same program with one layer and with two."""
    return one[0] + (layers - 1) * (two[0] - one[0]), one[1] + (layers - 1) * (two[1] - one[1])


def links(config: ConfigDict, arch: Architecture, work: Work, mesh: Mesh) -> dict[str, float]:
    """Counts each phase's bytes over a device's link, from the compiled programs; `work` is that of one device."""

    def counted(program: Program) -> tuple[float, float]:
        return sent(collectives(program().compile().as_text()))

    few = [counted(programs(config, dataclasses.replace(arch, layers=n), work, mesh)[0]) for n in (1, 2)]
    once, each_token = at_layers(arch.layers, *few)
    of_update, each_chunk = counted(programs(config, arch, work, mesh)[1])  # its layers are a loop
    tokens = work.rollouts * (work.rationale + work.answer)
    chunks = -(-tokens // max(1, backend().chunk_elements // (work.prompts * arch.vocab_size)))  # see scored_log_probs
    return {"prompts": once, "sampling": work.rationale * each_token, "update": of_update + chunks * each_chunk}


def choose_work(config: ConfigDict, arch: Architecture, machine: Machine, share: float) -> Work:
    """Returns the config's work on one device, with one prompt if more do not fit."""
    rationale = int(config.rollouts.max_rationale * share)
    wanted = Work(
        prompts=-(-config.train.prompts // machine.fsdp),
        prompt=config.task.max_prompt,
        rollouts=config.rollouts.num_rollouts,
        rationale=rationale,
        answer=config.task.max_answer,
    )
    return wanted if memory(arch, wanted, machine) < machine.memory else wanted._replace(prompts=1)


def report(config: ConfigDict, arch: Architecture, machine: Machine, share: float) -> str:
    """Writes the machine's table."""
    work = choose_work(config, arch, machine, share)
    axes = {"data": 1, "fsdp": machine.fsdp, "tensor": machine.tensor}
    devices = jax.devices()[: machine.devices]
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), devices=devices, axis_types=(AxisType.Auto,) * 3)
    over_links = links(config, arch, work, mesh)
    lines = [
        f"{machine.name}, fsdp {machine.fsdp} × tensor {machine.tensor}: {work.prompts * machine.fsdp} prompts of "
        f"{work.prompt} × {work.rollouts} rollouts of {work.rationale} + {work.answer}",
        f"caches, parameters and moments: {memory(arch, work, machine) / 1e9:.1f} of {machine.memory / 1e9:.0f} GB",
        f"{'of one device':<14}{'TFLOP':>10}{'GB':>10}{'GB sent':>10}{'seconds':>10}  limit",
    ]
    total = 0.0
    for name, counted in phases(arch, work, machine).items():
        limits = {"FLOP/s": counted.flops / machine.flops, "bandwidth": counted.bytes / machine.bandwidth}
        limit, link = max(limits, key=limits.__getitem__), over_links.get(name, 0)
        seconds = limits[limit] + link / machine.link
        total += seconds
        lines.append(
            f"{name:<14}{counted.flops / 1e12:>10.1f}{counted.bytes / 1e9:>10.1f}"
            f"{link / 1e9:>10.2f}{seconds:>10.2f}  {limit}"
        )
    return "\n".join([*lines, f"{'step':<44}{total:>10.2f}"])


def main() -> None:
    """Prints a table per machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/finq.py", help="its budgets, M and prompts a step")
    parser.add_argument("--share", type=float, default=1.0, help="share of its budget that every rationale takes")
    args = parser.parse_args()
    os.environ["XLA_FLAGS"] = FLAGS
    jax.config.update("jax_platforms", "cpu")
    config = load_config(f"{args.config}:model=qwen3-0.6b")
    arch = dataclasses.replace(SIZES["qwen3-0.6b"], dtype="bfloat16", remat="layers")
    for machine in MACHINES:
        print(f"{report(config, arch, machine, args.share)}\n", flush=True)


if __name__ == "__main__":
    main()
