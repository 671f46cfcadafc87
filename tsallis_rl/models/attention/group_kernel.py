"""Attention of a group's rollouts on an NVIDIA GPU: flash attention in Triton, by Pallas, with its gradient.

The M rollouts of a group read the keys of their one prompt in place. Nothing is copied, and one softmax covers the
prompt's keys and the rollout's own. Arrays are read and written in the layout of the projections.

    forward    out and log-sum-exps     a program per block of queries of one head
    d_query    gradient of queries      a program per block of queries of one head; also returns Σ out · d_out of every
                                        query, which the other two need
    d_own      of own keys and values   a program per block of a rollout's keys: sums over the G heads and queries
    d_prompt   of the prompt's          a program per block of a prompt's keys: sums over M rollouts, heads, queries; if
                                        these are few programs, over parts of the M, whose sums XLA adds

Each backward kernel recomputes the scores. Every sum is made in float32 and in a fixed order, so that runs agree bit
for bit. Inside, exponentials and log-sum-exps are to base 2.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models.attention.group_keys import differentiate_own, differentiate_prompt
from tsallis_rl.models.attention.group_queries import differentiate_queries, forward
from tsallis_rl.models.attention.group_tiles import Given, How, Kept, Limits, Tiles, tiles_for
from tsallis_rl.models.attention.parts import KeyValues


def attend(
    query: Array,
    own: KeyValues,
    prompt: KeyValues | None,
    limits: Limits,
    scale: float,
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> Array:
    """Attends with queries [P, M, T, K, G, h] to a prompt's keys and to own keys, in one softmax → the same shape.

    Query t of a row is at position lengths[p] + t − start[p, m, t].

    Args:
      query: [P, M, T, K, G, h].
      own: [P, M, T, K, h], of which query t sees start[p, m, t] … t.
      prompt: [P, S, K, h], of which every query sees the first lengths[p]; or None.
      limits: lengths, start and window.
      scale: multiplies the scores; above 0.
      tiles: None is `tiles_for` the heads.
      interpret: emulate the kernels on any processor, slowly.

    Returns:
      [P, M, T, K, G, h].
    """
    prompts, rollouts, tokens, kv_heads, group, head_dim = query.shape
    rows = prompts * rollouts
    lengths, start, window = limits
    if start is not None:
        start = start.reshape(rows, tokens)
    if window is not None:  # at most all keys, so that sums with it do not overflow int32
        longest = tokens + (0 if prompt is None else prompt.keys.shape[1])
        window = jnp.minimum(window, longest).astype(jnp.int32).reshape(1)
    flat = query.reshape(rows, tokens, kv_heads * group, head_dim)
    own = KeyValues(*(x.reshape(rows, *x.shape[2:]) for x in own))
    how = How(scale, tiles or tiles_for(head_dim), interpret)
    return _attend(Given(flat, own, prompt, Limits(lengths, start, window)), how).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(given: Given, how: How) -> Array:
    return forward(given, how)[0]


def _backward(how: How, kept: Kept, d_out: Array) -> tuple[Given]:
    d_out = d_out.astype(kept.out.dtype)
    d_query, delta = differentiate_queries(kept, d_out, how)
    d_own = differentiate_own(kept, d_out, delta, how)
    d_prompt = None if kept.given.prompt is None else differentiate_prompt(kept, d_out, delta, how)
    return (Given(d_query, d_own, d_prompt, Limits(None)),)


_attend.defvjp(forward, _backward)
