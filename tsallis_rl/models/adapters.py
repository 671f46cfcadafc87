"""Loads and saves adapters as a folder of peft: adapter_config.json and adapter_model.safetensors.

    ours    W + (α / r) in × out,   in [N, inputs, r],   out [N, r, outputs]
    peft    W + (α / r) B A,        A [r, inputs],       B [outputs, r], two tensors per layer and projection

So A and B are our factors transposed, bit for bit, with heads and their width flattened.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tsallis_rl.config.schema import FIELDS
from tsallis_rl.models import lora
from tsallis_rl.models.families import LAYER
from tsallis_rl.models.pretrained import cast_finite
from tsallis_rl.models.sizes import PROJECTIONS, Architecture
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.hub import fetch_weights, model_folder
from tsallis_rl.runs.json_files import read_object

SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PATHS = {name: LAYER[name].name.removesuffix(".weight") for name in PROJECTIONS}  # query -> self_attn.q_proj
_NAMES = {path.rpartition(".")[2]: name for name, path in _PATHS.items()}  # q_proj -> query
_FACTORS = {lora.IN: "lora_A", lora.OUT: "lora_B"}
_DTYPES = ("float32", "float16", "bfloat16")

# Fields that do not change what a loaded adapter computes. Any other field that is neither read nor empty is refused by
# name, so that features added to peft later are not silently ignored.
_HARMLESS = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "runtime_config", "lora_dropout", "init_lora_weights", "megatron_core", "layers_pattern", "qalora_group_size",
    "loftq_config", "eva_config",
}  # fmt: skip
_READ = {"r", "lora_alpha", "target_modules", "use_rslora"}
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base model's weights as well


class Adapter(NamedTuple):
    """Settings of adapters, named as in `Architecture`.

    Attributes:
      lora_rank: r.
      lora_alpha: α of the factor α / r.
      lora_targets: names of PROJECTIONS, in their order.
    """

    lora_rank: int
    lora_alpha: float
    lora_targets: tuple[str, ...]


def _targets(names: Any, where: str) -> tuple[str, ...]:
    """Converts peft's names of projections to ours, in the order of PROJECTIONS.

    Raises:
      UserError: they are not a list of known names, or empty; the message begins with `where`.
    """
    listed = names if isinstance(names, list | tuple) else []  # peft reads a text as a pattern
    unknown = [name for name in listed if not isinstance(name, str) or name not in _NAMES]
    unknown += [] if listed is names else [names]
    if unknown or not listed:
        found = f"{unknown[0]!r:.60} is" if unknown else "an empty list is"
        raise UserError(f"{where}: {found} not supported; name some of {', '.join(_NAMES)}, as in ('q_proj', 'v_proj')")
    return tuple(name for name in PROJECTIONS if name in {_NAMES[name] for name in listed})


def adapter_settings(model: ConfigDict) -> Adapter:
    """Reads the adapters' settings from config.model, or from the adapter's folder if config.model names one.

    With a folder, fields at their default are ignored, and any other value must equal the folder's.

    Raises:
      UserError: the folder cannot be used or contradicts config.model, or targets are named but no adapters trained.
    """
    targets = _targets(model.lora_targets, "config.model.lora_targets") if model.lora_targets else ()
    if not model.adapter:
        if targets and not model.lora_rank:
            raise UserError(
                f"config.model.lora_targets={tuple(model.lora_targets)}: no adapters are trained, so nothing reads it; "
                "set config.model.lora_rank as well"
            )
        return Adapter(model.lora_rank, model.lora_alpha, targets or PROJECTIONS)
    said = Adapter(model.lora_rank, model.lora_alpha, targets)
    folder = model_folder(model.adapter)
    found = _read_settings(folder)
    for name in Adapter._fields:
        value, own = getattr(found, name), getattr(said, name)
        if own not in (FIELDS[f"model.{name}"].default, value):
            shown = _peft_names(value) if name == "lora_targets" else value
            raise UserError(
                f"config.model.{name}={model[name]}: the adapter in {folder} has {shown}; leave that field at its "
                "default, or name another config.model.adapter"
            )
    return found


def _peft_names(targets: tuple[str, ...]) -> list[str]:
    """Converts our names of projections to peft's."""
    return [_PATHS[name].rpartition(".")[2] for name in targets]


def _read_settings(folder: Path) -> Adapter:
    """Reads adapter_config.json.

    Raises:
      UserError: the folder or the file cannot be used, or a field, which is named, asks for something unsupported.
    """
    if not folder.is_dir():
        raise UserError(
            f"config.model.adapter: there is no folder {folder} (looked from {Path.cwd()}); name the folder of an "
            f"adapter, with {SETTINGS} and {TENSORS}"
        )
    file = folder / SETTINGS
    fields = read_object(file)
    if fields.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type={fields.get('peft_type')!r:.60} is not supported, only 'LORA'")
    for name, value in fields.items():
        empty = not value or (name, value) == ("bias", "none")
        if name not in _HARMLESS | _READ and not empty:
            raise UserError(f"{file}: {name}={value!r:.60} is not supported; only plain LoRA factors are read")
    start = fields.get("init_lora_weights", True)
    if not any(start is known or start == known for known in _STARTS):
        raise UserError(
            f"{file}: init_lora_weights={start!r:.60} is not supported: it changes the base model's weights too; save "
            "the adapter with peft's path_initial_model_for_weight_conversion"
        )
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank <= 2**20:
        raise UserError(f"{file}: r={rank!r:.60} is no rank; expected a whole number from 1 up")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= sys.float_info.max:
        raise UserError(f"{file}: lora_alpha={alpha!r:.60} is not supported; expected a number above 0")
    stabilised = fields.get("use_rslora") or False
    if not isinstance(stabilised, bool):
        raise UserError(f"{file}: use_rslora={stabilised!r:.60} is not supported; expected true or false")
    scale = rank**0.5 if stabilised else 1.0  # rank-stabilised: α / √r
    return Adapter(rank, float(alpha) * scale, _targets(fields.get("target_modules"), f"{file}: target_modules"))


def _tensor_name(layer: int, parameter: str) -> str:
    """Names the tensor of a layer's factor, such as query_lora_in."""
    suffix = lora.IN if parameter.endswith(lora.IN) else lora.OUT
    path = _PATHS[parameter.removesuffix(suffix)]
    return f"base_model.model.model.layers.{layer}.{path}.{_FACTORS[suffix]}.weight"


def _matrix_shape(parameter: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Computes the shape in which peft stores a layer's factor: A [r, inputs] or B [outputs, r]."""
    if parameter.endswith(lora.IN):
        return shape[-1], math.prod(shape[:-1])
    return math.prod(shape[1:]), shape[0]


def load_adapter(folder: Path, shapes: dict, shardings: dict) -> dict:
    """Loads the factors of a peft folder as {"layers": {query_lora_in: [N, inputs, r], …}}.

    Args:
      folder: of the adapter.
      shapes: jax.ShapeDtypeStruct of the factors, in such a dict; tensors are cast to their dtype.
      shardings: of the factors, in such a dict.

    Raises:
      UserError: the file cannot be read, or a tensor is missing, misshapen, not finite, or of no adapted projection.
    """
    fetch_weights(folder)
    file = folder / TENSORS
    pickled = "; adapter_model.bin is pickled, can run code and is not read" * (folder / "adapter_model.bin").exists()
    if not file.is_file():
        raise UserError(f"{folder} holds no {TENSORS}{pickled}; save the adapter with safetensors")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} cannot be read ({error}); copy the adapter's folder again") from None
    expected = {
        _tensor_name(n, name): _matrix_shape(name, like.shape[1:])
        for name, like in shapes["layers"].items()
        for n in range(like.shape[0])
    }
    for name in [*expected, *tensors]:
        if name not in tensors:
            raise UserError(f"{file} lacks the tensor {name}, which {SETTINGS} and the model's config.json ask for")
        if name not in expected:
            raise UserError(
                f"{file}: the tensor {name} belongs to nothing that is adapted here: {SETTINGS} does not name it, or "
                "the adapter is of another model"
            )
        found = tensors[name]
        if found.shape != expected[name]:
            raise UserError(
                f"{file}: the tensor {name} has shape {list(found.shape)}, where r and the model's config.json ask "
                f"for {list(expected[name])}"
            )
        if found.dtype.name not in _DTYPES or not np.isfinite(found.astype(np.float32)).all():
            raise UserError(
                f"{file}: the tensor {name} is {found.dtype.name} or holds numbers that are not finite; only finite "
                f"{', '.join(_DTYPES)} are read"
            )

    def stacked(name: str, like: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
        layers = [tensors[_tensor_name(n, name)].T.reshape(like.shape[1:]) for n in range(like.shape[0])]
        whole = np.stack(layers).astype(like.dtype)
        return jax.make_array_from_callback(like.shape, sharding, lambda index: whole[index])

    return {"layers": {name: stacked(name, like, shardings["layers"][name]) for name, like in shapes["layers"].items()}}


def save_adapter(factors: dict, arch: Architecture, folder: Path, *, dtype: str, base: str, revision: str = "") -> None:
    """Writes the two files that peft loads.

    Args:
      factors: {"layers": …} as `lora.split` returns them.
      arch: of the adapted model.
      folder: must exist.
      dtype: of the tensors written: float32, float16 or bfloat16.
      base: name or folder of the model that is adapted.
      revision: of the base, if it is a name; empty if none.
    """
    tensors = {}
    for name, factor in factors["layers"].items():
        for n, array in enumerate(np.asarray(factor)):
            rows, columns = _matrix_shape(name, array.shape)
            matrix = array.reshape(columns, rows).T
            tensors[_tensor_name(n, name)] = cast_finite(_tensor_name(n, name), np.ascontiguousarray(matrix), dtype)
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    alpha = int(arch.lora_alpha) if arch.lora_alpha == int(arch.lora_alpha) else arch.lora_alpha
    fields = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": revision or None,
        "r": arch.lora_rank, "lora_alpha": alpha, "target_modules": _peft_names(arch.lora_targets),
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "use_rslora": False, "use_dora": False,
        "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "layers_to_transform": None,
        "init_lora_weights": True, "inference_mode": True,
    }  # fmt: skip
    (folder / SETTINGS).write_text(json.dumps(fields, indent=2) + "\n")
