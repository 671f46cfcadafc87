"""Architectures of decoders, and the table of sizes that need no pretrained folder."""

import dataclasses
from typing import NamedTuple

PROJECTIONS = ("query", "key", "value", "out", "gate", "up", "down")  # the matrices of a layer


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Change of a model's rotary frequencies for contexts longer than it was pretrained on.

    Attributes:
      factor: divides low frequencies.
      original_context: positions of pretraining; 0: every frequency is divided ("linear").
      low_factor: a frequency with fewer turns than this within original_context is divided ("llama3").
      high_factor: a frequency with more turns than this is kept; in between, the two are interpolated.
    """

    factor: float
    original_context: int = 0
    low_factor: float = 1.0
    high_factor: float = 4.0


class LogitForm(NamedTuple):
    """How the product of a hidden state and the output head becomes logits.

    Attributes:
      cap: c of logits c tanh(logits / c); 0 is none.
      absent: ranges [start, stop) of ids that have no token; their logits are −inf, so they are never sampled.
    """

    cap: float = 0.0
    absent: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Shape and arithmetic of a decoder.

    Attributes:
      vocab_size: V, number of token ids.
      width: D, width of the residual.
      layers: N.
      heads: H, query heads.
      kv_heads: K, key-value heads; H is a multiple of K.
      head_dim: h; not necessarily D / H.
      ffn: width of the gated feed-forward.
      context: positions that the model was made for; prompt, rationale and answer together must fit.
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the mean square in every RMSNorm.
      qk_norm: RMSNorm of every query and key head before the rotation (Qwen3).
      tied: the output head is the transposed embedding.
      attention_bias: queries, keys and values have a bias (Qwen2.5).
      activation: activation of the gate, a name in jax.nn; "gelu" is the tanh approximation (Gemma 3).
      post_norms: RMSNorms also after attention and after the feed-forward (Gemma 3).
      norm_offset: added to the stored scale of every RMSNorm: Gemma 3 stores scale − 1.
      embed_scale: multiplies input embeddings, not the head (Gemma 3).
      query_scale: multiplies attention scores; 0 is h^−½.
      logit_cap: see `LogitForm.cap`.
      absent_ids: see `LogitForm.absent`.
      rope_scaling: scaling in layers that see all positions; None is none.
      local_layers: True for each layer that sees only `window` positions back, its own included; () is none (Gemma 3).
      window: positions that a local layer sees.
      local_rope_theta: base of the local layers' rotary frequencies.
      lora_rank: r of the adapters of a layer's projections; with adapters, nothing else is trained. 0 is none.
      lora_alpha: α; adapters are multiplied by α / r.
      lora_targets: the projections that have an adapter, in the order of PROJECTIONS.
      dtype: dtype of the computation; softmax and log-probabilities are always float32.
      remat: what the backward pass recomputes: "none"; "matmuls", all but products and attention; "attention", all but
        attention and each layer's input; "layers", all but the input.
      attention: what computes attention: "library", a kernel wherever the processor has one that fits; "auto", that
        kernel on devices where it was measured to win; "xla", XLA.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = True
    tied: bool = True
    attention_bias: bool = False
    activation: str = "silu"
    post_norms: bool = False
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    query_scale: float = 0.0
    logit_cap: float = 0.0
    absent_ids: tuple[tuple[int, int], ...] = ()
    rope_scaling: RopeScaling | None = None
    local_layers: tuple[bool, ...] = ()
    window: int = 0
    local_rope_theta: float = 10_000.0
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_targets: tuple[str, ...] = PROJECTIONS
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot be shared among {self.kv_heads} key-value heads")

    @property
    def logit_form(self) -> LogitForm:
        """How products of hidden states and the output head become logits."""
        return LogitForm(self.logit_cap, self.absent_ids)

    @property
    def adapted(self) -> tuple[str, ...]:
        """The projections that have an adapter."""
        return self.lora_targets if self.lora_rank else ()

    @property
    def lora_scale(self) -> float:
        """α / r."""
        return self.lora_alpha / self.lora_rank

    def projection_shape(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the shapes of the inputs and of the outputs of one of PROJECTIONS."""
        width, heads, kv_heads, ffn = (
            (self.width,), (self.heads, self.head_dim), (self.kv_heads, self.head_dim), (self.ffn,)
        )  # fmt: skip
        return {
            "query": (width, heads), "key": (width, kv_heads), "value": (width, kv_heads), "out": (heads, width),
            "gate": (width, ffn), "up": (width, ffn), "down": (ffn, width),
        }[name]  # fmt: skip


# vocab_size is that of the pretrained tokeniser, if any; models trained here take that of their own tokeniser.
SIZES = {
    "tiny": Architecture(
        vocab_size=64,
        width=64,
        layers=2,
        heads=4,
        kv_heads=4,
        head_dim=16,
        ffn=192,
        context=4096,
        rope_theta=100.0,
        tied=False,
    ),
    "qwen3-0.6b": Architecture(
        vocab_size=151_936,
        width=1024,
        layers=28,
        heads=16,
        kv_heads=8,
        head_dim=128,
        ffn=3072,
        context=40_960,
        rope_theta=1_000_000.0,
    ),
}
