"""Loads and saves parameters as a folder of safetensors; loads them stacked for the scan, each into its sharding."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tsallis_rl.models import lora
from tsallis_rl.models.families import TOP, Tensor, layer_tensors
from tsallis_rl.models.parameters import parameter_shapes
from tsallis_rl.models.sharding import with_shardings
from tsallis_rl.models.sizes import Architecture
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.hub import INDEX, fetch_weights
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.runs.paths import dangling
from tsallis_rl.runs.processes import on_each
from tsallis_rl.runs.progress import say

SHARD_BYTES = 5 * 10**9  # largest file written
SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
# Prefixes of the text part's names: in a model of text and images -> in a text-only model.
TEXT_PARTS = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Safetensors:
    """Tensors of a folder, memory-mapped, from one file or several; fetched first if the folder is of the hub.

    Raises:
      UserError: the folder holds no safetensors, or a file is missing or cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        fetch_weights(folder)
        self._tensors: dict[str, _Stored] = {}
        for file in _weight_files(folder):
            try:
                if not file.is_file():
                    raise FileNotFoundError("it is no file")
                opened = safe_open(file, framework="numpy")
            except (SafetensorError, OSError, ValueError) as error:
                raise UserError(f"{file} cannot be read ({error}); copy the model's folder again") from None
            for name in opened.keys():  # noqa: SIM118, it is not a dict
                self._tensors[_text_name(name)] = _Stored(opened, name, file)

    def slice(self, name: str, shape: tuple[int, ...]):
        """Finds a tensor, to be read by indexing; raises UserError if it is missing or its shape or type is wrong."""
        if name not in self._tensors:
            raise UserError(f"{self.folder}: no safetensors file has the tensor {name}, which its config.json asks for")
        tensor = self._tensors[name].slice()
        found = tensor.get_shape()
        if tuple(found) != shape:
            rows = name == TOP["embed"].name and found[1:] == list(shape[1:])
            raise UserError(
                f"{self.folder}: the tensor {name} has shape {found}, where its config.json asks for {list(shape)}"
                + (f"; set vocab_size there to the {found[0]} rows of the embedding" if rows else "")
            )
        if tensor.get_dtype() not in DTYPES:
            raise UserError(
                f"{self.folder}: the tensor {name} is of type {tensor.get_dtype()}; only {', '.join(DTYPES)} are read"
            )
        return tensor

    @property
    def of_layers(self) -> set[str]:
        """The names of the layers' tensors, without tables of rotary angles, which old models store."""
        return {name for name in self._tensors if name.startswith("model.layers.") and "rotary_emb" not in name}

    def dtype(self, name: str) -> str:
        """Looks up the NumPy name of a tensor's type."""
        return DTYPES[self._tensors[name].slice().get_dtype()]

    def file(self, name: str) -> Path:
        """Looks up the file that holds a tensor."""
        return self._tensors[name].file


class _Stored(NamedTuple):
    """A tensor of an open file, and its name there."""

    opened: Any
    name: str
    file: Path

    def slice(self) -> Any:
        """Finds the tensor, to be read by indexing."""
        return self.opened.get_slice(self.name)


def _text_name(name: str) -> str:
    """Converts a tensor's name to that of a text-only model."""
    for prefix, replacement in TEXT_PARTS.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def _weight_files(folder: Path) -> list[Path]:
    """Lists the safetensors of a folder: the files in its index, or the one file, or all shards.

    Raises:
      UserError: there are none, the index is not one of safetensors, or shards are missing.
    """
    index, single = folder / INDEX, folder / "model.safetensors"
    if index.exists():
        files_of = read_object(index).get("weight_map")
        names = list(files_of.values()) if isinstance(files_of, dict) else [None]
        if not all(isinstance(name, str) and Path(name).name == name for name in names):  # not outside the folder
            raise UserError(f"{index} is no index of safetensors: weight_map must name a file for each tensor")
        return [folder / name for name in sorted(set(names))]
    if single.exists():
        return [single]
    if shards := _shards(folder):
        return shards
    if links := [found for file in (index, single, *sorted(folder.glob("*.safetensors"))) if (found := dangling(file))]:
        raise UserError(f"{links[0]}; copy the model's folder with the files that its links point to")
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    named = sorted(file.name for file in folder.glob("*.safetensors"))
    if pickled:
        reason = f", only {pickled[0]}: pickled files can run code and are not read; convert it"
    elif len(named) == 1:
        reason = f" under a name that is known, only {named[0]}: rename it to {single.name} if it is the whole model"
    elif named:
        reason = (
            f" that are known to be the whole model, only {named[0]} and others without {INDEX}; copy that file too"
        )
    else:
        reason = f": neither {single.name}, nor {INDEX}, nor shards; copy the model's folder again"
    raise UserError(f"{folder} holds no safetensors{reason}")


def _shards(folder: Path) -> list[Path]:
    """Lists the files model-NUMBER-of-TOTAL.safetensors of a folder without an index, if any."""
    shards = {file: match for file in sorted(folder.glob("model-*")) if (match := SHARD.fullmatch(file.name))}
    numbers = {int(match[1]) for match in shards.values()}
    totals = {match[2] for match in shards.values()}
    if len(totals) > 1:
        raise UserError(
            f"{folder} holds shards of {' and of '.join(sorted(totals))} files, and no {INDEX} that says which are the "
            "model's; remove the others"
        )
    for total in totals:
        lacking = next(number for number in itertools.count(1) if number not in numbers)
        if lacking <= int(total):
            raise UserError(
                f"{folder} holds {len(numbers)} of {int(total)} shards and no {INDEX}: "
                f"model-{lacking:0{len(total)}}-of-{total}.safetensors is missing; copy the model's folder again"
            )
    return list(shards)


def _flat(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
    """Turns slices of axes into one slice of the flattened axes; only the first axis is ever sharded."""
    start, stop, _ = index[0].indices(shape[0])
    rest = math.prod(shape[1:])
    return slice(start * rest, stop * rest)


def _stored_shape(tensor: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Computes the shape in safetensors of a parameter whose shape here is `shape`."""
    rows, columns = math.prod(shape[: tensor.inputs]), math.prod(shape[tensor.inputs :])
    if not tensor.inputs:
        return (columns,)
    return (columns, rows) if tensor.transposed else (rows, columns)


def _read(
    files: Safetensors, name: str, tensor: Tensor, shape: tuple[int, ...], index: tuple[slice, ...]
) -> np.ndarray:
    """Reads the part `index` of a parameter whose shape here is `shape` (in a layer: without the leading N)."""
    split = tensor.inputs
    part = [len(range(*i.indices(n))) for i, n in zip(index, shape, strict=True)]
    outputs = _flat(index[split:], shape[split:])
    stored = files.slice(name, _stored_shape(tensor, shape))
    if not split:
        return stored[outputs].reshape(part)
    inputs = _flat(index[:split], shape[:split])
    return (stored[outputs, inputs].T if tensor.transposed else stored[inputs, outputs]).reshape(part)


def _check(files: Safetensors, arch: Architecture, shapes: dict) -> None:
    """Refuses a missing or misshapen tensor, before config.json's sizes are used to allocate memory.

    Warns of tensors of layers that config.json does not ask for: without them it is another model.
    """
    for name, tensor in TOP.items():
        if name in shapes:
            files.slice(tensor.name, _stored_shape(tensor, shapes[name].shape))
    tensors, read = layer_tensors(arch), set()
    for n in range(arch.layers):
        for name, like in shapes["layers"].items():
            read.add(f"model.layers.{n}.{tensors[name].name}")
            files.slice(f"model.layers.{n}.{tensors[name].name}", _stored_shape(tensors[name], like.shape[1:]))
    if unread := files.of_layers - read:
        say(
            f"WARNING: {files.folder}: config.json does not ask for {min(unread)} ({len(unread)} such of the layers): "
            "it is not read, and the model is not the one that was saved; put its config.json back"
        )


def load_pretrained(folder: Path, arch: Architecture, shapes: dict, shardings: dict) -> dict:
    """Loads parameters from the folder's safetensors; each process reads its devices' shards, one parameter at a time.

    Args:
      folder: a Hugging Face folder.
      arch: its architecture.
      shapes: jax.ShapeDtypeStruct of the parameters, in a dict like theirs; tensors are cast to their dtype.
      shardings: of the parameters, in a dict like theirs.

    Raises:
      UserError: a file or a tensor is missing, has another shape, or holds NaN or infinities.
    """
    files = on_each(lambda: Safetensors(folder))
    _check(files, arch, shapes)
    broken: list[str] = []

    def cast(name: str, part: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
        with np.errstate(over="ignore"):
            parameter = part.astype(dtype)
        if not broken and not np.isfinite(parameter).all():
            told = "NaN or infinities; copy the model's folder again, or choose another model"
            if np.isfinite(part).all():
                told = f"values too large for {jnp.dtype(dtype)}; compute in another config.model.dtype"
            broken.append(f"{files.file(name)}: the tensor {name} holds {told}")
        return parameter

    def top(tensor: Tensor, like: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
        def read(index: tuple[slice, ...]) -> np.ndarray:
            return cast(tensor.name, _read(files, tensor.name, tensor, like.shape, index), like.dtype)

        return jax.make_array_from_callback(like.shape, sharding, read)

    def stacked(tensor: Tensor, like: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
        def read(index: tuple[slice, ...]) -> np.ndarray:
            part = np.empty([len(range(*i.indices(n))) for i, n in zip(index, like.shape, strict=True)], like.dtype)
            for i, n in enumerate(range(arch.layers)[index[0]]):
                name = f"model.layers.{n}.{tensor.name}"
                part[i] = cast(name, _read(files, name, tensor, like.shape[1:], index[1:]), like.dtype)
            return part

        return jax.make_array_from_callback(like.shape, sharding, read)

    names = layer_tensors(arch)
    params = {name: top(TOP[name], like, shardings[name]) for name, like in shapes.items() if name != "layers"}
    layers = {name: stacked(names[name], like, shardings["layers"][name]) for name, like in shapes["layers"].items()}
    on_each(lambda: _refuse(broken))
    return params | {"layers": layers}


def _refuse(broken: list[str]) -> None:
    """Raises a UserError if there are broken tensors; `broken[0]` describes the first of them."""
    if broken:
        raise UserError(broken[0])


def _stored(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Reshapes a parameter to its tensor in safetensors; the inverse of `_read`."""
    if not tensor.inputs:
        return array.reshape(-1)
    matrix = array.reshape(math.prod(array.shape[: tensor.inputs]), -1)
    return np.ascontiguousarray(matrix.T) if tensor.transposed else matrix


class _Output(NamedTuple):
    """A tensor to write: its array among our parameters, its layer, and its size in elements."""

    array: jax.Array
    tensor: Tensor
    layer: tuple[int, ...]  # (n,), or () outside the layers
    size: int


def _outputs(params: dict, arch: Architecture) -> dict[str, _Output]:
    """Lists the tensors to write by name, the layers in order."""
    outputs = {
        TOP[name].name: _Output(array, TOP[name], (), array.size) for name, array in params.items() if name != "layers"
    }
    for n in range(arch.layers):
        for name, tensor in layer_tensors(arch).items():
            if name in params["layers"]:
                array = params["layers"][name]
                outputs[f"model.layers.{n}.{tensor.name}"] = _Output(array, tensor, (n,), array.size // arch.layers)
    return outputs


def stored_tensors(params: dict, arch: Architecture) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each tensor's name and array as stored in safetensors, one at a time on the host."""
    for name, output in _outputs(params, arch).items():
        yield name, _stored(np.asarray(output.array[output.layer]), output.tensor)


def merge_with_pretrained(adapters: dict, folder: Path, arch: Architecture, mesh: Mesh) -> dict:
    """Loads a folder's parameters in float32, and merges adapters into them.

    A checkpoint holds frozen parameters only in the dtype of the computation.

    Args:
      adapters: {"layers": …} as `lora.split` returns them.
      folder: of the model beside which they were trained.
      arch: with the settings of the adapters.
      mesh: over which the result is sharded.

    Raises:
      UserError: as `load_pretrained`.
    """
    frozen = with_shardings(lora.split(parameter_shapes(arch))[0], mesh)
    shardings = jax.tree.map(lambda x: x.sharding, frozen)
    return lora.merge(lora.replace(load_pretrained(folder, arch, frozen, shardings), adapters), arch)


def cast_finite(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Casts a tensor that is to be written.

    Raises:
      UserError: it holds numbers that are too large for the dtype.
    """
    with np.errstate(over="ignore"):
        cast = array.astype(jnp.dtype(dtype))
    if (np.isfinite(array) & ~np.isfinite(cast.astype(np.float32))).any():
        raise UserError(f"--dtype={dtype}: the tensor {name} holds numbers too large for it; choose another --dtype")
    return cast


def save_pretrained(
    params: dict, arch: Architecture, folder: Path, *, dtype: str, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes parameters as model.safetensors, or as several files with an index when they exceed `shard_bytes`.

    Args:
      params: the decoder's parameters.
      arch: its architecture.
      folder: must exist.
      dtype: of the tensors written: float32, float16 or bfloat16.
      shard_bytes: size of the largest file, unless a single tensor is larger; the host never holds more than that.
    """
    outputs, width = _outputs(params, arch), jnp.dtype(dtype).itemsize
    shards: list[list[str]] = [[]]
    filled = 0
    for name, output in outputs.items():
        if shards[-1] and filled + output.size * width > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += output.size * width

    weight_map = {}
    for i, names in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        arrays = {}
        for name in names:
            output = outputs[name]
            arrays[name] = cast_finite(name, _stored(np.asarray(output.array[output.layer]), output.tensor), dtype)
        save_file(arrays, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        total = sum(output.size for output in outputs.values()) * width
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
