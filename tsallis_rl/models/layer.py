"""A layer of the decoder: grouped-query attention and a gated feed-forward, each after its RMSNorm."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from tsallis_rl.models import lora
from tsallis_rl.models.attention import (
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
from tsallis_rl.models.rotary import Rotation, rotate
from tsallis_rl.models.sharding import gather_parameter
from tsallis_rl.models.sizes import Architecture


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


def norm_scale(scale: nnx.Param, arch: Architecture) -> Array:
    """Returns the scale of an RMSNorm in float32, since bfloat16 would round the sum with its offset."""
    return scale[...].astype(jnp.float32) + arch.norm_offset


def project(x: Array, matrix: Array) -> Array:
    """Multiplies x [P, M, T, *a] by matrix [*a, …], as one flat contraction.

    Flattening makes the backward pass twice as fast on a CPU.
    """
    tokens, inputs = x.shape[:3], x.shape[3:]
    factors = x.reshape(math.prod(tokens), -1), matrix.reshape(math.prod(inputs), -1)
    flat = jnp.matmul(*factors, precision=precision_of(x.dtype))
    return flat.reshape(*tokens, *matrix.shape[len(inputs) :])


def near(mask: Array, distance: Array, window: Array | None) -> Array:
    """Narrows a mask to keys that are less than `window` positions before the query."""
    return mask if window is None else mask & (distance < window)


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
        for name in arch.adapted:
            inputs, outputs = arch.projection_shape(name)
            start = math.prod(inputs) ** -0.5 * jax.random.normal(rngs.params(), (*inputs, arch.lora_rank))
            setattr(self, name + lora.IN, nnx.Param(start))
            setattr(self, name + lora.OUT, nnx.Param(jnp.zeros((arch.lora_rank, *outputs))))

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
        normed, x = self._norm_residual(x, self.attention_norm)
        heads = self._project_heads(normed)
        if write_at is not None:
            attended, kv = self._decode(heads, rotation, context, write_at)
        else:
            query, kv = self._turn(heads, rotation)
            own = Part(kv, self._own_mask(x.shape[2], window, start))
            attended = self._attend(query, context, own, start, window)
        x = self._add_projected(x, attended.reshape(heads[0].shape), "out", "attention_post_norm")
        normed, x = self._norm_residual(x, self.ffn_norm)
        return self._add_projected(x, self._gated(normed), "down", "ffn_post_norm"), kv

    def _norm_residual(self, x: Array, scale: nnx.Param) -> tuple[Array, Array]:
        """Norms the residual x [P, M, T, D]; returns the result, and the residual, to which all is added by then."""
        return self._norm(x, scale), x

    def _add_projected(self, x: Array, inputs: Array, name: str, post_norm: str) -> Array:
        """Adds to the residual x [P, M, T, D] the inputs' product by a projection, after its norm if it has one.

        A `JoinedLayer` may leave the addition to the next `_norm_residual`.
        """
        (product,) = self._project_by(inputs, name)
        return x + (self._norm(product, getattr(self, post_norm)) if self.arch.post_norms else product)

    def _project_heads(self, x: Array) -> tuple[Array, Array, Array]:
        """Projects normed x [P, M, T, D] → queries [P, M, T, H, h], keys [P, M, T, K, h] and values."""
        query, key, value = self._project_by(x, "query", "key", "value")
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
        if not decoding.uses_kernel(arch):
            query, kv = self._turn(heads, rotation)
            return decoding.write_and_attend(self._grouped(query), kv, context, at, self._scale)
        norms = (self.query_norm, self.key_norm) if arch.qk_norm else ()
        scales = [norm_scale(norm, arch) for norm in norms] or (None, None)
        one = decode_kernel.Heads(*(x[:, :, 0] for x in heads), *scales, eps=arch.norm_eps)
        return decode_kernel.attend(one, rotation, *context, at, self._scale)

    def _own_mask(self, tokens: int, window: Array | None, start: Array | None) -> Array:
        """Makes the causal mask of own keys, [P or 1, M or 1, T, T], within the window and from `start` on."""
        index = jnp.arange(tokens)
        distance = index[:, None] - index
        mask = near(distance >= 0, distance, window)
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

    def _gated(self, x: Array) -> Array:
        """Computes activation(gate(x)) × up(x) of normed x [P, M, T, D] → [P, M, T, ffn]."""
        gate, up = self._project_by(x, "gate", "up")
        return getattr(jax.nn, self.arch.activation)(gate) * up

    def _project_by(self, x: Array, *names: str) -> list[Array]:
        """Multiplies x [P, M, T, …] by some of PROJECTIONS, and adds the products with the adapters that they have."""
        return [self._with_adapter(x, name) if name in self.arch.adapted else self._plain(x, name) for name in names]

    def _plain(self, x: Array, name: str) -> Array:
        return project(x, gather_parameter(name, getattr(self, name)[...]))

    def _with_adapter(self, x: Array, name: str) -> Array:
        into, out = (getattr(self, name + suffix)[...] for suffix in (lora.IN, lora.OUT))
        return self._plain(x, name) + self.arch.lora_scale * project(project(x, into), out)

    def _norm(self, x: Array, scale: nnx.Param) -> Array:
        return rms_norm(x, norm_scale(scale, self.arch), self.arch.norm_eps, self.arch.dtype)
