"""Pretrained families: reads a Hugging Face config.json as an `Architecture`, and names the families' tensors."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tsallis_rl.models.sizes import Architecture, RopeScaling
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.runs.paths import dangling


class _Settings:
    """Fields of a config.json; a missing or unsupported field raises a UserError."""

    def __init__(self, file: Path, fields: Mapping[str, Any], inside: str = ""):
        self.file = file
        self._fields = fields
        self._inside = inside

    def __call__(self, name: str, *default: Any) -> Any:
        """Reads a field, or its default if it is absent or null; without a default that is a UserError."""
        value = self._fields.get(name)
        if value is not None:
            return value
        if not default:
            raise UserError(f"{self.file} has no field '{self._inside}{name}'; copy the model's folder again")
        return default[0]

    def _wrong(self, name: str, value: Any, expected: str) -> UserError:
        return UserError(f"{self.file}: {self._inside}{name} is {value!r:.60}, expected {expected}; copy it again")

    def count(self, name: str, *default: int, most: int = 2**20) -> int:
        """Reads a whole number from 1 to `most`, which keeps sizes plausible."""
        value = self(name, *default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise self._wrong(name, value, f"a whole number from 1 to {most}")
        return value

    def number(self, name: str, *default: float) -> float:
        """Reads a number above zero."""
        value = self(name, *default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
            raise self._wrong(name, value, "a number above 0")
        return float(value)

    def switch(self, name: str, default: bool) -> bool:
        """Reads true or false."""
        value = self(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def within(self, name: str, *default: Mapping[str, Any]) -> "_Settings":
        """Reads a field that is an object, as settings of its own."""
        value = self(name, *default)
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return _Settings(self.file, value, f"{self._inside}{name}.")

    def refuse(self, name: str, accepted: Any, default: Any) -> None:
        """Refuses a field whose value changes the computation in a way that the decoder does not implement."""
        value = self(name, default)
        if value != accepted:
            raise UserError(f"{self.file}: {name}={value!r} is not supported, only {accepted!r}")


def _rope(settings: _Settings, rope: _Settings, *default: float) -> tuple[float, RopeScaling | None]:
    """Reads the base (or its default) and scaling of rotary frequencies, in either spelling of config.json."""
    kind = rope("rope_type", rope("type", "default"))
    theta = rope.number("rope_theta") if rope("rope_theta", None) else settings.number("rope_theta", *default)
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(rope.number("factor"))
    if kind == "llama3":
        return theta, RopeScaling(
            factor=rope.number("factor"),
            original_context=rope.count("original_max_position_embeddings", most=2**31),
            low_factor=rope.number("low_freq_factor"),
            high_factor=rope.number("high_freq_factor"),
        )
    raise UserError(
        f"{settings.file}: rotary scaling {kind!r} is not supported, only linear and llama3; without it (remove "
        "rope_scaling) the model has its original context"
    )


def _common(settings: _Settings) -> dict[str, Any]:
    """Reads the fields that all families spell alike."""
    heads, width = settings.count("num_attention_heads"), settings.count("hidden_size")
    kv_heads = settings.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise UserError(f"{settings.file}: {heads} query heads cannot be shared among {kv_heads} key-value heads")
    head_dim = settings.count("head_dim", width // heads)
    if head_dim % 2:
        found = "head_dim" if settings("head_dim", None) else "hidden_size / num_attention_heads, the width of a head,"
        raise UserError(f"{settings.file}: {found} is {head_dim}; rotary positions turn pairs, so it must be even")
    return {
        "vocab_size": settings.count("vocab_size", most=2**24),
        "width": width,
        "layers": settings.count("num_hidden_layers", most=10_000),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "ffn": settings.count("intermediate_size"),
        "context": settings.count("max_position_embeddings", most=2**31),
        "norm_eps": settings.number("rms_norm_eps", 1e-6),
    }


def _plain(settings: _Settings, **switches: Any) -> Architecture:
    """Reads an architecture of Qwen or Llama: SwiGLU, and every layer sees all positions."""
    settings.refuse("hidden_act", "silu", "silu")
    settings.refuse("use_sliding_window", False, False)
    settings.refuse("mlp_bias", False, False)
    spelling = "rope_parameters" if settings("rope_parameters", None) else "rope_scaling"
    theta, scaling = _rope(settings, settings.within(spelling, {}))
    tied = settings.switch("tie_word_embeddings", False)
    return Architecture(**_common(settings), rope_theta=theta, rope_scaling=scaling, tied=tied, **switches)


def _qwen3(settings: _Settings) -> Architecture:
    settings.refuse("attention_bias", False, False)
    return _plain(settings, qk_norm=True)


def _qwen2(settings: _Settings) -> Architecture:
    return _plain(settings, qk_norm=False, attention_bias=True)


def _llama(settings: _Settings) -> Architecture:
    settings.refuse("attention_bias", False, False)
    return _plain(settings, qk_norm=False)


def _gemma3(settings: _Settings) -> Architecture:
    settings.refuse("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    settings.refuse("attention_bias", False, False)
    settings.refuse("attn_logit_softcapping", None, None)
    settings.refuse("use_bidirectional_attention", False, False)
    if settings("rope_parameters", None):
        rope = settings.within("rope_parameters")
        theta, scaling = _rope(settings, rope.within("full_attention"))
        local_theta, local_scaling = _rope(settings, rope.within("sliding_attention"))
        if local_scaling:
            raise UserError(f"{settings.file}: rotary scaling of local layers is not supported")
    else:
        theta, scaling = _rope(settings, settings.within("rope_scaling", {}), 1e6)
        local_theta = settings.number("rope_local_base_freq", 1e4)
    common = _common(settings)
    pattern = settings.count("sliding_window_pattern", 6)
    kinds = settings("layer_types", [])
    if not isinstance(kinds, list) or len(kinds) not in (0, common["layers"]):
        raise UserError(f"{settings.file}: layer_types is not a list of {common['layers']}, one for each layer")
    local = [kind == "sliding_attention" for kind in kinds]
    cap = settings("final_logit_softcapping", 0)
    return Architecture(
        **common,
        rope_theta=theta,
        rope_scaling=scaling,
        local_rope_theta=local_theta,
        local_layers=tuple(local or [bool((n + 1) % pattern) for n in range(common["layers"])]),
        window=settings.count("sliding_window", most=2**31),
        tied=settings.switch("tie_word_embeddings", True),
        activation="gelu",
        post_norms=True,
        norm_offset=1.0,
        embed_scale=common["width"] ** 0.5,
        query_scale=settings.number("query_pre_attn_scalar", 256) ** -0.5,
        logit_cap=settings.number("final_logit_softcapping") if cap else 0.0,
    )


FAMILIES: dict[str, Callable[[_Settings], Architecture]] = {
    "Qwen3ForCausalLM": _qwen3,
    "Qwen2ForCausalLM": _qwen2,
    "LlamaForCausalLM": _llama,
    "Gemma3ForCausalLM": _gemma3,
}
TYPES = {  # by model_type, for a config.json that lists no architectures
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
}
# Defaults of Gemma3TextConfig in transformers, for fields that a model of text and images omits in its text_config.
GEMMA3_TEXT = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}
BESIDE_TEXT = ("bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "dtype", "transformers_version")


def _family(fields: Mapping[str, Any]) -> Any:
    """Looks up the architecture that a config.json lists first, or that of its model_type if it lists none."""
    listed, kind = fields.get("architectures"), fields.get("model_type")
    name = listed[0] if isinstance(listed, list) and listed else listed
    return name or (TYPES.get(kind, kind) if isinstance(kind, str) else "none")


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the folder's config.json; for a Gemma 3 of text and images, returns that of its text part alone.

    Raises:
      UserError: there is none, it is not a JSON object, or a Gemma 3 of text and images has no text_config.
    """
    file = folder / "config.json"
    if not file.exists():
        found = dangling(file) or f"{folder} holds no config.json"
        raise UserError(f"{found}; a pretrained model's folder has one")
    fields = read_object(file)
    if _family(fields) != "Gemma3ForConditionalGeneration":
        return fields
    text = fields.get("text_config")
    if not isinstance(text, dict):
        raise UserError(
            f"{file} has no object text_config, which describes the text part; copy the model's folder again"
        )
    beside = {name: fields[name] for name in BESIDE_TEXT if name in fields}
    of_text = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    return GEMMA3_TEXT | beside | text | of_text


def pretrained_architecture(folder: Path) -> Architecture:
    """Reads the architecture of a Hugging Face folder, with float32 as its dtype.

    Raises:
      UserError: there is no config.json, or the family or one of its settings is not supported.
    """
    file, fields = folder / "config.json", read_config(folder)
    name = _family(fields)
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{file}: the architecture {name} is not supported; choose a model of {', '.join(FAMILIES)}")
    return FAMILIES[name](_Settings(file, fields))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A parameter's tensor in safetensors.

    Attributes:
      name: name of the tensor; in a layer it follows model.layers.N.
      inputs: number of leading axes of our parameter that are the matrix's inputs; the others are its outputs. Both are
        stored flat. A vector has no inputs and is stored flat, too.
      transposed: the matrix is stored as [outputs, inputs].
    """

    name: str
    inputs: int = 0
    transposed: bool = True


TOP = {
    "embed": Tensor("model.embed_tokens.weight", 1, transposed=False),
    "norm": Tensor("model.norm.weight"),
    "head": Tensor("lm_head.weight", 1),
}

LAYER = {
    "attention_norm": Tensor("input_layernorm.weight"),
    "query": Tensor("self_attn.q_proj.weight", 1),
    "key": Tensor("self_attn.k_proj.weight", 1),
    "value": Tensor("self_attn.v_proj.weight", 1),
    "out": Tensor("self_attn.o_proj.weight", 2),
    "query_bias": Tensor("self_attn.q_proj.bias"),
    "key_bias": Tensor("self_attn.k_proj.bias"),
    "value_bias": Tensor("self_attn.v_proj.bias"),
    "query_norm": Tensor("self_attn.q_norm.weight"),
    "key_norm": Tensor("self_attn.k_norm.weight"),
    "ffn_norm": Tensor("post_attention_layernorm.weight"),
    "gate": Tensor("mlp.gate_proj.weight", 1),
    "up": Tensor("mlp.up_proj.weight", 1),
    "down": Tensor("mlp.down_proj.weight", 1),
}

POST_NORMS = {  # Gemma's names for norms before and after
    "attention_post_norm": Tensor("post_attention_layernorm.weight"),
    "ffn_norm": Tensor("pre_feedforward_layernorm.weight"),
    "ffn_post_norm": Tensor("post_feedforward_layernorm.weight"),
}


def layer_tensors(arch: Architecture) -> dict[str, Tensor]:
    """Looks up the tensor of each parameter of a layer."""
    return LAYER | POST_NORMS if arch.post_norms else LAYER
