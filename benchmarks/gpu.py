"""Compiles decoding and an update for a GPU, on a machine without one; prints each loop's kernels and bytes moved.

pip install 'jax[cuda12]'  # of the version that is installed: pip show jax
python -m benchmarks.gpu
python -m benchmarks.gpu --card=h100 --layers=28 --list
python -m benchmarks.gpu --program=update --micro-batch=4 --micro-rollouts=32 --remat=matmuls

The work is Qwen3-0.6B in bfloat16, 8 prompts of 1,024 × 32 rollouts of 512 tokens. Four layers show what a layer takes.
What needs a device is missing: times, and autotuning, so products may have other tiles on a device.
"""

import argparse
import collections
import dataclasses
import functools
import os
import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding, use_abstract_mesh

from benchmarks.program_text import Kernel, kernels
from tsallis_rl.config import base_config
from tsallis_rl.models import SIZES, Architecture, backends, initialize
from tsallis_rl.sampler import decode
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.rules import Rules
from tsallis_rl.sampler.sampling_settings import Sampling
from tsallis_rl.sampler.token_sampling import TokenSampling
from tsallis_rl.training.learner import update
from tsallis_rl.training.optimizer import make_optimizer, state_shapes
from tsallis_rl.training.packing import PackedRows, RowTokens, Slices

PROMPTS, ROLLOUTS, PROMPT, NEW = 8, 32, 1024, 512
CARDS = {"h200": ("NVIDIA H200", 4.8e12, 151_397_597_184), "h100": ("NVIDIA H100", 3.35e12, 84_942_979_072)}


def target(card: str) -> str:
    """Describes a card to XLA, as the text of a stream_executor.GpuTargetConfigProto; cards differ by CARDS alone."""
    name, bandwidth, memory = CARDS[card]
    device = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49_152,
        "shared_memory_per_core": 233_472, "threads_per_core_limit": 2048, "core_count": 132, "fpus_per_core": 128,
        "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65_535, "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(bandwidth), "l2_cache_size": 52_428_800, "clock_rate_ghz": 1.98,
        "device_memory_size": memory, "shared_memory_per_block_optin": 232_448,
        "registers_per_core_limit": 65_536, "registers_per_block_limit": 65_536,
    }  # fmt: skip
    fields = " ".join(f"{key}: {value}" for key, value in device.items())
    capability = "cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }"
    return (
        f'gpu_device_info {{ {fields} {capability} }} platform_name: "CUDA" device_description_str: "{name}" '
        "dnn_version_info { major: 9 minor: 10 patch: 0 }"
    )


def by_loop(found: list[Kernel]) -> dict[str, list[Kernel]]:
    """Groups kernels by the loops around them, in program order."""
    loops: dict[str, list[Kernel]] = {}
    for kernel in found:
        loops.setdefault(kernel.loop, []).append(kernel)
    return loops


def decoding(arch: Architecture, like: functools.partial) -> jax.stages.Lowered:
    """Lowers a segment of decoding whose caches have half their full length."""
    token = jnp.array([1])
    rules = Rules(
        budget=jnp.int32(NEW), end_of_think=token, stop_ids=token, joint=token, close_unclosed=jnp.array(False)
    )
    sampling = Sampling(TokenSampling(temperature=jnp.float32(1)), rules)
    shape = decode.DecodeShape(arch, ROLLOUTS, shards=1, total=NEW + 8, max_answer=0, max_steps=64)
    batch = PromptBatch(
        prompt=jnp.zeros((PROMPTS, PROMPT), jnp.int32), prompt_length=jnp.full(PROMPTS, PROMPT),
        gold=jnp.zeros((PROMPTS, 8), jnp.int32), gold_length=jnp.ones(PROMPTS, jnp.int32),
    )  # fmt: skip

    def start(key: jax.Array) -> tuple[decode.DecodeInputs, decode.DecodeState]:
        params = decode.decode_params(initialize(arch, key), arch)
        prompt, state = decode.prefill(params, batch, shape=shape, length=NEW // 2)
        return decode.DecodeInputs(params, prompt, batch, jax.random.split(key, PROMPTS), sampling), state

    inputs, state = jax.tree.map(lambda x: like(x.shape, x.dtype), jax.eval_shape(start, jax.random.key(0)))
    number = like((), jnp.int32)
    return decode.decode_segment.lower(inputs, state, number, number, shape=shape, slots=ROLLOUTS)


def updating(
    arch: Architecture, like: functools.partial, micro_batch: int, micro_rollouts: int, used: int
) -> jax.stages.Lowered:
    """Lowers an update with `used` rows per prompt, in slices of `micro_batch` × `micro_rollouts`."""
    optimizer = make_optimizer(base_config().optimizer, 100)
    state = state_shapes(arch, optimizer)
    shape = (PROMPTS, used, NEW)
    ids, numbers = like(shape, jnp.int32), like(shape, jnp.float32)
    tokens = RowTokens(inputs=ids, targets=ids, coefficient=numbers, log_prob=numbers)
    rows = PackedRows(like((PROMPTS, PROMPT), jnp.int32), like((PROMPTS,), jnp.int32), tokens)
    slices = Slices(micro_batches=PROMPTS // micro_batch, micro_rollouts=micro_rollouts)
    step = functools.partial(update, arch=arch, optimizer=optimizer, slices=slices)
    state = jax.tree.map(lambda x: like(x.shape, x.dtype), state)
    return jax.jit(step, donate_argnums=0).lower(state, rows)


def main() -> None:
    """Prints seconds, memory and kernels of each program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", choices=list(CARDS), default="h200")
    parser.add_argument("--program", choices=["decoding", "update"], help="only this one")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--attention", choices=["xla", "library"], default="library", help="config.model.attention")
    parser.add_argument(
        "--remat", choices=["none", "matmuls", "attention", "layers"], default="layers", help="config.model.remat"
    )
    parser.add_argument("--micro-batch", type=int, default=1, help="config.train.micro_batch")
    parser.add_argument("--micro-rollouts", type=int, default=8, help="config.train.micro_rollouts")
    parser.add_argument("--used", type=int, default=ROLLOUTS, help="rollouts of a prompt that carry a coefficient")
    parser.add_argument("--list", action="store_true", help="name the kernels of each loop")
    args = parser.parse_args()
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    jax.config.update("jax_platforms", "cpu")
    try:
        topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=target(args.card))
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        raise SystemExit("jax's CUDA plugin is not installed: pip install 'jax[cuda12]'") from None
    # Programs depend on these, and must see the card instead of this machine's processor.
    jax.default_backend, backends.device_kind = (lambda: "gpu"), (lambda: CARDS[args.card][0])
    device = AbstractDevice(CARDS[args.card][0], num_cores=132, platform="gpu")
    card = AbstractMesh((), (), abstract_device=device)  # Triton kernels are lowered for it
    like = functools.partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(topology.devices[0]))
    changes = {"layers": args.layers, "remat": args.remat, "attention": args.attention, "dtype": "bfloat16"}
    arch = dataclasses.replace(SIZES["qwen3-0.6b"], **changes)
    sizes = {"micro_batch": args.micro_batch, "micro_rollouts": args.micro_rollouts, "used": args.used}
    update_of = functools.partial(updating, **sizes)
    for name, lower in (("decoding", decoding), ("update", update_of)):
        if args.program in (None, name):
            began = time.perf_counter()
            with use_abstract_mesh(card):
                program = lower(arch, like).compile()
            memory = program.memory_analysis()
            print(
                f"{name} of {args.layers} layers: {memory.argument_size_in_bytes / 1e9:.2f} GB of arguments, "
                f"{memory.temp_size_in_bytes / 1e9:.2f} GB besides (compiled in {time.perf_counter() - began:.0f} s)"
            )
            for loop, found in by_loop(kernels(program.as_text())).items():
                moved = sum(kernel.bytes for kernel in found) / 1e9
                print(f"  {loop or 'once':<24}{len(found):>5} kernels{moved:>9.2f} GB each time", flush=True)
                counted = collections.Counter(kernel.name for kernel in found)
                for name, count in counted.most_common() if args.list else []:
                    moved = sum(kernel.bytes for kernel in found if kernel.name == name) / 1e9
                    print(f"    {count:>4} {name:<44}{moved:>9.2f} GB")


if __name__ == "__main__":
    main()
