"""Attention of many queries by a kernel of a well-kept library, where the processor has one.

TPU: Pallas splash attention. GPU: cuDNN, through `jax.nn.dot_product_attention`. Both hold a tile of scores at a time.
Neither has a gradient through its log-sum-exp, so that two parts of the keys cannot be merged after them. The prompt's
keys are therefore copied, to some rollouts at a time and again in the backward pass, and one softmax is taken over all.

`attention.attend` serves everything else: a CPU, layers with a window, rows of several rollouts, queries after a past,
single tokens, and dtypes and heads that the kernel does not take.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl.models.attention.parts import ATTENDED, KeyValues, Part
from tsallis_rl.models.backends import backend, wins_here
from tsallis_rl.models.shapes import largest_divisor
from tsallis_rl.models.sharding import sharding

TILE_MULTIPLE = 128  # a tile's queries and its keys are a multiple of it
LARGEST_TILE = 512
EVEN = 8  # jax hands cuDNN's backward pass even numbers of tokens alone
FEWEST_TOKENS = 128  # of fewer queries most of a tile would be empty


class Kernel(NamedTuple):
    """A library's kernel and the arrays that it takes.

    Attributes:
      run: (query [P · M, T, K, G, h], keys and values [P · M, T, K, h] of the tokens, [P · M, S, K, h] of the prompt or
        None, lengths [P] of the prompts, scale) → [P · M, T, K, G, h].
      dtypes: allowed for queries, keys and values.
      head_dim: h must be a multiple of it.
      largest_head_dim: h must be at most this.
      longest_prompt: largest S / T. On a GPU scores among the prompt's own tokens are computed for every rollout, and
        not used.
      at_once: rollouts in one call. On a GPU fewer take less memory, and those of one prompt have one place at which
        the prompt ends; on a TPU they take more. 0 is all rollouts of all prompts.
    """

    run: Callable[..., Array]
    dtypes: tuple[str, ...]
    head_dim: int
    largest_head_dim: int
    longest_prompt: int
    at_once: int


def _tiles(tokens: int) -> tuple[int, int]:
    """Sizes a tile for a number of tokens; also gives the number of tokens rounded up to whole tiles."""
    count = -(-tokens // LARGEST_TILE)
    tile = -(-tokens // (count * TILE_MULTIPLE)) * TILE_MULTIPLE
    return tile, count * tile


def _padded(x: Array, size: int) -> Array:
    """Pads x [P · M, T, …] with zeros to T = size."""
    return jnp.pad(x, [(0, size - x.shape[1] if axis == 1 else 0) for axis in range(x.ndim)])


@functools.lru_cache(maxsize=64)
def _splash_kernel(heads: int, tokens: int, prompt: int, interpret: bool) -> Callable[..., Array]:
    """Builds the kernel for G query heads a key head; query t sees keys 0 … prompt + t of its segment."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (rows, queries), (columns, keys) = _tiles(tokens), _tiles(prompt + tokens)
    causal = masks.CausalMask((queries, keys), offset=prompt)  # computed in the kernel, never stored
    sizes = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), rows),
        **dict.fromkeys(("block_kv", "block_kv_dkv", "block_kv_dq"), columns),
        **dict.fromkeys(("block_kv_compute", "block_kv_dkv_compute"), columns),
    )
    with jax.ensure_compile_time_eval():
        kernel = splash.make_splash_mqa_single_device(
            masks.MultiHeadMask([causal] * heads),
            block_sizes=sizes,
            residual_checkpoint_name=ATTENDED,
            interpret=interpret,
        )
    return jax.tree.map(np.asarray, kernel)  # constants of any program that uses it


def splash_attention(
    query: Array, own: KeyValues, prompt: KeyValues | None, lengths: Array, scale: float, *, interpret: bool = False
) -> Array:
    """Runs Pallas splash attention, see `Kernel.run`; with `interpret` on any processor, slowly."""
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    tokens, width = query.shape[1], 0 if prompt is None else prompt.keys.shape[1]
    (_, queries), (_, keys) = _tiles(tokens), _tiles(width + tokens)
    kv = own if prompt is None else KeyValues(*(jnp.concatenate(x, axis=1) for x in zip(prompt, own, strict=True)))
    kv = KeyValues(*(jnp.einsum("bskh->bksh", _padded(x, keys)) for x in kv))
    segments = None
    if prompt is not None:  # keys after the prompt's end are another segment
        hidden = (jnp.arange(width) >= lengths[:, None]).astype(jnp.int32)
        hidden = jnp.repeat(hidden, len(query) // len(lengths), axis=0)
        segments = SegmentIds(jnp.zeros((len(query), queries), jnp.int32), _padded(hidden, keys))
    kernel = _splash_kernel(query.shape[3], tokens, width, interpret)
    over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    query = jnp.einsum("btkgh->bkgth", _padded(query * scale, queries))
    return jnp.einsum("bkgth->btkgh", jax.vmap(over_heads)(query, *kv, segments))[:, :tokens]


def dot_product_attention(
    query: Array, own: KeyValues, prompt: KeyValues | None, lengths: Array, scale: float, *, implementation: str
) -> Array:
    """Runs `jax.nn.dot_product_attention`, see `Kernel.run`.

    Queries and keys stand at their positions right after the prompt's end, so that causal order is the only mask. Any
    other mask would be an array, whose gradient cuDNN writes down for every head, [P · M, K G, T, S + T].
    """
    attention = functools.partial(
        jax.nn.dot_product_attention, scale=float(scale), is_causal=True, implementation=implementation
    )
    tokens = query.shape[1]
    size = tokens if prompt is None else prompt.keys.shape[1] + tokens
    size = -(-size // EVEN) * EVEN
    flat = query.reshape(*query.shape[:2], -1, query.shape[-1])
    if prompt is None:
        out = attention(*(_padded(x, size) for x in (flat, *own)))
        return out[:, :tokens].reshape(query.shape)
    (end,) = lengths  # of one prompt: with an end for each row, writing would be a scatter
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=end, axis=1)
    keys, values = (write(_padded(x, size), y) for x, y in zip(prompt, own, strict=True))
    out = attention(write(jnp.zeros((len(flat), size, *flat.shape[2:]), flat.dtype), flat), keys, values)
    return jax.lax.dynamic_slice_in_dim(out, end, tokens, axis=1).reshape(query.shape)


KERNELS: dict[str, Kernel] = {
    "tpu": Kernel(
        splash_attention,
        ("float32", "bfloat16"),
        head_dim=64,
        largest_head_dim=256,
        longest_prompt=1 << 20,
        at_once=0,
    ),
    "gpu": Kernel(
        functools.partial(dot_product_attention, implementation="cudnn"),
        ("bfloat16", "float16"),
        head_dim=8,
        largest_head_dim=128,
        longest_prompt=5,
        at_once=8,
    ),
}


def keeps_attended(primitive: jax.extend.core.Primitive, *_: Any, **params: Any) -> bool:
    """Tells remat to keep what a kernel's backward pass needs besides its inputs: outputs and log-sum-exps."""
    if primitive.name.startswith("dot_product_attention_fwd"):  # cuDNN's, which has no name for a checkpoint
        return True
    return jax.checkpoint_policies.save_only_these_names(ATTENDED)(primitive, *_, **params)


def is_chosen(attention: str) -> bool:
    """Tells whether config.model.attention asks for kernels: "library", or "auto" where they were measured to win."""
    return attention == "library" or (attention == "auto" and wins_here(backend()))


def serves(query: Array, context: Sequence[Part]) -> bool:
    """Tells whether `attend` takes these queries [P, M, T, K, G, h] after this context."""
    kernel = KERNELS.get(jax.default_backend())
    tokens, head_dim = query.shape[2], query.shape[-1]
    return (
        kernel is not None
        and query.dtype.name in kernel.dtypes
        and head_dim % kernel.head_dim == 0
        and head_dim <= kernel.largest_head_dim
        and tokens >= FEWEST_TOKENS
        and all(_is_prompt(part) and part.kv.keys.shape[-1] <= kernel.longest_prompt * tokens for part in context)
    )


def _is_prompt(part: Part) -> bool:
    """Tells whether these are keys of prompts, asked for by rollouts in [P, M] and not in rows of a compacted batch."""
    return part.kv.keys.ndim == 4 and part.slots is None


def attend(query: Array, parts: Sequence[Part], scale: float) -> Array:
    """Attends with queries [P, M, T, K, G, h] to the parts that `serves` allows; see `attention.attend`.

    Args:
      query: [P, M, T, K, G, h].
      parts: at most one prompt, whose mask [P, 1, 1, S] is True before some length; last the tokens' own, of which
        query t sees 0 … t and whose mask is not read.
      scale: multiplies the scores.

    Returns:
      [P, M, T, K, G, h].
    """
    *context, own = parts
    prompt = context[0].kv if context else None
    lengths = context[0].mask.sum(-1, dtype=jnp.int32)[:, 0, 0] if context else jnp.zeros(len(query), jnp.int32)
    run = functools.partial(_on_one_device, kernel=KERNELS[jax.default_backend()], scale=scale)
    # Copies of the prompt are not kept for the backward pass, which needs outputs and log-sum-exps besides.
    run = jax.checkpoint(run, policy=keeps_attended)
    mesh = jax.typeof(query).sharding.mesh
    if mesh.size < 2:  # 0 where arrays are on no mesh
        return run(query, own.kv, prompt, lengths)

    def spec(x: Array, kv_heads: int) -> jax.P:
        axes: list[str | None] = ["prompts", *[None] * (x.ndim - 1)]
        if kv_heads:
            axes[kv_heads] = "kv_heads"
        return sharding(mesh, tuple(axes), x.shape).spec

    arguments = (query, own.kv, prompt, lengths)
    own_specs, prompt_specs = jax.tree.map(lambda x: spec(x, 2), own.kv), jax.tree.map(lambda x: spec(x, 1), prompt)
    specs = (spec(query, 3), own_specs, prompt_specs, spec(lengths, 0))
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arguments)


def _on_one_device(
    query: Array, own: KeyValues, prompt: KeyValues | None, lengths: Array, *, kernel: Kernel, scale: float
) -> Array:
    """Calls the kernel on a group's arrays, as `attention` has them, some rollouts at a time."""
    own = KeyValues(jnp.einsum("pmkht->pmtkh", own.keys), jnp.einsum("pmkth->pmtkh", own.values))
    if prompt is not None:  # in float32, in which its gradients are then summed over rollouts
        prompt = KeyValues(jnp.einsum("pkhs->pskh", prompt.keys), jnp.einsum("pksh->pskh", prompt.values))
        prompt = KeyValues(*(x.astype(jnp.float32) for x in prompt))

    def some(query: Array, own: KeyValues, prompt: KeyValues | None, lengths: Array) -> Array:
        """Attends for m rollouts of each of some prompts: queries [P, m, T, K, G, h]."""
        rollouts = query.shape[1]
        flat, kv = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (query, own))
        copies = jax.tree.map(lambda x: jnp.repeat(x, rollouts, axis=0).astype(query.dtype), prompt)
        return kernel.run(flat, kv, copies, lengths, scale).reshape(query.shape)

    if not kernel.at_once or prompt is None:
        return some(query, own, prompt, lengths)
    at_once = largest_divisor(query.shape[1], kernel.at_once)

    def one_prompt(arrays: tuple[Array, KeyValues, KeyValues | None, Array]) -> Array:
        """Attends for the M rollouts of one prompt, `at_once` at a time: queries [M, T, K, G, h]."""
        query, own, prompt, length = arrays
        cut = jax.tree.map(lambda x: x.reshape(-1, 1, at_once, *x.shape[1:]), (query, own))
        prompt, length = jax.tree.map(lambda x: x[None], (prompt, length))
        return jax.lax.map(lambda rows: some(*rows, prompt, length), cut).reshape(query.shape)

    return jax.lax.map(one_prompt, (query, own, prompt, lengths))
