"""The table of model sizes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Everything that fixes a decoder's shape and arithmetic.

    Attributes:
      vocab_size: V, number of token ids.
      width: D, of the residual stream.
      layers: N.
      heads: H, query heads.
      kv_heads: K, key-value heads; H is a multiple of K.
      head_dim: h; not necessarily D / H.
      ffn: width of the SwiGLU.
      context: positions the model was made for; prompt, rationale and answer together must fit.
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the mean square in every RMSNorm.
      qk_norm: RMSNorm of every query and key head before the rotation (Qwen3).
      tied: the output head is the transposed embedding.
      dtype: of the computation; softmax and log-probabilities are float32 whatever it is.
      remat: the backward pass recomputes each layer instead of keeping its activations.
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
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot be shared out over {self.kv_heads} key-value heads")


# vocab_size is that of the pretrained tokeniser where there is one; models trained here take their tokeniser's.
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
