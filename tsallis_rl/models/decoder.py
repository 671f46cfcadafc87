"""The decoder: embedding, scanned layers, norm and head.

Qwen3, Qwen2.5, Llama 3 and Gemma 3 are settings of `Architecture`. Where layers differ from each other (rotary
frequencies, how far back they see), the difference is an array with a leading N that is scanned with the parameters.

A group is a shape: tokens come as [P, M, T]. Attention has up to three parts: keys of the prompt, of the rollout's past
and of the tokens themselves (`attention`). So the prompt is computed and stored once for its M rollouts, in training
and in decoding. A flat sequence is a group of one with no other parts.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from tsallis_rl.models import residual
from tsallis_rl.models.attention import Interval, KeyValues, Part, RowCache, WriteAt, library_kernels
from tsallis_rl.models.layer import Layer, near, norm_scale, rms_norm
from tsallis_rl.models.residual import PendingSum
from tsallis_rl.models.rotary import distinct_frequencies, rotations
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


def _interval(index: Array, window: Array | None, end: Array) -> Interval:
    """Computes the keys that each row's one query sees, from its index [P, M, 1] among them and their `end`."""
    return Interval(None if window is None else jnp.maximum(index[..., 0] - window + 1, 0), end)


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
        layers: Sequence[Layer] | None = None,
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
          layers: each layer by itself. With it, keys and values of prompt, past and result are lists over layers.
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

        def one_layer(x: Array | PendingSum, inputs: tuple) -> tuple[Array | PendingSum, KeyValues]:
            layer, constants, prompt_kv, past_kv = inputs
            context = []
            if prompt_kv is not None:
                at_prompt = slots.to_slots(positions) if slots else positions
                keys = jnp.arange(prompt.size)
                distance = at_prompt[..., None] - keys
                mask = near(keys < prompt.length[:, None, None, None], distance, constants.window)
                interval = _interval(at_prompt, constants.window, prompt.length)
                context.append(Part(prompt_kv.key_values, mask, slots, interval))
            if past_kv is not None:
                before = past.length[..., None] - (write_at is not None)
                first = positions[..., :1] - before  # position of the past's first key
                keys = jnp.arange(past.size)
                key_positions = first + keys
                distance = positions[..., None] - key_positions[:, :, None]
                kv = past_kv.key_values if write_at is None else past_kv
                mask = near(keys < past.length[..., None, None], distance, constants.window)
                interval = _interval(before, constants.window, before[..., 0])
                if past.done is not None:
                    first = 0 if interval.first is None else interval.first
                    interval = interval._replace(first=jnp.where(past.done, interval.end, first))
                context.append(Part(kv, mask, interval=interval))
            turn = jax.tree.map(lambda x: x[constants.rotation], rotation)
            return layer(x, turn, context, constants.window, write_at, start)

        x = gather_parameter("embed", self.embed[...])[tokens] * self.arch.embed_scale
        x = x.astype(jnp.float32)  # the residual is never rounded: that was most of bfloat16's error
        if layers is None:
            step = one_layer
            if self.arch.remat != "none":
                step = jax.checkpoint(one_layer, policy=KEPT[self.arch.remat], prevent_cse=False)
            # A loop over two layers costs more in copies than it saves in compilation.
            unroll = self.arch.layers <= 2
            x, kv = jax.lax.scan(step, x, (self.layers, self._constants(), prompt_kvs, past_kvs), unroll=unroll)
        else:
            nothing = [None] * len(layers)
            kv = []
            one_layer = jax.jit(one_layer)  # traced and lowered once, or twice with a `PendingSum`, not once per layer
            constants = unstack_layers(self._constants(), len(layers))
            for inputs in zip(layers, constants, prompt_kvs or nothing, past_kvs or nothing, strict=True):
                x, own = one_layer(x, inputs)
                kv.append(own)
        norm = norm_scale(self.norm, self.arch), self.arch.norm_eps, self.arch.dtype
        return (residual.add_and_norm(x, *norm)[1] if isinstance(x, PendingSum) else rms_norm(x, *norm)), kv

    def _constants(self) -> LayerConstants:
        """Stacks the constants of all layers."""
        return LayerConstants(distinct_frequencies(self.arch)[1], _windows(self.arch))

    def prefill(
        self, tokens: Array, layers: Sequence[Layer] | None = None
    ) -> tuple[Array, KeyValues | list[KeyValues]]:
        """Reads flat sequences [P, T] from position 0 → hidden states [P, T, D], and keys and values of a prompt.

        Sequences are right-padded, so no token sees the padding after its sequence's end.
        """
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, kv = self.extend(tokens[:, None], positions[:, None], layers=layers)
        return hidden[:, 0], jax.tree.map(lambda x: x.squeeze(-4), kv)  # M = 1

    def read_prompt(self, prompt: Array, prompt_length: Array, layers: Sequence[Layer] | None = None) -> Context:
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
