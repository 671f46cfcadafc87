"""The counts of benchmarks/estimate.py, compared with XLA's own count and with the arrays themselves."""

import dataclasses
import functools

import jax
import pytest

from benchmarks.collectives import Collective, collectives
from benchmarks.estimate import (
    FLAGS,
    MACHINES,
    Work,
    at_layers,
    flops,
    in_order,
    layer_parameters,
    memory,
    phases,
    position,
)
from tests.support.backends import on_cpu
from tests.support.reference import learner_log_probs
from tests.support.virtual_devices import printed
from tsallis_rl.models import SIZES, parameter_shapes
from tsallis_rl.sampler.record import record_shapes

QWEN = dataclasses.replace(SIZES["qwen3-0.6b"], dtype="bfloat16")


def test_flops_are_those_that_xla_counts(monkeypatch):
    on_cpu(monkeypatch, block_scores=1 << 30)  # what is looped over is counted once
    # Two layers are not looped over.
    arch = dataclasses.replace(QWEN, dtype="float32", layers=2, width=256, ffn=768, vocab_size=4096)
    prompts, prompt, rollouts, length = 2, 256, 4, 32
    params = parameter_shapes(arch)
    record = record_shapes(prompts, rollouts, prompt, length)
    counted = jax.jit(functools.partial(learner_log_probs, arch=arch)).lower(params, record).cost_analysis()["flops"]
    group, own = prompts * prompt, prompts * rollouts * length
    expected = flops(arch, group + own, own, group * prompt * in_order(prompt) + own * (prompt + length))
    assert counted == pytest.approx(expected, rel=0.05)  # XLA counts norms and softmax as well


def test_the_parameters_are_those_of_the_published_model():
    norms = QWEN.layers * (2 * QWEN.width + 2 * QWEN.head_dim) + QWEN.width
    assert layer_parameters(QWEN) + QWEN.vocab_size * QWEN.width + norms == 596_049_920


def test_sampling_reads_parameters_prompt_and_half_grown_caches_once_a_token():
    work = Work(prompts=2, prompt=1000, rollouts=32, rationale=1200, answer=100)
    assert position(QWEN) == 28 * 2 * 8 * 128 * 2
    for machine, cached in zip(MACHINES, (700, 600), strict=True):  # grown in six segments, and read up to its length
        read = 2 * (596_049_920 - 65_536) + (2 * 1000 + 2 * 32 * cached) * position(QWEN)
        assert phases(QWEN, work, machine)["sampling"].bytes * machine.tensor == pytest.approx(1200 * read)
        assert memory(QWEN, work, machine) < memory(QWEN, work._replace(rollouts=33), machine)


@pytest.mark.processes
def test_what_four_layers_send_follows_from_one_and_two():
    found = printed("tests.support.estimate_program", 4, FLAGS, JAX_ENABLE_COMPILATION_CACHE="false")
    one, two, four = (tuple(x) for x in found.values())
    assert two[0] > one[0] > 0
    assert two[1] > one[1] > 0
    assert at_layers(4, one, two) == four


def test_collectives_are_counted_as_often_as_their_loops_run():
    program = """
%body (p: f32[4]) -> f32[4] {
  %a = f32[4,8]{1,0} all-reduce(%x), channel_id=1, to_apply=%sum
}
%step (p: f32[4]) -> f32[4] {
  %w = f32[4]{0} while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %g = (bf16[2,6]{1,0}, s32[5]{0}) all-gather-start(%x, %y), dimensions={0}
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %w = f32[4]{0} while(%t), condition=%until, body=%step
  %r = pred[] all-reduce(%q), to_apply=%and
}
"""
    assert collectives(program) == [
        Collective("all-reduce", (4, 8), 128, times=3, loop="until step"),
        Collective("all-gather", (2, 6), 24, times=1, loop="until step"),
        Collective("all-gather", (5,), 20, times=1, loop="until step"),
        Collective("all-reduce", (), 1, times=1, loop=""),
    ]
