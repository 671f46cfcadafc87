"""Low-rank adapters: a projection W of each layer becomes W + (α/r) in × out, and only the factors are trained.

The factors of W [N, inputs, outputs] are the parameters <name>_lora_in [N, inputs, r] and <name>_lora_out [N, r,
outputs], with r the adapters' rank. `Architecture.lora_targets` says which projections have them. The second factor
starts at zero, so training starts from the pretrained model.
"""

import functools

import jax
import jax.numpy as jnp

from tsallis_rl.models.shapes import Expected, check_shapes
from tsallis_rl.models.sizes import Architecture

IN, OUT = "_lora_in", "_lora_out"


def split(params: dict) -> tuple[dict, dict]:
    """Splits parameters, or whatever mirrors them, into the rest and {"layers": adapters}, or {} if there are none."""
    adapters = {name: leaf for name, leaf in params["layers"].items() if name.endswith((IN, OUT))}
    rest = {name: leaf for name, leaf in params["layers"].items() if name not in adapters}
    return params | {"layers": rest}, {"layers": adapters} if adapters else {}


def trained(params: dict) -> dict:
    """Selects the part that training changes: the adapters if there are any, else everything."""
    return split(params)[1] or params


def replace(params: dict, part: dict) -> dict:
    """Replaces the part of the parameters that training changes; the inverse of `trained`."""
    return params | part | {"layers": params["layers"] | part["layers"]}


def _check(name: str, matrix: jax.Array, into: jax.Array, out: jax.Array, rank: int) -> None:
    """Checks that factors [N, inputs, r] and [N, r, outputs] fit W [N, inputs, outputs] and r = arch.lora_rank."""
    inputs = " ".join(f"inputs_{i}" for i in range(into.ndim - 2))
    outputs = " ".join(f"outputs_{i}" for i in range(out.ndim - 2))
    check_shapes(
        Expected(name, matrix, f"N {inputs} {outputs}"),
        Expected(name + IN, into, f"N {inputs} r"),
        Expected(name + OUT, out, f"N r {outputs}"),
        r=rank,
    )


@functools.partial(jax.jit, static_argnames="arch")
def merge(params: dict, arch: Architecture) -> dict:
    """Merges adapters into the parameters: W + (α/r) in × out for each projection of the adapters' `arch`."""
    rest, adapters = split(params)
    layers = dict(rest["layers"])
    for name in adapters.get("layers", {}):
        if name.endswith(IN):
            name = name.removesuffix(IN)
            into, out = adapters["layers"][name + IN], adapters["layers"][name + OUT]
            _check(name, layers[name], into, out, arch.lora_rank)
            change = jax.vmap(functools.partial(jnp.tensordot, axes=1))(into, out)
            layers[name] = layers[name] + (arch.lora_scale * change).astype(layers[name].dtype)
    return rest | {"layers": layers}
