"""Benchmarks: what they count and how they measure; the measurements themselves are in benchmarks/RESULTS.md."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import harness, limits

SHAPE = {"rollouts": 32, "prompt": 256, "new": 128, "layers": 8, "vocab": 4096}
LAYER = 256 * (256 + 128 + 128) + 256 * 256 + 3 * 256 * 768  # entries of model S's matrices
HEAD = 4096 * 256


def test_the_limit_of_an_update_is_three_forward_passes_of_products():
    prompt, own = 4 * 256, 4 * 32 * 128
    pairs = prompt * 256 * 5 / 8 + own * (256 + 128)  # a prompt is read in four bands
    forward = 2 * (8 * LAYER * (prompt + own) + HEAD * own) + 4 * 8 * 8 * 32 * pairs
    assert limits.seconds_at_limit("benchmarks.update", SHAPE, {"flops": 1e11, "bandwidth": 1e9}) == pytest.approx(
        3e-11 * forward
    )


def test_the_limit_of_rollouts_is_set_by_what_is_slower():
    def seconds(flops: float, bandwidth: float) -> float:
        return limits.seconds_at_limit("benchmarks.rollouts", SHAPE, {"flops": flops, "bandwidth": bandwidth})

    never = float("inf")
    products = 2 * (8 * LAYER * (4 * 256 + 4 * 32 * 129) + HEAD * 4 * 32 * 129)
    assert products < seconds(1, never) < 1.5 * products  # attention comes on top
    parameters = 4 * (8 * LAYER + HEAD)
    assert 128 * parameters < seconds(never, 1)
    assert seconds(1, 1) > max(seconds(1, never), seconds(never, 1)) * 0.999


def test_a_regex_that_selects_no_case_is_a_sentence_that_names_them():
    names = ["ours", "ours, copied prompts", "Tunix"]
    assert harness.matching("^ours", names) == ["ours", "ours, copied prompts"]
    with pytest.raises(SystemExit, match="--match='theirs' matches no case; there are ours, ours, copied prompts, T"):
        harness.matching("theirs", names)
    with pytest.raises(SystemExit, match=r"--match='\(' is not a regular expression \(missing \)"):
        harness.matching("(", names)


def test_one_size_is_doubled_at_a_time():
    first, *others = harness.double_each(SHAPE).values()
    assert first == SHAPE
    changed = [{name: x[name] / SHAPE[name] for name in SHAPE if x[name] != SHAPE[name]} for x in others]
    assert changed == [{"rollouts": 2}, {"prompt": 2}, {"new": 2}, {"layers": 2}, {"vocab": 2}]


@pytest.mark.parametrize("repeats", [0, 2])
def test_the_first_call_is_timed_only_where_there_is_no_other(repeats):
    calls = []

    def once():
        calls.append(None)
        sum(range(4_000_000 if len(calls) == 1 else 10))

    row = harness.time_calls(once, repeats)
    assert len(calls) == 1 + repeats
    assert (row["seconds"] > 0.01) == (repeats == 0)
    assert 0 < row["before_gb"] <= row["peak_gb"]


def test_a_programs_own_bytes_are_its_arguments_results_and_intermediates():
    program = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((1 << 27,), jnp.float32)).compile()
    assert harness.program_gb() == pytest.approx(2 * 4 * (1 << 27) / 1e9)  # of which nothing was ever allocated
    del program
