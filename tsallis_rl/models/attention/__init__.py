"""Softmax attention over several sets of keys, without ever holding all scores.

A group's keys come in parts that are stored separately: keys of the prompt (once for all M rollouts), keys of a
rollout's past, and keys of the tokens themselves. Their rank tells them apart:

                 keys of the prompt   keys of the rollout's past   keys of the tokens themselves
                 [P, K, S, h]         [P, M, K, S, h]              [P, M, K, T, h]
    query t      held once per group  a length per rollout         causal: 0 … t

These are the shapes of values. Keys are kept transposed, [P, K, h, S] and so on, so that both products of a decoding
step run along contiguous memory. Rows of a compacted batch attend to their prompts through `Slots`.

    parts            keys and values, parts, writing into a cache
    softmax          attention over parts: at once, in bands of queries, merged by log-sum-exp
    blocks           attention in blocks of rollouts and tokens, with its own gradient
    decoding         decodes a token: writes it into the cache, then attends to prompt and cache
    decode_kernel    decoding by our own Triton kernels (GPU)
    library_kernels  splash attention (TPU) and the group kernel (GPU), where they apply
    group_kernel     our own Triton kernel: programs in group_queries and group_keys, shared code in group_tiles
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
