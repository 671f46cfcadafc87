"""Softmax attention over several sets of keys, without ever holding all scores.

A group's keys come in parts, each stored where it belongs: keys of the prompt once for all M rollouts, keys of a
rollout's past, keys of the tokens themselves. Rank tells them apart:

                 keys of the prompt   keys of the rollout's past   keys of the tokens themselves
                 [P, K, S, h]         [P, M, K, S, h]              [P, M, K, T, h]
    query t      held once per group  a length of its own          causal: 0 … t

These are the shapes of values; keys are kept transposed, [P, K, h, S] and so on, so that both products of a decoding
step run along memory. Rows of a compacted batch attend to their prompts through `Slots`.

    parts            keys and values, parts, writing into a cache
    softmax          attention over parts: at once, in bands of queries, merged by log-sum-exp
    blocks           the same in blocks of rollouts and tokens, with a gradient of its own
    decoding         a token that is decoded: written into the cache, then attending to prompt and cache
    decode_kernel    the same by kernels of our own, in Triton (GPU)
    library_kernels  splash attention (TPU) and the group kernel (GPU), where they can serve
    group_kernel     our own, in Triton: programs in group_queries and group_keys, what they share in group_tiles
"""

from tsallis_rl.models.attention.decoding import uses_kernel
from tsallis_rl.models.attention.parts import (
    Interval,
    KeyValues,
    Part,
    RowCache,
    WriteAt,
    empty_cache,
    stored,
    write_tokens,
)
from tsallis_rl.models.attention.softmax import attend, attend_in_order, bands

__all__ = [
    "Interval",
    "KeyValues",
    "Part",
    "RowCache",
    "WriteAt",
    "attend",
    "attend_in_order",
    "bands",
    "empty_cache",
    "stored",
    "uses_kernel",
    "write_tokens",
]
