"""Attention of many queries by a kernel that holds one tile of scores at a time, if the processor has one.

GPU: our own in Triton (`group_kernel`). TPU: Pallas splash attention, from a library. It has no gradient through its
log-sum-exp, so its results for two parts of the keys cannot be merged afterwards. The prompt's keys are therefore
copied to all rollouts, and again in the backward pass, and one softmax covers all keys.

`attention.attend` serves everything else: CPUs, queries after a past, single tokens, dtypes and heads that the kernel
does not take, and on TPUs layers with a window and rows of several rollouts.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl.models.attention import group_kernel
from tsallis_rl.models.attention.group_tiles import Limits
from tsallis_rl.models.attention.parts import ATTENDED, KeyValues, Part
from tsallis_rl.models.attention.triton_programs import DTYPES, HEAD_DIMS, LEAST, has_triton
from tsallis_rl.models.backends import backend
from tsallis_rl.models.sharding import prompt_specs

TILE_MULTIPLE = 128  # a tile has a multiple of this many queries, and of keys
LARGEST_TILE = 512


class Kernel(NamedTuple):
    """A kernel and the arrays that it takes.

    Attributes:
      run: (query [P, M, T, K, G, h], keys and values [P, M, T, K, h] of the tokens, [P, S, K, h] of the prompt or None,
        limits, scale) → [P, M, T, K, G, h].
      dtypes: allowed for queries, keys and values.
      head_dims: allowed h.
      fewest_tokens: smallest T; with fewer queries most of a tile would be empty.
      any_mask: takes a `start` and a `window`.
    """

    run: Callable[..., Array]
    dtypes: tuple[str, ...]
    head_dims: Sequence[int]
    fewest_tokens: int
    any_mask: bool


def _tiles(tokens: int) -> tuple[int, int]:
    """Chooses a tile's size for a number of tokens; also returns that number rounded up to whole tiles."""
    count = -(-tokens // LARGEST_TILE)
    tile = -(-tokens // (count * TILE_MULTIPLE)) * TILE_MULTIPLE
    return tile, count * tile


def _padded(x: Array, size: int) -> Array:
    """Pads x [P · M, T, …] with zeros to T = size."""
    return jnp.pad(x, [(0, size - x.shape[1] if axis == 1 else 0) for axis in range(x.ndim)])


@functools.lru_cache(maxsize=64)
def _splash_kernel(heads: int, tokens: int, prompt: int, interpret: bool) -> Callable[..., Array]:
    """Builds the kernel for G query heads per key head; query t sees keys 0 … prompt + t of its segment."""
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
    query: Array, own: KeyValues, prompt: KeyValues | None, limits: Limits, scale: float, *, interpret: bool = False
) -> Array:
    """Runs Pallas splash attention (see `Kernel.run`); with `interpret` on any processor, slowly."""
    # The backward pass keeps outputs and log-sum-exps, but makes the copies of the prompt again.
    run = jax.checkpoint(functools.partial(_splash, scale=scale, interpret=interpret), policy=keeps_attended)
    if prompt is not None:  # in float32, so that its gradients are summed over rollouts in float32
        prompt = KeyValues(*(x.astype(jnp.float32) for x in prompt))
    return run(query, own, prompt, limits.lengths)


def _splash(
    query: Array, own: KeyValues, prompt: KeyValues | None, lengths: Array, *, scale: float, interpret: bool
) -> Array:
    """Calls splash attention with a row for each rollout, after a copy of its prompt's keys."""
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    shape, rollouts = query.shape, query.shape[1]
    query, kv = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (query, own))
    tokens, width = query.shape[1], 0 if prompt is None else prompt.keys.shape[1]
    (_, queries), (_, keys) = _tiles(tokens), _tiles(width + tokens)
    if prompt is not None:
        copies = jax.tree.map(lambda x: jnp.repeat(x, rollouts, axis=0).astype(query.dtype), prompt)
        kv = KeyValues(*(jnp.concatenate(x, axis=1) for x in zip(copies, kv, strict=True)))
    kv = KeyValues(*(jnp.einsum("bskh->bksh", _padded(x, keys)) for x in kv))
    segments = None
    if prompt is not None:  # keys after the prompt's end are another segment
        hidden = (jnp.arange(width) >= lengths[:, None]).astype(jnp.int32)
        hidden = jnp.repeat(hidden, rollouts, axis=0)
        segments = SegmentIds(jnp.zeros((len(query), queries), jnp.int32), _padded(hidden, keys))
    kernel = _splash_kernel(query.shape[3], tokens, width, interpret)
    over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    query = jnp.einsum("btkgh->bkgth", _padded(query * scale, queries))
    out = jnp.einsum("bkgth->btkgh", jax.vmap(over_heads)(query, *kv, segments))
    return out[:, :tokens].reshape(shape)


keeps_attended = jax.checkpoint_policies.save_only_these_names(ATTENDED)  # what kernels' backward passes need

KERNELS: dict[str, Kernel] = {
    "tpu": Kernel(
        splash_attention,
        ("float32", "bfloat16"),
        head_dims=range(64, 257, 64),
        fewest_tokens=TILE_MULTIPLE,
        any_mask=False,
    ),
    "gpu": Kernel(
        group_kernel.attend,
        DTYPES,
        head_dims=HEAD_DIMS,
        fewest_tokens=LEAST,
        any_mask=True,
    ),
}


def is_chosen(attention: str) -> bool:
    """Returns whether config.model.attention asks for kernels: "library", or "auto" where they were measured to win."""
    if jax.default_backend() == "gpu" and not has_triton():
        return False
    return attention == "library" or (attention == "auto" and backend().takes_kernels)


def serves(query: Array, context: Sequence[Part], start: Array | None, window: Array | None) -> bool:
    """Returns whether `attend` takes these queries [P, M, T, K, G, h] after this context, with these limits."""
    kernel = KERNELS.get(jax.default_backend())
    return (
        kernel is not None
        and query.dtype.name in kernel.dtypes
        and query.shape[-1] in kernel.head_dims
        and query.shape[2] >= kernel.fewest_tokens
        and (kernel.any_mask or (start is None and window is None))
        and all(_is_prompt(part) for part in context)
    )


def _is_prompt(part: Part) -> bool:
    """Returns whether a part holds prompts' keys, for rollouts [P, M] and not for rows of a compacted batch."""
    return part.kv.keys.ndim == 4 and part.slots is None


def attend(
    query: Array, parts: Sequence[Part], scale: float, start: Array | None = None, window: Array | None = None
) -> Array:
    """Attends with queries [P, M, T, K, G, h] to the parts that `serves` allows; see `attention.attend`.

    Args:
      query: [P, M, T, K, G, h]. A row's first query comes right after the prompt, and so does every query whose `start`
        is its own index.
      parts: at most one prompt, then the tokens' own. Of the prompt's mask [P, M or 1, T or 1, S] only the row of the
        first query is read, which sees the prompt up to its end. Query t sees own keys `start` … t; the own part's
        mask is not read.
      scale: multiplies the scores.
      start: [P, M, T] index of the first token that each token sees; None is 0.
      window: how many positions back a query sees, its own included; None is all.

    Returns:
      [P, M, T, K, G, h].
    """
    *context, own = parts
    prompt, lengths = None, jnp.zeros(len(query), jnp.int32)
    if context:
        prompt, shown = context[0].kv, context[0].mask[:, 0, 0]
        lengths = jnp.where(shown, jnp.arange(1, shown.shape[1] + 1), 0).max(-1)  # a window may hide the first keys
    run = functools.partial(_on_one_device, kernel=KERNELS[jax.default_backend()], scale=scale)
    arguments = (query, own.kv, prompt, Limits(lengths, start, window))
    mesh = jax.typeof(query).sharding.mesh
    if mesh.size < 2:  # 0 if arrays are on no mesh
        return run(*arguments)

    specs = functools.partial(prompt_specs, mesh)
    limits = Limits(specs(lengths), specs(start), None if window is None else jax.P())
    in_specs = (specs(query, 3), specs(own.kv, 2), specs(prompt, 1), limits)
    return jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=in_specs[0], check_vma=False)(*arguments)


def _on_one_device(
    query: Array, own: KeyValues, prompt: KeyValues | None, limits: Limits, *, kernel: Kernel, scale: float
) -> Array:
    """Calls the kernel on arrays in the layout of the projections; XLA cancels the transposes against earlier ones."""
    own = KeyValues(jnp.einsum("pmkht->pmtkh", own.keys), jnp.einsum("pmkth->pmtkh", own.values))
    if prompt is not None:
        prompt = KeyValues(jnp.einsum("pkhs->pskh", prompt.keys), jnp.einsum("pksh->pskh", prompt.values))
    return kernel.run(query, own, prompt, limits, scale)
