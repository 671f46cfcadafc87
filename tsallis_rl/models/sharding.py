"""Sharding of arrays: one mesh, one table from logical axes to mesh axes, one table from parameters to logical axes.

    data     prompts; parameters are copied
    fsdp     prompts as well; parameters are sharded, and gathered layer by layer in an update, all at once in rollouts
    tensor   heads, feed-forward width and vocabulary

Only P is sharded, never M: a prompt's rollouts stay on one device. One device is a mesh of one.
"""

import functools
import math
from collections.abc import Mapping
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

PARAMETERS: dict[str, tuple[str | None, ...]] = {  # after the stacked layers' leading axis, which is never sharded
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
    """Counts devices along each axis of config.mesh; `data` = 0 takes all that fsdp and tensor leave.

    Raises:
      UserError: the product of the axes is not the number of devices.
    """
    shape = {"data": mesh.data or devices // (mesh.fsdp * mesh.tensor), "fsdp": mesh.fsdp, "tensor": mesh.tensor}
    if math.prod(shape.values()) != devices:
        raise UserError(
            f"config.mesh: data × fsdp × tensor = {' × '.join(map(str, shape.values()))} does not make the {devices} "
            "device(s) there are; change config.mesh (data = 0 takes what is left)"
        )
    return shape


def fit_mesh(mesh: ConfigDict, devices: int) -> bool:
    """Splits prompts over all devices if config.mesh does not fit them; returns whether it was changed."""
    try:
        mesh_shape(mesh, devices)
    except UserError:
        mesh.update({"data": 0, "fsdp": 1, "tensor": 1})
        return True
    return False


def prompt_shards(shape: Mapping[str, int]) -> int:
    """Counts the shards of the prompts on a mesh of this shape, {axis: devices}: data × fsdp."""
    return shape["data"] * shape["fsdp"]


def make_mesh(mesh: ConfigDict) -> Mesh:
    """Makes the mesh of config.mesh over all devices."""
    shape = mesh_shape(mesh, jax.device_count())
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def sharding(mesh: Mesh, logical: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """Shards the trailing dimensions of a shape by logical axes; a dimension that does not divide evenly is copied."""
    names: list[Any] = [None] * (len(shape) - len(logical)) + [RULES[axis] for axis in logical]
    for i, name in enumerate(names):
        axes = (name,) if isinstance(name, str) else name or ()
        if shape[i] % np.prod([mesh.shape[axis] for axis in axes], dtype=int):
            names[i] = None
    return NamedSharding(mesh, Spec(*names))


def prompt_specs(mesh: Mesh, tree: Any, kv_heads: int | None = None) -> Any:
    """Returns specs that split a tree's arrays [P, …] over prompts, and the axis `kv_heads`, if any, over key heads."""

    def spec(x: Any) -> Spec:
        axes: list[str | None] = ["prompts", *[None] * (x.ndim - 1)]
        if kv_heads is not None:
            axes[kv_heads] = "kv_heads"
        return sharding(mesh, tuple(axes), x.shape).spec

    return jax.tree.map(spec, tree)


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns shardings of parameters, or of whatever mirrors them (optimiser moments), by each leaf's name."""

    def leaf_sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = getattr(path[-1], "key", None) if path else None
        return sharding(mesh, PARAMETERS.get(name, ()), leaf.shape)

    return jax.tree_util.tree_map_with_path(leaf_sharding, state)


def with_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Adds shardings to shapes of parameters, or of whatever mirrors them, as restoring a checkpoint requires."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gather_parameter(name: str, leaf: jax.Array) -> jax.Array:
    """Gathers a parameter over fsdp where a layer reads it, inside jit; its gradient is sharded again.

    It stays sharded over tensor. Without this, the compiler multiplies by the shards and sums activations and logits
    over devices instead. Does nothing where fsdp splits nothing.
    """
    return _constrain(leaf, _without_fsdp(name))


def _without_fsdp(name: str) -> tuple[str | None, ...]:
    return tuple(None if RULES[axis] == "fsdp" else axis for axis in PARAMETERS.get(name, ()))


def _constrain(leaf: jax.Array, logical: tuple[str | None, ...]) -> jax.Array:
    mesh = jax.typeof(leaf).sharding.mesh  # known while tracing, too
    return constrain(leaf, logical, like=leaf) if mesh.shape.get("fsdp", 1) > 1 else leaf


def constrain(x: jax.Array, logical: tuple[str | None, ...], like: jax.Array) -> jax.Array:
    """Shards x by its logical axes over the mesh of `like`, inside jit; does nothing if `like` has no mesh."""
    mesh = jax.typeof(like).sharding.mesh
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, sharding(mesh, logical, x.shape))


def local_size(x: jax.Array, axis: int, logical: str) -> int:
    """Computes the length of an axis of x on one device, as RULES shard it.

    For use inside jit, where x has its global shape.
    """
    size, names = x.shape[axis], RULES[logical]
    mesh = jax.typeof(x).sharding.mesh
    parts = math.prod(mesh.shape.get(name, 1) for name in ((names,) if isinstance(names, str) else names or ()))
    return size if size % parts else size // parts


def _shard_gradient(name: str, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    """Sums a parameter's whole gradient where it arises, then shards it.

    If only shards were requested, the compiler would move activations between devices instead.
    """
    return (_constrain(_constrain(gradient, _without_fsdp(name)), PARAMETERS.get(name, ())),)


gather_parameter.defvjp(lambda name, leaf: (gather_parameter(name, leaf), None), _shard_gradient)


def gather_all(params: Any, dtype: str) -> Any:
    """Casts all parameters and gathers them over fsdp at once, for a loop that reads them many times."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: gather_parameter(path[-1].key, leaf.astype(dtype)), params
    )


def prompts_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays [P, …] over prompts."""
    return NamedSharding(mesh, Spec(RULES["prompts"]))


def shard_prompts(mesh: Mesh, tree: Any) -> Any:
    """Shards host arrays [P, …] over prompts into global arrays; every process passes the same arrays."""

    def shard(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, prompts_sharding(mesh), lambda index: array[index])

    return jax.tree.map(shard, tree)


def to_host(tree: Any) -> Any:
    """Copies global arrays to every process as whole NumPy arrays."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
