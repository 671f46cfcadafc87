"""The decoder: RMSNorm, rotary positions, grouped-query attention with per-head QK-norm, SwiGLU, scanned layers.

A group is a shape: tokens come as [P, M, T], and attention has up to three parts, each with the keys where they are:

                 keys of the prompt   keys of the rollout's past   keys of the tokens themselves
                 [P, K, S, h]         [P, M, K, S, h]              [P, M, K, T, h]
    query t      held once per group  behind a length per rollout  causal: 0 … t

The parts' softmaxes are merged by their log-sum-exp, so the prompt is computed and stored once for its M rollouts, in
training as in decoding. A flat sequence is a group of one with no other parts.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from tsallis_rl.models.sizes import Architecture

MASKED = -1e30  # finite: a part that is masked whole gets weight exp(MASKED − top) = 0, not NaN


class KeyValues(NamedTuple):
    """Keys and values of one layer, or of all with a leading N.

    Attributes:
      keys: [P, K, S, h] for a prompt, [P, M, K, S, h] for rollouts.
      values: the same shape.
    """

    keys: Array
    values: Array


class Part(NamedTuple):
    """One part of the attention's keys: those of a prompt (rank 4) or of rollouts (rank 5).

    Attributes:
      kv: keys and values.
      mask: True where a query may look; [P, 1, 1, S] for a prompt, [P, M, 1, S] or [T, S] for rollouts.
    """

    kv: KeyValues
    mask: Array


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """x over its root mean square along the last axis, in float32, times scale; dtype of x."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


def rotate(x: Array, positions: Array, theta: float) -> Array:
    """Rotary position embedding, the two halves of a head paired; x [..., T, heads, h], positions [..., T]."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend(query: Array, parts: Sequence[Part]) -> Array:
    """Softmax attention over the union of the parts' keys.

    Args:
      query: [P, M, T, K, G, h], G = H / K query heads to a key-value head.
      parts: see `Part`; every query must see at least one key.

    Returns:
      [P, M, T, K, G, h].
    """
    query = query * query.shape[-1] ** -0.5
    tops, totals, sums = [], [], []
    for (keys, values), mask in parts:
        axes = "pksh" if keys.ndim == 4 else "pmksh"
        scores = jnp.einsum(f"pmtkgh,{axes}->pmtkgs", query, keys, preferred_element_type=jnp.float32)
        scores = jnp.where(mask[..., :, None, None, :], scores, MASKED)
        top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - top)
        tops.append(top)
        totals.append(weights.sum(axis=-1, keepdims=True))
        weights = weights.astype(values.dtype)
        sums.append(jnp.einsum(f"pmtkgs,{axes}->pmtkgh", weights, values, preferred_element_type=jnp.float32))
    top = functools.reduce(jnp.maximum, tops)
    shares = [jnp.exp(part_top - top) for part_top in tops]
    total = sum(share * part_total for share, part_total in zip(shares, totals, strict=True))
    merged = sum(share * part_sum for share, part_sum in zip(shares, sums, strict=True))
    return (merged / total).astype(query.dtype)


def _project(x: Array, matrix: Array) -> Array:
    """x [P, M, T, a] times matrix [a, …]. One flat contraction: the backward pass is twice as fast on a CPU."""
    flat = x.reshape(-1, x.shape[-1]) @ matrix.reshape(matrix.shape[0], -1)
    return flat.reshape(*x.shape[:-1], *matrix.shape[1:])


class Layer(nnx.Module):
    """Attention and SwiGLU, each behind its norm, each added to the residual stream."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        width, heads, kv_heads, head_dim, ffn = arch.width, arch.heads, arch.kv_heads, arch.head_dim, arch.ffn
        into = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=-1)
        back = nnx.initializers.normal((2 * arch.layers * width) ** -0.5)  # the stream's variance stays near one
        self.arch = arch
        self.attention_norm = nnx.Param(jnp.ones(width))
        self.query = nnx.Param(into(rngs.params(), (width, heads * head_dim)).reshape(width, heads, head_dim))
        self.key = nnx.Param(into(rngs.params(), (width, kv_heads * head_dim)).reshape(width, kv_heads, head_dim))
        self.value = nnx.Param(into(rngs.params(), (width, kv_heads * head_dim)).reshape(width, kv_heads, head_dim))
        self.out = nnx.Param(back(rngs.params(), (heads, head_dim, width)))
        if arch.qk_norm:
            self.query_norm = nnx.Param(jnp.ones(head_dim))
            self.key_norm = nnx.Param(jnp.ones(head_dim))
        self.ffn_norm = nnx.Param(jnp.ones(width))
        self.gate = nnx.Param(into(rngs.params(), (width, ffn)))
        self.up = nnx.Param(into(rngs.params(), (width, ffn)))
        self.down = nnx.Param(back(rngs.params(), (ffn, width)))

    def __call__(self, x: Array, positions: Array, context: Sequence[Part]) -> tuple[Array, KeyValues]:
        """x [P, M, T, D] and positions [P, M, T] to the new x and the tokens' own keys and values [P, M, K, T, h]."""
        arch, tokens = self.arch, x.shape[:3]
        normed = rms_norm(x, self.attention_norm[...], arch.norm_eps)
        query = _project(normed, self.query[...])
        key = _project(normed, self.key[...])
        value = _project(normed, self.value[...])
        if arch.qk_norm:
            query = rms_norm(query, self.query_norm[...], arch.norm_eps)
            key = rms_norm(key, self.key_norm[...], arch.norm_eps)
        query = rotate(query, positions, arch.rope_theta)
        key = rotate(key, positions, arch.rope_theta)
        kv = KeyValues(key.swapaxes(2, 3), value.swapaxes(2, 3))

        own = Part(kv, jnp.tril(jnp.ones((tokens[2], tokens[2]), bool)))
        grouped = query.reshape(*tokens, arch.kv_heads, arch.heads // arch.kv_heads, arch.head_dim)
        attended = attend(grouped, [*context, own]).reshape(*tokens, arch.heads * arch.head_dim)
        x = x + _project(attended, self.out[...].reshape(-1, arch.width))

        normed = rms_norm(x, self.ffn_norm[...], arch.norm_eps)
        gated = jax.nn.silu(_project(normed, self.gate[...])) * _project(normed, self.up[...])
        return x + _project(gated, self.down[...]), kv


class Decoder(nnx.Module):
    """Embedding, N layers whose parameters are stacked [N, …] and scanned, final norm, tied or untied head."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        self.arch = arch
        # Of the layers' size, so that a token is not drowned in what they add; small where it is the head as well.
        spread = 0.02 if arch.tied else 1.0
        self.embed = nnx.Param(spread * jax.random.normal(rngs.params(), (arch.vocab_size, arch.width)))
        layer_keys = jax.random.split(rngs.params(), arch.layers)
        self.layers = nnx.vmap(lambda key: Layer(arch, nnx.Rngs(key)))(layer_keys)
        self.norm = nnx.Param(jnp.ones(arch.width))
        if not arch.tied:
            self.head = nnx.Param(0.02 * jax.random.normal(rngs.params(), (arch.width, arch.vocab_size)))

    def output_head(self) -> Array:
        """The matrix [D, V] that turns hidden states into logits."""
        return self.embed[...].T if self.arch.tied else self.head[...]

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
        """Reads tokens behind what was read before.

        Args:
          tokens: [P, M, T] ids.
          positions: [P, M, T].
          prompt: [N, P, K, S, h] keys and values shared by the group's rollouts.
          prompt_mask: [P, S], True at the prompt's keys.
          past: [N, P, M, K, S, h], each rollout's own.
          past_mask: [P, M, S], True at keys already written.

        Returns:
          hidden states behind the final norm, [P, M, T, D], and the tokens' keys and values, [N, P, M, K, T, h].
        """
        graph, stacked = nnx.split(self.layers)

        def one_layer(x: Array, inputs: tuple) -> tuple[Array, KeyValues]:
            layer_state, prompt_kv, past_kv = inputs
            context = []
            if prompt_kv is not None:
                context.append(Part(prompt_kv, prompt_mask[:, None, None, :]))
            if past_kv is not None:
                context.append(Part(past_kv, past_mask[:, :, None, :]))
            return nnx.merge(graph, layer_state)(x, positions, context)

        x = self.embed[...][tokens]
        step = jax.checkpoint(one_layer) if self.arch.remat else one_layer
        x, kv = jax.lax.scan(step, x, (stacked, prompt, past))
        return rms_norm(x, self.norm[...], self.arch.norm_eps), kv

    def prefill(self, tokens: Array) -> tuple[Array, KeyValues]:
        """Reads flat sequences [P, T] from position 0: hidden states [P, T, D], keys and values [N, P, K, T, h].

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
