"""Prints what rollouts with 1, 2 and 4 layers send on a mesh of four virtual devices, as JSON for test_estimate.py.

python -m tests.support.estimate_program, with XLA_FLAGS=--xla_force_host_platform_device_count=4
"""

import dataclasses
import json

import jax
from jax.sharding import AxisType

from benchmarks.collectives import collectives
from benchmarks.estimate import Work, programs, sent
from tsallis_rl.config.schema import base_config
from tsallis_rl.models import SIZES

ARCH = dataclasses.replace(SIZES["qwen3-0.6b"], width=64, heads=4, kv_heads=2, head_dim=16, ffn=64, vocab_size=512)
WORK = Work(prompts=1, prompt=16, rollouts=4, rationale=64, answer=4)  # the cache grows twice


def main() -> None:
    """Prints, by number of layers, the bytes sent outside of the loops over tokens, and for each token."""
    mesh = jax.make_mesh((1, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    counted = {}
    for layers in (1, 2, 4):
        rollouts, _ = programs(base_config(), dataclasses.replace(ARCH, layers=layers), WORK, mesh)
        counted[layers] = sent(collectives(rollouts().compile().as_text()))
    print(json.dumps(counted))


if __name__ == "__main__":
    main()
