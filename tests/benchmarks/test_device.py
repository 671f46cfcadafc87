"""The benchmark of an accelerator: what it counts, what it keeps when it is cut short, and that all of it runs."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import counts, device
from benchmarks.estimate import FLAGS
from benchmarks.kernels import Event, add_up, device_events, group_of
from tests.support.paths import ROOT
from tsallis_rl.models import SIZES

QWEN = dataclasses.replace(SIZES["qwen3-0.6b"], dtype="bfloat16")
TOKEN = 28 * 2 * 8 * 128 * 2  # bytes of a token's keys and values


def test_decoding_reads_parameters_prompts_once_a_group_and_half_grown_own_keys():
    lengths = np.full((8, 32), 512)
    parameters = 2 * (596_049_920 - 65_536)  # without norms
    step = parameters + 8 * 1024 * TOKEN + 8 * 32 * 255.5 * TOKEN
    assert counts.decode_bytes(QWEN, 1024, lengths) == pytest.approx(512 * step)
    assert step / 4.3e12 == pytest.approx(2.2e-3, rel=0.02)  # seconds a step at an H200's copies
    # One rollout runs alone after the other ended: its group's prompt is read on, the other group's is not.
    uneven = np.array([[4, 2], [1, 1]])
    tokens = (4 + 1) * 1024 + (0 + 1 + 2 + 3) + (0 + 1)
    assert counts.decode_bytes(QWEN, 1024, uneven) == pytest.approx(4 * parameters + tokens * TOKEN)


def test_the_products_of_an_update_are_six_a_parameter_and_token_with_prompts_once():
    flops = counts.update_flops(QWEN, 1024, np.full((8, 32), 512))
    assert flops == pytest.approx(609e12, rel=0.003)
    used = np.zeros((8, 32))
    used[0, :4] = 512
    assert counts.update_flops(QWEN, 1024, used) < flops * (4 / 256 + 1 / 100)  # other groups' prompts are not read


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("input_reduce_fusion_12", "input_reduce_fusion"),
        ("gemm_fusion_dot_1234_0", "gemm_fusion_dot"),
        ("loop_add_fusion.3", "loop_add_fusion"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_NNT", "nvjet_tst_h_bz_NNT"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_64x64x128", None),
        ("void at::native::reduce_kernel<512, 1>(float)", "at::native::reduce_kernel"),
        ("123", "123"),
    ],
)
def test_kernels_of_one_name_are_one_group(name, group):
    assert group_of(name) == (group or "cudnn_generated_fort_native_sdpa_flash_fprop_wgmma")


def test_a_profile_adds_up_calls_and_tells_busy_from_idle():
    found = add_up([Event("dot_1", 0, 2e6), Event("dot_2", 5e6, 3e6), Event("copy", 2e6, 1e6)])
    assert (found.busy_ms, found.span_ms, found.calls) == (6, 8, 3)
    assert found.kernels == [("dot", 5, 2), ("copy", 1, 1)]


def plane(name, **lines):
    """A plane of a profile, whose lines hold kernels of a millisecond."""
    return SimpleNamespace(
        name=name,
        lines=[
            SimpleNamespace(
                name=line.replace("_", " "),
                events=[SimpleNamespace(name=kernel, start_ns=i, duration_ns=1e6) for i, kernel in enumerate(kernels)],
            )
            for line, kernels in lines.items()
        ],
    )


HOST = plane("/host:CPU", python=["main"])


@pytest.mark.parametrize(
    ("planes", "kernels"),
    [
        (
            [
                HOST,
                plane("/device:GPU:1", Stream_1=["other"]),
                plane("/device:GPU:0", Stream_7=["dot_1"], Stream_8=["MemcpyD2D"], XLA_Ops=["dot"], Steps=["0"]),
            ],
            ["dot_1", "MemcpyD2D"],
        ),
        ([HOST, plane("/device:TPU:0", XLA_Modules=["update"], XLA_Ops=["fusion.1", "copy"])], ["fusion.1", "copy"]),
        ([HOST], []),
        (
            [SimpleNamespace(name="/host:CPU", lines=[SimpleNamespace(name="tf_XLAEigen/1", events=[
                SimpleNamespace(name=name, start_ns=0, duration_ns=1) for name in ("dot", "end: dot", "A::B")
            ])])],
            ["dot"],
        ),
    ],
    ids=["GPU", "TPU", "no kernels", "CPU"],
)  # fmt: skip
def test_kernels_are_those_of_one_device_each_once(planes, kernels):
    assert [event.name for event in device_events(planes)] == kernels


PEAKS = {"card": "Some GPU 3", "backend": "gpu", "bandwidth": 1e12, "flops": 1e14}
ROW = {"tokens": 1000, "seconds": 0.5, "ms": 2.0, "first_s": 7.0, "compile_s": 6.0, "peak_gb": 1.5}


def test_cases_are_skipped_when_the_budget_is_used_up_and_an_interruption_loses_nothing(tmp_path, capsys):
    measured = []

    def measure(name, args, backend, left):
        measured.append(name)
        if len(measured) == 4:
            raise KeyboardInterrupt
        assert 0 < left <= args.budget
        return PEAKS if name == "peaks" else ROW | {"bytes_a_second": 5e11}

    def arguments(budget):
        return device.parser().parse_args([f"--budget={budget}", "--match=^rollouts|update", f"--out={tmp_path / 'x'}"])

    with pytest.raises(KeyboardInterrupt):
        device.run(arguments(100), measure)
    kept = json.loads((tmp_path / "x").read_text())["rows"]
    assert list(kept) == measured[:3] == ["peaks", "rollouts 8 × 32, 1024/512", "update 8 × 32, 1024/512"]
    told = capsys.readouterr().out
    assert "Some GPU 3 (gpu): copies 1,000 GB/s read and written, bfloat16 products 100.00 TFLOP/s\n" in told
    assert "rollouts 8 × 32, 1024/512              2,000     2.00   50.0% bandw.    1.5      7.0        6.0\n" in told

    measured.clear()
    device.run(arguments(0), measure)
    assert measured == []
    assert "update 8 × 32, 1024/512           not measured: the budget of 0.0 s is used up" in capsys.readouterr().out


def test_nothing_is_measured_where_the_peaks_are_not(tmp_path, capsys):
    args = device.parser().parse_args([f"--out={tmp_path / 'x'}"])
    with pytest.raises(SystemExit, match="own peaks could not be measured"):
        device.run(args, lambda *given: {"not_measured": "jax finds no accelerator here"})
    assert "not measured: jax finds no accelerator here\n" in capsys.readouterr().out


def test_our_speed_is_set_beside_that_of_torch_and_the_first_step_is_added_up():
    rows = {name: ROW for name in device.cases(small=False) if name != "peaks"}
    rows |= {
        "transformers 4 × 32, 256/128": ROW | {"seconds": 6.0},
        "TRL's update 8 × 32, 1024/512": {"not_measured": ""},
    }
    told = device.summary(rows)
    assert "rollouts 4 × 32, 256/128: 12.0 times transformers" in told
    assert "first step 8 × 32, 1024/512 with nothing cached, first rollouts and first update: 14 s" in told
    assert not any("TRL" in line for line in told)


def measured(*arguments: str) -> tuple[dict, str]:
    """What the program writes, and prints."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.device", *arguments], cwd=ROOT, env=os.environ | {"XLA_FLAGS": FLAGS},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    file = next(x.partition("=")[2] for x in arguments if x.startswith("--out="))
    return json.loads(Path(file).read_text())["rows"], done.stdout


@pytest.mark.processes
def test_the_program_measures_a_small_size(tmp_path):
    rows, told = measured("--small", "--match=^rollouts 1", "--profile", f"--out={tmp_path / 'out.json'}")
    peaks, rollouts = rows.values()
    assert peaks["versions"]["jax"] and peaks["bandwidth"] > 0 < peaks["flops"]
    assert rollouts["tokens"] == 4 * 8
    assert rollouts["first_s"] > rollouts["compile_s"] > 0.1 and rollouts["first_s"] > rollouts["seconds"] > 0
    assert "kernels\n" in rollouts["profile"] and rollouts["profile"] in told


@pytest.mark.slow
def test_the_program_measures_every_case(tmp_path):
    rows, told = measured("--small", f"--out={tmp_path / 'out.json'}")
    assert list(rows) == list(device.cases(small=True))
    for name, row in rows.items():
        of_torch = name.startswith(("transformers", "TRL"))
        assert "seconds" in row or "flops" in row or (of_torch and row["not_measured"] == "torch is not installed")
    assert "first step 2 × 4, 32/8 with nothing cached" in told
