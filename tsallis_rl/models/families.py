"""Pretrained families: a Hugging Face config.json as an `Architecture`, and the names of their tensors."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tsallis_rl.errors import UserError
from tsallis_rl.models.sizes import Architecture, RopeScaling


class _Settings:
    """A config.json that answers a missing or unsupported field with a sentence."""

    def __init__(self, file: Path, fields: Mapping[str, Any]):
        self.file = file
        self._fields = fields

    def __call__(self, name: str, *default: Any) -> Any:
        """The field, or the default where it is absent or null; an error where there is none."""
        value = self._fields.get(name)
        if value is not None:
            return value
        if not default:
            raise UserError(f"{self.file} has no field {name!r}; copy the model's folder again")
        return default[0]

    def refuse(self, name: str, accepted: Any, default: Any) -> None:
        """Refuses a field whose value changes the computation in a way that the decoder does not know."""
        value = self(name, default)
        if value != accepted:
            raise UserError(f"{self.file}: {name}={value!r} is not supported, only {accepted!r}")


def _rope(settings: _Settings, rope: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling from the fields of either spelling of config.json."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = float(rope.get("rope_theta") or settings("rope_theta"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(float(rope["factor"]))
    if kind == "llama3":
        return theta, RopeScaling(
            factor=float(rope["factor"]),
            original_context=int(rope["original_max_position_embeddings"]),
            low_factor=float(rope["low_freq_factor"]),
            high_factor=float(rope["high_freq_factor"]),
        )
    raise UserError(
        f"{settings.file}: rotary scaling {kind!r} is not supported, only linear and llama3; without it (remove "
        "rope_scaling) the model has its original context"
    )


def _common(settings: _Settings) -> dict[str, Any]:
    """What all families spell alike."""
    heads, width = settings("num_attention_heads"), settings("hidden_size")
    return {
        "vocab_size": settings("vocab_size"),
        "width": width,
        "layers": settings("num_hidden_layers"),
        "heads": heads,
        "kv_heads": settings("num_key_value_heads", heads),
        "head_dim": settings("head_dim", width // heads),
        "ffn": settings("intermediate_size"),
        "context": settings("max_position_embeddings"),
        "norm_eps": settings("rms_norm_eps", 1e-6),
    }


def _plain(settings: _Settings, **switches: Any) -> Architecture:
    """Qwen and Llama: SwiGLU, every layer sees everything."""
    settings.refuse("hidden_act", "silu", "silu")
    settings.refuse("use_sliding_window", False, False)
    settings.refuse("mlp_bias", False, False)
    theta, scaling = _rope(settings, settings("rope_parameters", None) or settings("rope_scaling", {}))
    tied = settings("tie_word_embeddings", False)
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
    rope = settings("rope_parameters", {})
    if rope:
        theta, scaling = _rope(settings, rope["full_attention"])
        local_theta, local_scaling = _rope(settings, rope["sliding_attention"])
        if local_scaling:
            raise UserError(f"{settings.file}: rotary scaling of local layers is not supported")
    else:
        theta, scaling = _rope(settings, {"rope_theta": settings("rope_theta", 1e6)} | settings("rope_scaling", {}))
        local_theta = settings("rope_local_base_freq", 1e4)
    common = _common(settings)
    pattern = settings("sliding_window_pattern", 6)
    kinds = settings("layer_types", None)
    local = [kind == "sliding_attention" for kind in kinds] if kinds else None
    return Architecture(
        **common,
        rope_theta=theta,
        rope_scaling=scaling,
        local_rope_theta=float(local_theta),
        local_layers=tuple(local or [bool((n + 1) % pattern) for n in range(common["layers"])]),
        window=settings("sliding_window"),
        tied=settings("tie_word_embeddings", True),
        activation="gelu",
        post_norms=True,
        norm_offset=1.0,
        embed_scale=common["width"] ** 0.5,
        query_scale=settings("query_pre_attn_scalar", 256) ** -0.5,
        logit_cap=settings("final_logit_softcapping", 0.0),
    )


FAMILIES: dict[str, Callable[[_Settings], Architecture]] = {
    "Qwen3ForCausalLM": _qwen3,
    "Qwen2ForCausalLM": _qwen2,
    "LlamaForCausalLM": _llama,
    "Gemma3ForCausalLM": _gemma3,
}


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; raises UserError when there is none or it is not JSON."""
    file = folder / "config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no config.json; a pretrained model's folder has one") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); copy the model's folder again") from None


def pretrained_architecture(folder: Path) -> Architecture:
    """The architecture of a Hugging Face folder, computing in float32.

    Raises:
      UserError: no config.json, a family that is not supported, or a setting of it that is not.
    """
    fields = read_config(folder)
    (name, *_) = fields.get("architectures") or ["none"]
    if name not in FAMILIES:
        raise UserError(
            f"{folder / 'config.json'}: the architecture {name} is not supported; choose a model of "
            f"{', '.join(FAMILIES)}"
        )
    try:
        return FAMILIES[name](_Settings(folder / "config.json", fields))
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'}: its rotary settings have no field {error}") from None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a parameter is in safetensors.

    Attributes:
      name: of the tensor; a layer's stand behind model.layers.N.
      inputs: how many leading axes of ours are a matrix's inputs, the others being its outputs; both are held flat,
        as is a vector, which has no inputs.
      transposed: the matrix is held as [outputs, inputs].
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

POST_NORMS = {  # Gemma's names for norms before and behind
    "attention_post_norm": Tensor("post_attention_layernorm.weight"),
    "ffn_norm": Tensor("pre_feedforward_layernorm.weight"),
    "ffn_post_norm": Tensor("post_feedforward_layernorm.weight"),
}


def layer_tensors(arch: Architecture) -> dict[str, Tensor]:
    """Where each parameter of a layer is."""
    return LAYER | POST_NORMS if arch.post_norms else LAYER
