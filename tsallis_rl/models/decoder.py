"""The decoder: RMSNorm, rotary positions, grouped-query attention, gated feed-forward, scanned layers.

Qwen3, Qwen2.5, Llama 3 and Gemma 3 are settings of `Architecture`. Where layers differ from each other (rotary
frequencies, how far back they see), the difference is an array with a leading N that is scanned with the parameters.

A group is a shape: tokens come as [P, M, T]. Attention has up to three parts: keys of the prompt, of the rollout's past
and of the tokens themselves (`attention`). So the prompt is computed and stored once for its M rollouts, in training
and in decoding. A flat sequence is a group of one with no other parts.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from tsallis_rl.models import lora
from tsallis_rl.models.attention import (
    Interval,
    KeyValues,
    Part,
    RowCache,
    WriteAt,
    attend_in_order,
    decode_kernel,
    decoding,
    library_kernels,
)
from tsallis_rl.models.precision import precision_of
from tsallis_rl.models.rotary import Rotation, distinct_frequencies, rotate, rotations
from tsallis_rl.models.shapes import Expected, check_shapes
from tsallis_rl.models.sharding import gather_parameter
from tsallis_rl.models.sizes import Architecture
from tsallis_rl.models.slots import Slots

KEPT = {  # config.model.remat -> what the backward pass keeps of the forward pass
    "matmuls": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        library_kernels.keeps_attended,
    ),
    "attention": library_kernels.keeps_attended,
    "layers": jax.checkpoint_policies.nothing_saveable,
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rms_norm(x: Array, scale: Array, eps: float, dtype: str) -> Array:
    """Divides x [..., D] by its root mean square, in float32, and multiplies by scale [D]; returns `dtype`."""
    x32 = x.astype(jnp.float32)
    return (x32 * _inverse_rms(x32, eps) * scale.astype(jnp.float32)).astype(dtype)


def _inverse_rms(x: Array, eps: float) -> Array:
    return jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def _norm_backward(eps: float, dtype: str, kept: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """Differentiates `rms_norm`; sums over D and over tokens are written as products: sums are slow on a CPU."""
    x, scale = kept
    x32, scale32, grad32 = (y.astype(jnp.float32) for y in (x, scale, grad))
    inverse, both = _inverse_rms(x32, eps), x32 * grad32
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    along = exact("...d,d->...", both, scale32)[..., None] / x.shape[-1]
    d_x = inverse * (grad32 * scale32 - x32 * (inverse * inverse * along))
    return d_x.astype(x.dtype), exact("...,...d->d", inverse[..., 0], both).astype(scale.dtype)


rms_norm.defvjp(lambda x, scale, eps, dtype: (rms_norm(x, scale, eps, dtype), (x, scale)), _norm_backward)


def _norm_scale(scale: nnx.Param, arch: Architecture) -> Array:
    """Returns the scale of an RMSNorm in float32, since bfloat16 would round the sum with its offset."""
    return scale[...].astype(jnp.float32) + arch.norm_offset


def _project(x: Array, matrix: Array) -> Array:
    """Multiplies x [P, M, T, *a] by matrix [*a, …], as one flat contraction.

    Flattening makes the backward pass twice as fast on a CPU.
    """
    tokens, inputs = x.shape[:3], x.shape[3:]
    factors = x.reshape(math.prod(tokens), -1), matrix.reshape(math.prod(inputs), -1)
    flat = jnp.matmul(*factors, precision=precision_of(x.dtype))
    return flat.reshape(*tokens, *matrix.shape[len(inputs) :])


class Context(NamedTuple):
    """Keys that tokens see besides their own.

    Attributes:
      kv: keys and values, stacked over layers, or a list over layers; those of rollouts may be `RowCache`.
      length: how many of the S keys may be seen, from the first one: [P] of a prompt, [P, M] of rollouts.
      done: [P, M] True at rollouts whose outputs are no longer used: a kernel may skip their keys.
    """

    kv: KeyValues | Sequence[KeyValues | RowCache]
    length: Array
    done: Array | None = None

    @property
    def size(self) -> int:
        """Returns S."""
        return jax.tree.leaves(self.kv)[1].shape[-2]  # the values of all layers, or of the first


class LayerConstants(NamedTuple):
    """Constants that differ between layers, besides parameters; with a leading N where they are stacked.

    Attributes:
      rotation: index of the row of `distinct_frequencies` that rotates the layer's queries and keys.
      window: how many positions back a query sees, its own included; None if all layers see everything.
    """

    rotation: Array | np.ndarray
    window: Array | np.ndarray | None


def _windows(arch: Architecture) -> np.ndarray | None:
    everything = np.iinfo(np.int32).max
    return np.where(arch.local_layers, np.int32(arch.window), everything) if arch.local_layers else None


def _near(mask: Array, distance: Array, window: Array | None) -> Array:
    """Narrows a mask to keys that are less than `window` positions before the query."""
    return mask if window is None else mask & (distance < window)


def _interval(index: Array, window: Array | None, end: Array) -> Interval:
    """Computes the keys that each row's one query sees, from its index [P, M, 1] among them and their `end`."""
    return Interval(None if window is None else jnp.maximum(index[..., 0] - window + 1, 0), end)


class Layer(nnx.Module):
    """Attention and gated feed-forward, each after its norm, each added to the residual."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        width, heads, kv_heads, head_dim, ffn = arch.width, arch.heads, arch.kv_heads, arch.head_dim, arch.ffn
        into = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=-1)
        back = nnx.initializers.normal((2 * arch.layers * width) ** -0.5)  # the residual's variance stays near one
        self.arch = arch
        one = 1.0 - arch.norm_offset
        self.attention_norm = nnx.Param(jnp.full(width, one, jnp.float32))
        self.query = nnx.Param(into(rngs.params(), (width, heads * head_dim)).reshape(width, heads, head_dim))
        self.key = nnx.Param(into(rngs.params(), (width, kv_heads * head_dim)).reshape(width, kv_heads, head_dim))
        self.value = nnx.Param(into(rngs.params(), (width, kv_heads * head_dim)).reshape(width, kv_heads, head_dim))
        self.out = nnx.Param(back(rngs.params(), (heads, head_dim, width)))
        if arch.attention_bias:
            self.query_bias = nnx.Param(jnp.zeros((heads, head_dim)))
            self.key_bias = nnx.Param(jnp.zeros((kv_heads, head_dim)))
            self.value_bias = nnx.Param(jnp.zeros((kv_heads, head_dim)))
        if arch.qk_norm:
            self.query_norm = nnx.Param(jnp.full(head_dim, one, jnp.float32))
            self.key_norm = nnx.Param(jnp.full(head_dim, one, jnp.float32))
        self.ffn_norm = nnx.Param(jnp.full(width, one, jnp.float32))
        self.gate = nnx.Param(into(rngs.params(), (width, ffn)))
        self.up = nnx.Param(into(rngs.params(), (width, ffn)))
        self.down = nnx.Param(back(rngs.params(), (ffn, width)))
        if arch.post_norms:
            self.attention_post_norm = nnx.Param(jnp.full(width, one, jnp.float32))
            self.ffn_post_norm = nnx.Param(jnp.full(width, one, jnp.float32))
        if arch.lora_rank:
            for name in arch.lora_targets:
                shape = getattr(self, name).shape
                inputs = 2 if name == "out" else 1
                spread = math.prod(shape[:inputs]) ** -0.5
                start = spread * jax.random.normal(rngs.params(), (*shape[:inputs], arch.lora_rank))
                setattr(self, name + lora.IN, nnx.Param(start))
                setattr(self, name + lora.OUT, nnx.Param(jnp.zeros((arch.lora_rank, *shape[inputs:]))))

    def __call__(
        self,
        x: Array,
        rotation: Rotation,
        context: Sequence[Part],
        window: Array | None,
        write_at: WriteAt | None,
        start: Array | None,
    ) -> tuple[Array, KeyValues]:
        """Transforms x [P, M, T, D] → the new x, and the tokens' keys and values.

        Tokens see the context and each other, causally and from `start` on. With a `write_at`, their keys and values
        are first written into the context's last part, whose mask already shows them.
        """
        heads = self._project_heads(self._norm(x, self.attention_norm))
        if write_at is not None:
            attended, kv = self._decode(heads, rotation, context, write_at)
        else:
            query, kv = self._turn(heads, rotation)
            own = Part(kv, self._own_mask(x.shape[2], window, start))
            attended = self._attend(query, context, own, start, window)
        attended = self._project_by(attended.reshape(heads[0].shape), "out")
        x = x + (self._norm(attended, self.attention_post_norm) if self.arch.post_norms else attended)

        fed = self._feed_forward(self._norm(x, self.ffn_norm))
        return x + (self._norm(fed, self.ffn_post_norm) if self.arch.post_norms else fed), kv

    def _project_heads(self, x: Array) -> tuple[Array, Array, Array]:
        """Projects normed x [P, M, T, D] → queries [P, M, T, H, h], keys [P, M, T, K, h] and values."""
        query, key, value = (self._project_by(x, name) for name in ("query", "key", "value"))
        if self.arch.attention_bias:
            return query + self.query_bias[...], key + self.key_bias[...], value + self.value_bias[...]
        return query, key, value

    def _turn(self, heads: tuple[Array, Array, Array], rotation: Rotation) -> tuple[Array, KeyValues]:
        """Norms and rotates projected queries and keys → queries [P, M, T, H, h], and keys with values."""
        query, key, value = heads
        if self.arch.qk_norm:
            query, key = self._norm(query, self.query_norm), self._norm(key, self.key_norm)
        query, key = rotate(query, rotation), rotate(key, rotation)
        return query, KeyValues(jnp.moveaxis(key, 2, -1), value.swapaxes(2, 3))

    def _decode(
        self, heads: tuple[Array, Array, Array], rotation: Rotation, context: Sequence[Part], at: WriteAt
    ) -> tuple[Array, KeyValues | RowCache]:
        """Writes tokens into the last part's cache, then attends to all parts; also returns the cache."""
        arch = self.arch
        if not decoding.uses_kernel(arch.attention, arch.dtype, arch.head_dim):
            query, kv = self._turn(heads, rotation)
            return decoding.write_and_attend(self._grouped(query), kv, context, at, self._scale)
        norms = (self.query_norm, self.key_norm) if arch.qk_norm else ()
        scales = [_norm_scale(norm, arch) for norm in norms] or (None, None)
        one = decode_kernel.Heads(*(x[:, :, 0] for x in heads), *scales, eps=arch.norm_eps)
        return decode_kernel.attend(one, rotation, *context, at, self._scale)

    def _own_mask(self, tokens: int, window: Array | None, start: Array | None) -> Array:
        """Makes the causal mask of own keys, [P or 1, M or 1, T, T], within the window and from `start` on."""
        index = jnp.arange(tokens)
        distance = index[:, None] - index
        mask = _near(distance >= 0, distance, window)
        return mask[None, None] if start is None else mask & (index >= start[..., None])

    @property
    def _scale(self) -> float:
        """Returns the factor of the scores."""
        return self.arch.query_scale or self.arch.head_dim**-0.5

    def _grouped(self, query: Array) -> Array:
        """Groups queries [P, M, T, H, h] by key head → [P, M, T, K, G, h]."""
        arch = self.arch
        return query.reshape(*query.shape[:3], arch.kv_heads, arch.heads // arch.kv_heads, arch.head_dim)

    def _attend(
        self, query: Array, context: Sequence[Part], own: Part, start: Array | None, window: Array | None
    ) -> Array:
        """Attends with queries [P, M, T, H, h] to the context and to their own tokens → [P, M, T, K, G, h].

        Args:
          query: rotated.
          context: parts that come before.
          own: the tokens themselves, in their order.
          start: see `Decoder.extend`; already part of the masks.
          window: see `LayerConstants`; already part of the masks.
        """
        grouped, limits = self._grouped(query), (start, window)
        if library_kernels.is_chosen(self.arch.attention) and library_kernels.serves(grouped, context, *limits):
            return library_kernels.attend(grouped, [*context, own], self._scale, *limits)
        return attend_in_order(grouped, context, own, self._scale)

    def _feed_forward(self, x: Array) -> Array:
        """Computes down(activation(gate(x)) × up(x)) of normed x [P, M, T, D]; the same shape."""
        activation = getattr(jax.nn, self.arch.activation)
        return self._project_by(activation(self._project_by(x, "gate")) * self._project_by(x, "up"), "down")

    def _project_by(self, x: Array, name: str) -> Array:
        """Multiplies x [P, M, T, …] by one of PROJECTIONS, and adds the product with its adapter, if it has one."""
        y = _project(x, gather_parameter(name, getattr(self, name)[...]))
        if not self.arch.lora_rank or name not in self.arch.lora_targets:
            return y
        into, out = (getattr(self, name + suffix)[...] for suffix in (lora.IN, lora.OUT))
        return y + self.arch.lora_alpha / self.arch.lora_rank * _project(_project(x, into), out)

    def _norm(self, x: Array, scale: nnx.Param) -> Array:
        return rms_norm(x, _norm_scale(scale, self.arch), self.arch.norm_eps, self.arch.dtype)


class Decoder(nnx.Module):
    """Embedding, N layers whose parameters are stacked [N, …] and scanned, final norm, tied or untied head."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        self.arch = arch
        # As large as what layers add, so that they do not drown the tokens; small where it is also the head.
        spread = 0.02 if arch.tied else 1.0
        self.embed = nnx.Param(spread * jax.random.normal(rngs.params(), (arch.vocab_size, arch.width)))
        layer_keys = jax.random.split(rngs.params(), arch.layers)
        self.layers = nnx.vmap(lambda key: Layer(arch, nnx.Rngs(key)))(layer_keys)
        self.norm = nnx.Param(jnp.full(arch.width, 1.0 - arch.norm_offset, jnp.float32))
        if not arch.tied:
            self.head = nnx.Param(0.02 * jax.random.normal(rngs.params(), (arch.width, arch.vocab_size)))

    def output_head(self) -> Array:
        """Gathers the matrix [D, V] that turns hidden states into logits."""
        if self.arch.tied:
            return gather_parameter("embed", self.embed[...]).T
        return gather_parameter("head", self.head[...])

    def extend(
        self,
        tokens: Array,
        positions: Array,
        *,
        prompt: Context | None = None,
        past: Context | None = None,
        layers: Sequence[nnx.State] | None = None,
        write_at: WriteAt | None = None,
        start: Array | None = None,
        slots: Slots | None = None,
    ) -> tuple[Array, KeyValues | list[KeyValues]]:
        """Reads tokens [P, M, T] after a prompt and a past → hidden states [P, M, T, D], keys and values.

        The prompt starts at position 0; the past ends before the first token.

        Args:
          tokens: [P, M, T] ids.
          positions: [P, M or 1, T].
          prompt: shared by the group's rollouts.
          past: each rollout's own.
          layers: parameters of each layer. With it, keys and values of prompt, past and result are lists over layers.
            Without it, they are stacked [N, …] and layers are scanned.
          write_at: where in the past each row's one token is written; the past's length counts it already.
          start: [P, M, T] index of the first token that each token sees; None is 0 for all.
          slots: of a compacted batch; [P, M] is then [C, B] everywhere except in the prompt.

        Returns:
          hidden states after the final norm, [P, M, T, D], and the tokens' keys and values; with a `write_at`, the past
          with these written into it.
        """
        _check_extend(tokens, positions, prompt, past, write_at=write_at, start=start, slots=slots)
        rotation = rotations(self.arch, positions)
        prompt_kvs, past_kvs = (None if context is None else context.kv for context in (prompt, past))

        def one_layer(x: Array, inputs: tuple) -> tuple[Array, KeyValues]:
            layer, constants, prompt_kv, past_kv = inputs
            context = []
            if prompt_kv is not None:
                at_prompt = slots.to_slots(positions) if slots else positions
                keys = jnp.arange(prompt.size)
                distance = at_prompt[..., None] - keys
                mask = _near(keys < prompt.length[:, None, None, None], distance, constants.window)
                interval = _interval(at_prompt, constants.window, prompt.length)
                context.append(Part(prompt_kv.key_values, mask, slots, interval))
            if past_kv is not None:
                before = past.length[..., None] - (write_at is not None)
                first = positions[..., :1] - before  # position of the past's first key
                keys = jnp.arange(past.size)
                key_positions = first + keys
                distance = positions[..., None] - key_positions[:, :, None]
                kv = past_kv.key_values if write_at is None else past_kv
                mask = _near(keys < past.length[..., None, None], distance, constants.window)
                interval = _interval(before, constants.window, before[..., 0])
                if past.done is not None:
                    first = 0 if interval.first is None else interval.first
                    interval = interval._replace(first=jnp.where(past.done, interval.end, first))
                context.append(Part(kv, mask, interval=interval))
            turn = jax.tree.map(lambda x: x[constants.rotation], rotation)
            return nnx.merge(self._layer_graph, layer)(x, turn, context, constants.window, write_at, start)

        x = gather_parameter("embed", self.embed[...])[tokens] * self.arch.embed_scale
        x = x.astype(jnp.float32)  # the residual is never rounded: that was most of bfloat16's error
        if layers is None:
            step = one_layer
            if self.arch.remat != "none":
                step = jax.checkpoint(one_layer, policy=KEPT[self.arch.remat], prevent_cse=False)
            # A loop over two layers costs more in copies than it saves in compilation.
            unroll = self.arch.layers <= 2
            x, kv = jax.lax.scan(
                step, x, (nnx.split(self.layers)[1], self._constants(), prompt_kvs, past_kvs), unroll=unroll
            )
        else:
            nothing = [None] * len(layers)
            kv = []
            one_layer = jax.jit(one_layer)  # traced and lowered once, not once per layer
            constants = unstack_layers(self._constants(), len(layers))
            for inputs in zip(layers, constants, prompt_kvs or nothing, past_kvs or nothing, strict=True):
                x, own = one_layer(x, inputs)
                kv.append(own)
        return rms_norm(x, _norm_scale(self.norm, self.arch), self.arch.norm_eps, self.arch.dtype), kv

    @property
    def _layer_graph(self) -> nnx.GraphDef:
        return nnx.split(self.layers)[0]

    def _constants(self) -> LayerConstants:
        """Stacks the constants of all layers."""
        return LayerConstants(distinct_frequencies(self.arch)[1], _windows(self.arch))

    def prefill(
        self, tokens: Array, layers: Sequence[nnx.State] | None = None
    ) -> tuple[Array, KeyValues | list[KeyValues]]:
        """Reads flat sequences [P, T] from position 0 → hidden states [P, T, D], and keys and values of a prompt.

        Sequences are right-padded, so no token sees the padding after its sequence's end.
        """
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, kv = self.extend(tokens[:, None], positions[:, None], layers=layers)
        return hidden[:, 0], jax.tree.map(lambda x: x.squeeze(-4), kv)  # M = 1

    def read_prompt(self, prompt: Array, prompt_length: Array, layers: Sequence[nnx.State] | None = None) -> Context:
        """Reads prompts [P, T0] of prompt_length [P] → their keys and values, of which all but the last token are seen.

        Each rollout reads the prompt's last token itself, since that token predicts the rollout's first.
        """
        _, kv = self.prefill(prompt, layers)
        return Context(kv, prompt_length - 1)


def _check_extend(
    tokens: Array,
    positions: Array,
    prompt: Context | None,
    past: Context | None,
    *,
    write_at: WriteAt | None,
    start: Array | None,
    slots: Slots | None,
) -> None:
    """Checks the arguments of `Decoder.extend`; letters say [P, M, …] for a compacted batch [C, B, …] as well."""
    batch = [
        Expected("tokens", tokens, "P M T", jnp.integer),
        Expected("positions", positions, "P M|1 T", jnp.integer),
        Expected("start", start, "P M T", jnp.integer),
    ]
    check_shapes(*batch)
    for name, context, letters in (("prompt", prompt, "prompts" if slots else "P"), ("past", past, "P M")):
        if context is not None:
            check_shapes(*batch, Expected(f"{name}.length", context.length, letters, jnp.integer))
    if write_at is not None:
        if past is None:
            raise ValueError("write_at is given without a past to write into")
        check_shapes(*batch, Expected("write_at.batch", write_at.batch, "P M"), T=1)


def unstack_layers(stacked: Any, layers: int) -> list:
    """Unstacks a tree of arrays [N, …] into a list of N trees."""
    return [jax.tree.map(operator.itemgetter(i), stacked) for i in range(layers)]
