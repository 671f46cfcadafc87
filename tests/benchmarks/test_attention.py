"""The benchmark of the group kernel: FLOPs count visible pairs, errors are found, and a failure is one line."""

import jax.numpy as jnp

from benchmarks import attention
from tests.support.kernels import SMALL_TILES
from tsallis_rl.models.attention.group_tiles import How

SIZES = attention.Sizes(prompts=2, rollouts=1, prompt=20, tokens=24, heads=2, kv_heads=1, head_dim=16)
HOW = How(0.25, SMALL_TILES, interpret=True)


def test_pairs_are_all_prompt_keys_and_own_keys_up_to_the_query():
    queries = 2 * 1 * 2
    assert SIZES.seen == (queries * 24 * 20, queries * sum(range(1, 25)))


def test_bfloat16_is_as_near_to_float32_as_the_benchmark_asks_for():
    limits = attention.bounds(SIZES)["rows of two rollouts in a window"]
    found = attention.errors(SIZES, limits, HOW, "bfloat16")
    assert len(found) == 6 and max(found.values()) < attention.LARGEST_ERROR
    assert limits.lengths.tolist() == [0, 20] and jnp.unique(limits.start).tolist() == [0, 12]


def test_every_tile_is_timed_and_one_that_fails_is_a_line():
    tiles = {name: [] for name in attention.CANDIDATES} | {"d_own": [(16, 16, 4, 2), (16, 0, 4, 2)]}
    lines = list(attention.tune(SIZES, HOW, "bfloat16", 1, tiles))
    timed, failed = lines[lines.index("d_own: queries, keys, warps, stages") + 1 :][:2]
    assert timed.split()[:4] == ["(16,", "16,", "4,", "2)"] and timed.endswith("TFLOP/s")
    assert failed.split(":")[0] == "  (16, 0, 4, 2) failed"
