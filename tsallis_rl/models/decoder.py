"""The decoder: RMSNorm, rotary positions, grouped-query attention, gated feed-forward, scanned layers.

Qwen3, Qwen2.5, Llama 3 and Gemma 3 are settings of `Architecture`. Where layers differ from each other (rotary
frequencies, how far back they see), the difference is an array with a leading N that is scanned with the parameters.

A group is a shape: tokens come as [P, M, T], and attention has up to three parts, each with the keys where they are:

                 keys of the prompt   keys of the rollout's past   keys of the tokens themselves
                 [P, K, S, h]         [P, M, K, S, h]              [P, M, K, T, h]
    query t      held once per group  behind a length per rollout  causal: 0 … t

These are the shapes of values; keys are kept transposed, [P, K, h, S] and so on, so that both products of a decoding
step run along memory.

The parts' softmaxes are merged by their log-sum-exp, so the prompt is computed and stored once for its M rollouts, in
training as in decoding. A flat sequence is a group of one with no other parts.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from tsallis_rl.mesh import gathered
from tsallis_rl.models import lora
from tsallis_rl.models.precision import einsum_float32
from tsallis_rl.models.sizes import Architecture

PROJECTIONS = ("query", "key", "value", "out", "gate", "up", "down")
DENSE = 32  # keys from which a product with a vector is multiplied and summed
MASKED = -1e30  # finite: a part that is masked whole gets weight exp(MASKED − top) = 0, not NaN


class KeyValues(NamedTuple):
    """Keys and values of one layer, or of all with a leading N.

    Attributes:
      keys: [P, K, h, S] for a prompt, [P, M, K, h, S] for rollouts.
      values: [P, K, S, h] and [P, M, K, S, h].
    """

    keys: Array
    values: Array

    def grown(self, more: int, fill: float = 0.0) -> "KeyValues":
        """The same with room for `more` tokens behind."""
        rank = self.keys.ndim
        keys, values = ([(0, more if axis == at else 0) for axis in range(rank)] for at in (rank - 1, rank - 2))
        return KeyValues(
            jnp.pad(self.keys, keys, constant_values=fill), jnp.pad(self.values, values, constant_values=fill)
        )

    def written(self, new: "KeyValues", start: Array) -> "KeyValues":
        """The same with new tokens at places start, start + 1, …."""
        update, axis = jax.lax.dynamic_update_slice_in_dim, self.keys.ndim
        return KeyValues(update(self.keys, new.keys, start, axis - 1), update(self.values, new.values, start, axis - 2))


class Part(NamedTuple):
    """One part of the attention's keys: those of a prompt (rank 4) or of rollouts (rank 5).

    Attributes:
      kv: keys and values.
      mask: True where a query may look; [P, 1, 1, S] for a prompt, [P, M, 1, S] or [T, S] for rollouts, and
        [P, M, T, S] or [T, S] in a layer that sees a window.
    """

    kv: KeyValues
    mask: Array


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """x over its root mean square along the last axis, in float32, times scale; dtype of x."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


def rotary_frequencies(arch: Architecture) -> np.ndarray:
    """Radians per position [N, h / 2], float32, with each layer's base and the model's scaling for long contexts."""
    exponent = -np.arange(arch.head_dim // 2) / (arch.head_dim // 2)
    frequency = arch.rope_theta**exponent
    if scaling := arch.rope_scaling:
        turns = scaling.original_context * frequency / (2 * np.pi)
        kept = np.clip((turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor), 0, 1)
        frequency = kept * frequency + (1 - kept) * frequency / scaling.factor
    local = np.array(arch.local_layers or [False] * arch.layers)[:, None]
    return np.where(local, arch.local_rope_theta**exponent, frequency).astype(np.float32)


def rotate(x: Array, positions: Array, frequency: Array) -> Array:
    """Rotary position embedding, the two halves of a head paired.

    Args:
      x: [..., T, heads, h].
      positions: [..., T].
      frequency: [h / 2] radians per position.

    Returns:
      the shape and dtype of x.
    """
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _is_decoding(x: Array, keys: int, rank: int) -> bool:
    """One token of a rollout over many keys of its own: XLA's dots do not do this at memory's speed."""
    return rank == 5 and x.shape[2] == 1 and keys >= DENSE


def _scores(query: Array, keys: Array) -> Array:
    """query [P, M, T, K, G, h] · keys, [P, M, T, K, G, S] in float32."""
    if _is_decoding(query, keys.shape[-1], keys.ndim):
        return (query[..., None].astype(jnp.float32) * keys[:, :, None, :, None]).sum(-2)
    axes = "pkhs" if keys.ndim == 4 else "pmkhs"
    return einsum_float32(f"pmtkgh,{axes}->pmtkgs", query, keys)


def _weighted(weights: Array, values: Array) -> Array:
    """weights [P, M, T, K, G, S] · values, [P, M, T, K, G, h] in float32."""
    if _is_decoding(weights, weights.shape[-1], values.ndim):
        return (weights[..., None].astype(jnp.float32) * values[:, :, None, :, None]).sum(-2)
    axes = "pksh" if values.ndim == 4 else "pmksh"
    return einsum_float32(f"pmtkgs,{axes}->pmtkgh", weights, values)


def attend(query: Array, parts: Sequence[Part], scale: float) -> Array:
    """Softmax attention over the union of the parts' keys.

    Args:
      query: [P, M, T, K, G, h], G = H / K query heads to a key-value head.
      parts: see `Part`; every query must see at least one key.
      scale: multiplies the scores.

    Returns:
      [P, M, T, K, G, h].
    """
    query = query * scale
    tops, totals, sums = [], [], []
    for (keys, values), mask in parts:
        scores = _scores(query, keys)
        scores = jnp.where(mask[..., :, None, None, :], scores, MASKED)
        top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - top)
        tops.append(top)
        totals.append(weights.sum(axis=-1, keepdims=True))
        sums.append(_weighted(weights.astype(values.dtype), values))
    top = functools.reduce(jnp.maximum, tops)
    shares = [jnp.exp(part_top - top) for part_top in tops]
    total = sum(share * part_total for share, part_total in zip(shares, totals, strict=True))
    merged = sum(share * part_sum for share, part_sum in zip(shares, sums, strict=True))
    return (merged / total).astype(query.dtype)


def _project(x: Array, matrix: Array) -> Array:
    """x [P, M, T, *a] times matrix [*a, …]. One flat contraction: the backward pass is twice as fast on a CPU."""
    tokens, inputs = x.shape[:3], x.shape[3:]
    flat = x.reshape(math.prod(tokens), -1) @ matrix.reshape(math.prod(inputs), -1)
    return flat.reshape(*tokens, *matrix.shape[len(inputs) :])


class LayerConstants(NamedTuple):
    """What layers differ in besides parameters; a leading N where they are stacked.

    Attributes:
      frequency: [h / 2] rotary frequencies.
      window: how many positions back a query sees, its own included; None where all layers see everything.
    """

    frequency: Array
    window: Array | None


def layer_constants(arch: Architecture) -> LayerConstants:
    """Stacked over the layers."""
    everything = np.iinfo(np.int32).max
    window = np.where(arch.local_layers, np.int32(arch.window), everything) if arch.local_layers else None
    return LayerConstants(rotary_frequencies(arch), window)


def _near(mask: Array, distance: Array, window: Array | None) -> Array:
    """The mask where the key is less than `window` positions before the query."""
    return mask if window is None else mask & (distance < window)


class Layer(nnx.Module):
    """Attention and gated feed-forward, each behind its norm, each added to the residual stream."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        width, heads, kv_heads, head_dim, ffn = arch.width, arch.heads, arch.kv_heads, arch.head_dim, arch.ffn
        into = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=-1)
        back = nnx.initializers.normal((2 * arch.layers * width) ** -0.5)  # the stream's variance stays near one
        self.arch = arch
        one = 1.0 - arch.norm_offset
        self.attention_norm = nnx.Param(jnp.full(width, one))
        self.query = nnx.Param(into(rngs.params(), (width, heads * head_dim)).reshape(width, heads, head_dim))
        self.key = nnx.Param(into(rngs.params(), (width, kv_heads * head_dim)).reshape(width, kv_heads, head_dim))
        self.value = nnx.Param(into(rngs.params(), (width, kv_heads * head_dim)).reshape(width, kv_heads, head_dim))
        self.out = nnx.Param(back(rngs.params(), (heads, head_dim, width)))
        if arch.attention_bias:
            self.query_bias = nnx.Param(jnp.zeros((heads, head_dim)))
            self.key_bias = nnx.Param(jnp.zeros((kv_heads, head_dim)))
            self.value_bias = nnx.Param(jnp.zeros((kv_heads, head_dim)))
        if arch.qk_norm:
            self.query_norm = nnx.Param(jnp.full(head_dim, one))
            self.key_norm = nnx.Param(jnp.full(head_dim, one))
        self.ffn_norm = nnx.Param(jnp.full(width, one))
        self.gate = nnx.Param(into(rngs.params(), (width, ffn)))
        self.up = nnx.Param(into(rngs.params(), (width, ffn)))
        self.down = nnx.Param(back(rngs.params(), (ffn, width)))
        if arch.post_norms:
            self.attention_post_norm = nnx.Param(jnp.full(width, one))
            self.ffn_post_norm = nnx.Param(jnp.full(width, one))
        if arch.lora_rank:
            for name in PROJECTIONS:
                shape = getattr(self, name).shape
                inputs = 2 if name == "out" else 1
                spread = math.prod(shape[:inputs]) ** -0.5
                start = spread * jax.random.normal(rngs.params(), (*shape[:inputs], arch.lora_rank))
                setattr(self, name + lora.IN, nnx.Param(start))
                setattr(self, name + lora.OUT, nnx.Param(jnp.zeros((arch.lora_rank, *shape[inputs:]))))

    def __call__(
        self, x: Array, positions: Array, context: Sequence[Part], constants: LayerConstants
    ) -> tuple[Array, KeyValues]:
        """x [P, M, T, D] and positions [P, M, T] to the new x and the tokens' own keys and values."""
        arch, tokens = self.arch, x.shape[:3]
        normed = self._norm(x, self.attention_norm)
        query, key, value = (self._projected(normed, name) for name in ("query", "key", "value"))
        if arch.attention_bias:
            query, key, value = query + self.query_bias[...], key + self.key_bias[...], value + self.value_bias[...]
        if arch.qk_norm:
            query, key = self._norm(query, self.query_norm), self._norm(key, self.key_norm)
        query = rotate(query, positions, constants.frequency)
        key = rotate(key, positions, constants.frequency)
        kv = KeyValues(jnp.moveaxis(key, 2, -1), value.swapaxes(2, 3))

        index = jnp.arange(tokens[2])
        distance = index[:, None] - index
        own = Part(kv, _near(distance >= 0, distance, constants.window))
        grouped = query.reshape(*tokens, arch.kv_heads, arch.heads // arch.kv_heads, arch.head_dim)
        scale = arch.query_scale or arch.head_dim**-0.5
        attended = attend(grouped, [*context, own], scale).reshape(*tokens, arch.heads, arch.head_dim)
        attended = self._projected(attended, "out")
        x = x + (self._norm(attended, self.attention_post_norm) if arch.post_norms else attended)

        normed = self._norm(x, self.ffn_norm)
        activation = getattr(jax.nn, arch.activation)
        gated = activation(self._projected(normed, "gate")) * self._projected(normed, "up")
        gated = self._projected(gated, "down")
        return x + (self._norm(gated, self.ffn_post_norm) if arch.post_norms else gated), kv

    def _projected(self, x: Array, name: str) -> Array:
        """x times one of PROJECTIONS and its adapter."""
        y = _project(x, gathered(name, getattr(self, name)[...]))
        if not self.arch.lora_rank:
            return y
        into, out = (getattr(self, name + suffix)[...] for suffix in (lora.IN, lora.OUT))
        return y + self.arch.lora_alpha / self.arch.lora_rank * _project(_project(x, into), out)

    def _norm(self, x: Array, scale: nnx.Param) -> Array:
        return rms_norm(x, scale[...] + self.arch.norm_offset, self.arch.norm_eps)


class Decoder(nnx.Module):
    """Embedding, N layers whose parameters are stacked [N, …] and scanned, final norm, tied or untied head."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        self.arch = arch
        # Of the layers' size, so that a token is not drowned in what they add; small where it is the head as well.
        spread = 0.02 if arch.tied else 1.0
        self.embed = nnx.Param(spread * jax.random.normal(rngs.params(), (arch.vocab_size, arch.width)))
        layer_keys = jax.random.split(rngs.params(), arch.layers)
        self.layers = nnx.vmap(lambda key: Layer(arch, nnx.Rngs(key)))(layer_keys)
        self.norm = nnx.Param(jnp.full(arch.width, 1.0 - arch.norm_offset))
        if not arch.tied:
            self.head = nnx.Param(0.02 * jax.random.normal(rngs.params(), (arch.width, arch.vocab_size)))

    def output_head(self) -> Array:
        """The matrix [D, V] that turns hidden states into logits."""
        return gathered("embed", self.embed[...]).T if self.arch.tied else gathered("head", self.head[...])

    def extend(
        self,
        tokens: Array,
        positions: Array,
        *,
        prompt: KeyValues | None = None,
        prompt_mask: Array | None = None,
        past: KeyValues | None = None,
        past_mask: Array | None = None,
    ) -> tuple[Array, KeyValues]:
        """Reads tokens behind what was read before: the prompt from position 0, the past up to the tokens' first.

        Args:
          tokens: [P, M, T] ids.
          positions: [P, M, T].
          prompt: [N, …] keys and values shared by the group's rollouts.
          prompt_mask: [P, S], True at the prompt's keys.
          past: [N, …], each rollout's own.
          past_mask: [P, M, S], True at keys already written.

        Returns:
          hidden states behind the final norm, [P, M, T, D], and the tokens' keys and values, [N, …].
        """
        graph, stacked = nnx.split(self.layers)

        def one_layer(x: Array, inputs: tuple) -> tuple[Array, KeyValues]:
            layer_state, constants, prompt_kv, past_kv = inputs
            context = []
            if prompt_kv is not None:
                distance = positions[..., None] - jnp.arange(prompt_mask.shape[1])
                context.append(Part(prompt_kv, _near(prompt_mask[:, None, None, :], distance, constants.window)))
            if past_kv is not None:
                start = positions[..., :1] - past_mask.sum(-1, keepdims=True)  # position of the past's first key
                key_positions = start + jnp.arange(past_mask.shape[2])
                distance = positions[..., None] - key_positions[:, :, None]
                context.append(Part(past_kv, _near(past_mask[:, :, None, :], distance, constants.window)))
            return nnx.merge(graph, layer_state)(x, positions, context, constants)

        x = gathered("embed", self.embed[...])[tokens] * self.arch.embed_scale
        step = jax.checkpoint(one_layer) if self.arch.remat else one_layer
        # A loop over two layers costs more in copies than its compilation saves.
        x, kv = jax.lax.scan(step, x, (stacked, layer_constants(self.arch), prompt, past), unroll=self.arch.layers <= 2)
        return rms_norm(x, self.norm[...] + self.arch.norm_offset, self.arch.norm_eps), kv

    def prefill(self, tokens: Array) -> tuple[Array, KeyValues]:
        """Reads flat sequences [P, T] from position 0: hidden states [P, T, D], keys and values [N, …] of a prompt.

        Sequences are right-padded; what stands behind a sequence's end does not reach into it.
        """
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, kv = self.extend(tokens[:, None], positions[:, None])
        return hidden[:, 0], KeyValues(kv.keys[:, :, 0], kv.values[:, :, 0])


@functools.cache
def _graph(arch: Architecture) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: Decoder(arch, nnx.Rngs(0))))[0]


def initialize(arch: Architecture, key: Array) -> dict:
    """Fresh float32 parameters as a plain dict of arrays: what is jitted, sharded and saved."""
    return nnx.to_pure_dict(nnx.split(Decoder(arch, nnx.Rngs(key)))[1])


def bind(arch: Architecture, params: dict) -> Decoder:
    """The module over these parameters, cast once to the dtype of the computation."""
    return nnx.merge(_graph(arch), jax.tree.map(lambda x: x.astype(arch.dtype), params))
