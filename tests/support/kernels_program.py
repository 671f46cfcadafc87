"""Compares attention by kernels on a mesh of eight virtual devices with one device; prints facts as JSON.

python -m tests.support.kernels_program, with XLA_FLAGS=--xla_force_host_platform_device_count=8
"""

import functools
import json

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec

from benchmarks.collectives import collectives
from tests.support.decoding import SMALL, Case, by_kernels, expected, given
from tests.support.kernels import RUN, group, kernel
from tsallis_rl.models import attention
from tsallis_rl.models.attention import KeyValues, Part
from tsallis_rl.models.attention import library_kernels as kernels
from tsallis_rl.models.residual import PendingSum, add_and_norm


def main() -> None:
    """Compares outputs and gradients of each kernel; prompts are split over two axes and heads over the third."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    query, (prompt, own), factor = group(prompt=20, tokens=30, prompts=4)

    @functools.partial(jax.grad, argnums=(1, 2, 3), has_aux=True)
    def both(attend, query, shared, kv, hidden, factor):
        out = attend(query, [Part(shared, hidden), Part(kv, own.mask)], 0.25)
        return (factor * out).sum(), out

    def split(x: jax.Array, *axes: str | None) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, Spec(("data", "fsdp"), *axes)))

    expected = both(attention.attend, query, prompt.kv, own.kv, prompt.mask, factor)
    arguments = (
        split(query, None, None, "tensor"),
        KeyValues(*(split(x, "tensor") for x in prompt.kv)),
        KeyValues(*(split(x, None, "tensor") for x in own.kv)),
        split(prompt.mask),
        split(factor, None, None, "tensor"),
    )
    found = {}
    for name in RUN:
        kernels.KERNELS["cpu"] = kernel(name)
        program = jax.jit(both, static_argnums=0).lower(kernels.attend, *arguments).compile()
        pairs = zip(*map(jax.tree.leaves, (program(*arguments), expected)), strict=True)
        found[name] = {
            "gap": max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs),
            "collectives": [f"{c.operation} {c.bytes}" for c in collectives(program.as_text())],
        }
    print(json.dumps(found | {"decoding": of_decoding(mesh), "residual": of_residual(mesh)}))


def of_decoding(mesh: jax.sharding.Mesh) -> dict:
    """Compares the attention of decoded tokens, and the caches they are written into; a shard has two prompts."""
    case = Case(shards=4, rows=5, prompts=8, slots=5, window=30)
    inputs = given(case)
    kv_heads = {"prompt": 1, "cache": 2}

    def split(name: str, x: jax.Array) -> jax.Array:
        axes = [("data", "fsdp"), *[None] * (x.ndim - 1)]
        if name in kv_heads:
            axes[kv_heads[name]] = "tensor"
        return jax.device_put(x, NamedSharding(mesh, Spec(*axes)))

    on_mesh = dict(inputs)
    for name in ("prompt", "cache", "end", "slots", "position", "at_prompt", "rotation"):
        on_mesh[name] = jax.tree.map(functools.partial(split, name), inputs[name])
    heads = inputs["heads"]
    on_mesh["heads"] = heads._replace(
        **{name: split("cache", getattr(heads, name)) for name in ("query", "key", "value")}
    )
    attended = functools.partial(by_kernels, case, interpret=True, tiles=SMALL)
    program = jax.jit(attended).lower(on_mesh).compile()
    pairs = zip(*map(jax.tree.leaves, (program(on_mesh), expected(case, inputs))), strict=True)
    return {
        "gap": max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs),
        "collectives": [f"{c.operation} {c.bytes}" for c in collectives(program.as_text())],
    }


def of_residual(mesh: jax.sharding.Mesh) -> dict:
    """Compares the sums of residuals and products, and their norms; the scales are on every device."""
    rng = np.random.default_rng(0)
    drawn = (np.float32(rng.normal(size=size)) for size in ((8, 5, 1, 48), (4, 8, 5, 1, 48), 48, 48))
    before, pieces, post_norm, scale = drawn
    shards = ("data", "fsdp")
    x = PendingSum(
        jax.device_put(before, NamedSharding(mesh, Spec(shards))),
        jax.device_put(pieces, NamedSharding(mesh, Spec(None, shards))),
        jax.device_put(post_norm, NamedSharding(mesh, Spec())),
    )
    add = functools.partial(add_and_norm, eps=1e-6, dtype="float32", interpret=True)
    program = jax.jit(add).lower(x, scale).compile()
    expected = add(PendingSum(before, pieces, post_norm), scale)
    return {
        "gap": max(float(np.abs(x - y).max()) for x, y in zip(program(x, scale), expected, strict=True)),
        "collectives": [f"{c.operation} {c.bytes}" for c in collectives(program.as_text())],
    }


if __name__ == "__main__":
    main()
