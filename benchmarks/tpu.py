"""Compiles attention and an update for a TPU, on a machine without one, and prints memory, kernels and messages.

pip install 'libtpu==0.0.42.*'  # the one that jax[tpu] asks for: pip show jax
python -m benchmarks.tpu --prompt=4096 --tokens=4096
python -m benchmarks.tpu --prompt=4096 --tokens=896 --update
python -m benchmarks.tpu --decoding

The model is Qwen3-0.6B in bfloat16 with 32 rollouts, with our own attention and with splash attention. Without
--update: one layer's attention and its gradients for one prompt, with half of the heads, as on a device of tensor = 2.
With it: the update on a v5e-16, fsdp 8 × tensor 2, one prompt per device, which takes minutes to compile. With
--decoding: the compiler's estimate for a token of 8 × 32 rollouts on one v5e, 256 tokens after prompts of 1,024, per
layer and besides.
"""

import argparse
import collections
import dataclasses
import functools
import os
import re
import time

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, SingleDeviceSharding

from benchmarks import gpu
from benchmarks.collectives import COMPUTATION, collectives
from tsallis_rl.config import base_config
from tsallis_rl.models import SIZES, attention
from tsallis_rl.models.attention import KeyValues, Part
from tsallis_rl.models.attention import library_kernels as kernels
from tsallis_rl.models.sharding import prompts_sharding, state_shardings
from tsallis_rl.training.learner import update
from tsallis_rl.training.optimizer import make_optimizer, state_shapes
from tsallis_rl.training.packing import PackedRows, RowTokens, Slices

ROLLOUTS = 32
FSDP, TENSOR = 8, 2
ARCH = dataclasses.replace(SIZES["qwen3-0.6b"], dtype="bfloat16", remat="layers")


def attention_alone(devices: list, prompt: int, tokens: int, chosen: str) -> jax.stages.Lowered:
    """Lowers one layer's attention for one prompt, and its gradients."""
    heads, group, width = ARCH.kv_heads // TENSOR, ARCH.heads // ARCH.kv_heads, ARCH.head_dim
    like = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16, sharding=SingleDeviceSharding(devices[0]))
    query = like((1, ROLLOUTS, tokens, heads, group, width))
    shared = KeyValues(like((1, heads, width, prompt)), like((1, heads, prompt, width)))
    own = KeyValues(like((1, ROLLOUTS, heads, width, tokens)), like((1, ROLLOUTS, heads, tokens, width)))
    attend = kernels.attend if chosen == "library" else attention.attend

    def loss(query, shared, own, lengths, factor):
        seen = (jnp.arange(prompt) < lengths[:, None])[:, None, None]
        parts = [Part(shared, seen), Part(own, jnp.tril(jnp.ones((tokens, tokens), bool))[None, None])]
        return (factor * attend(query, parts, width**-0.5)).sum()

    lengths = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=SingleDeviceSharding(devices[0]))
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(query, shared, own, lengths, query)


def whole_update(devices: list, prompt: int, tokens: int, chosen: str) -> jax.stages.Lowered:
    """Lowers the update of FSDP prompts over all devices."""
    grid = mesh_utils.create_device_mesh((1, FSDP, TENSOR), devices, allow_split_physical_axes=True)
    mesh = Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    arch = dataclasses.replace(ARCH, attention=chosen)
    optimizer = make_optimizer(base_config().optimizer, 100)
    state = state_shapes(arch, optimizer)
    shardings = state_shardings(mesh, state)

    like = functools.partial(jax.ShapeDtypeStruct, sharding=prompts_sharding(mesh))
    state = jax.tree.map(lambda x, sharding: like(x.shape, x.dtype, sharding=sharding), state, shardings)
    shape = (FSDP, ROLLOUTS, tokens)
    tokens = RowTokens(
        inputs=like(shape, jnp.int32),
        targets=like(shape, jnp.int32),
        coefficient=like(shape, jnp.float32),
        log_prob=like(shape, jnp.float32),
    )
    rows = PackedRows(prompt=like((FSDP, prompt), jnp.int32), prompt_length=like((FSDP,), jnp.int32), tokens=tokens)
    step = functools.partial(update, arch=arch, optimizer=optimizer, slices=Slices(shards=FSDP))
    return jax.jit(step, out_shardings=(shardings, None), donate_argnums=0).lower(state, rows)


def estimated_cycles(text: str) -> int:
    """Sums the cycles that the TPU's compiler estimates for one pass of a program's longest loop."""
    sums: collections.Counter[str] = collections.Counter()
    computation, entry = "", ""
    for line in text.splitlines():
        if heading := COMPUTATION.match(line):
            computation = heading[1]
            entry = computation if line.startswith("ENTRY") else entry
        sums[computation] += sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
    return max(cycles for name, cycles in sums.items() if name != entry)


def decoding(devices: list) -> None:
    """Prints the cycles of a token: of a layer, from the difference of two programs, and of the rest."""
    like = functools.partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(devices[0]))
    one, two = (
        estimated_cycles(gpu.decoding(dataclasses.replace(ARCH, layers=layers), like).compile().as_text())
        for layers in (1, 2)
    )
    print(f"a token: {two - one:,} cycles a layer and {2 * one - two:,} besides, by the compiler's estimate")


def main() -> None:
    """Prints a line for each kind of attention, or for decoding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=4096, help="of each rollout")
    parser.add_argument("--update", action="store_true", help="compile the whole update")
    parser.add_argument("--decoding", action="store_true", help="compile decoding, and print the compiler's estimate")
    parser.add_argument("--attention", nargs="+", default=["xla", "library"], help="values of config.model.attention")
    args = parser.parse_args()
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    }
    jax.config.update("jax_platforms", "cpu")
    devices = topologies.get_topology_desc("v5e:4x4", platform="tpu").devices
    jax.default_backend = lambda: "tpu"  # programs depend on it, and must see a TPU here
    if args.decoding:
        decoding(devices)
        return
    for chosen in args.attention:
        began = time.perf_counter()
        lower = whole_update if args.update else attention_alone
        program = lower(devices, args.prompt, args.tokens, chosen).compile()
        memory, text = program.memory_analysis(), program.as_text()
        calls = text.count('custom_call_target="tpu_custom_call"')
        sent = collections.Counter()
        for found in collectives(text):
            sent[found.operation] += found.bytes * found.times
        listed = ", ".join(f"{size / 1e9:.2f} GB {name}" for name, size in sent.items()) or "nothing"
        print(
            f"{chosen:<5}{memory.temp_size_in_bytes / 1e9:6.2f} GB beside arguments, {calls} kernels, sends {listed} "
            f"(compiled in {time.perf_counter() - began:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
