"""Where arrays live: one mesh, one table from logical axes to mesh axes, one table from parameters to logical axes.

    data     prompts; parameters are copied
    fsdp     prompts as well; parameters are split: put together layer by layer in an update, all at once in rollouts
    tensor   heads, feed-forward width and vocabulary

The rollouts of a prompt stay together: only P is split, never M. One device is a mesh of one.
"""

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec
from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError

RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "prompts": ("data", "fsdp"),
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "width": "fsdp",
    None: None,
}

PARAMETERS: dict[str, tuple[str | None, ...]] = {  # behind the stacked layers' leading axis, which is never split
    "embed": ("vocab", "width"),
    "head": ("width", "vocab"),
    "query": ("width", "heads", None),
    "key": ("width", "kv_heads", None),
    "value": ("width", "kv_heads", None),
    "query_bias": ("heads", None),
    "key_bias": ("kv_heads", None),
    "value_bias": ("kv_heads", None),
    "out": ("heads", None, "width"),
    "gate": ("width", "ffn"),
    "up": ("width", "ffn"),
    "down": ("ffn", "width"),
}  # norms and adapters are copied


def mesh_shape(mesh: ConfigDict, devices: int) -> dict[str, int]:
    """Devices along each axis of config.mesh; `data` = 0 takes those that fsdp and tensor leave."""
    shape = {"data": mesh.data or devices // (mesh.fsdp * mesh.tensor), "fsdp": mesh.fsdp, "tensor": mesh.tensor}
    if math.prod(shape.values()) != devices:
        raise UserError(
            f"config.mesh: data × fsdp × tensor = {' × '.join(map(str, shape.values()))} does not make the {devices} "
            "device(s) there are; change config.mesh (data = 0 takes what is left)"
        )
    return shape


def make_mesh(mesh: ConfigDict) -> Mesh:
    """The mesh of config.mesh over all devices."""
    shape = mesh_shape(mesh, jax.device_count())
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def sharding(mesh: Mesh, logical: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """Mesh axes of the trailing dimensions `logical`; a dimension that does not divide is copied."""
    names: list[Any] = [None] * (len(shape) - len(logical)) + [RULES[axis] for axis in logical]
    for i, name in enumerate(names):
        axes = (name,) if isinstance(name, str) else name or ()
        if shape[i] % np.prod([mesh.shape[axis] for axis in axes], dtype=int):
            names[i] = None
    return NamedSharding(mesh, Spec(*names))


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Shardings of parameters, and of whatever mirrors them (optimiser moments), by each leaf's name."""

    def of_leaf(path: tuple, leaf: Any) -> NamedSharding:
        name = getattr(path[-1], "key", None) if path else None
        return sharding(mesh, PARAMETERS.get(name, ()), leaf.shape)

    return jax.tree_util.tree_map_with_path(of_leaf, state)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gathered(name: str, leaf: jax.Array) -> jax.Array:
    """A parameter as a layer reads it inside jit: put together over fsdp, still split over tensor; its gradient split.

    Left alone, the compiler multiplies by the parts and sums activations and logits over devices instead. Where fsdp
    splits nothing, nothing is done.
    """
    return _laid_out(leaf, _without_fsdp(name))


def _without_fsdp(name: str) -> tuple[str | None, ...]:
    return tuple(None if RULES[axis] == "fsdp" else axis for axis in PARAMETERS.get(name, ()))


def _laid_out(leaf: jax.Array, logical: tuple[str | None, ...]) -> jax.Array:
    mesh = jax.typeof(leaf).sharding.mesh  # that of the array, also while it is traced
    if mesh.shape.get("fsdp", 1) == 1:
        return leaf
    return jax.lax.with_sharding_constraint(leaf, sharding(mesh, logical, leaf.shape))


def size_on_a_device(x: jax.Array, axis: int, logical: str) -> int:
    """Length of an axis of x on each device, if RULES split it there; inside jit, where x has its whole shape."""
    size, names = x.shape[axis], RULES[logical]
    mesh = jax.typeof(x).sharding.mesh
    parts = math.prod(mesh.shape.get(name, 1) for name in ((names,) if isinstance(names, str) else names or ()))
    return size if size % parts else size // parts


def _split_again(name: str, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    """Summed where it arises, then split: asked for in parts alone, it would have activations moved instead."""
    return (_laid_out(_laid_out(gradient, _without_fsdp(name)), PARAMETERS.get(name, ())),)


gathered.defvjp(lambda name, leaf: (gathered(name, leaf), None), _split_again)


def all_gathered(params: Any, dtype: str) -> Any:
    """All parameters, cast and put together over fsdp at once: for a loop that reads them many times."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: gathered(path[-1].key, leaf.astype(dtype)), params)


def prompts_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays whose first axis is P."""
    return NamedSharding(mesh, Spec(RULES["prompts"]))


def over_prompts(mesh: Mesh, tree: Any) -> Any:
    """Host arrays with leading axis P as global arrays split over prompts; every process passes the same arrays."""

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, prompts_sharding(mesh), lambda index: array[index])

    return jax.tree.map(place, tree)


def to_host(tree: Any) -> Any:
    """Global arrays as whole NumPy arrays on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, Spec())
