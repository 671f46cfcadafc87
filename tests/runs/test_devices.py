"""The environment of jax: the program sets whatever would change draws, and says what is missing."""

import os
import subprocess
import sys

import jax
import pytest

from tests.support.paths import ROOT
from tsallis_rl.runs.devices import PINNED, Device, ask_device, draw_settings, start_jax
from tsallis_rl.runs.errors import UserError
from tsallis_rl.sweeps.cells import default_jobs

OTHERS = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 7,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_matmul_precision": "highest",
}


def test_settings_that_change_draws_are_those_of_the_program_and_it_says_so(capsys):
    start_jax()
    capsys.readouterr()  # of what this session's environment asks for
    start_jax()
    before = jax.random.key_data(jax.random.split(jax.random.key(3)))
    assert capsys.readouterr().err == "" and draw_settings() == PINNED and OTHERS.keys() == PINNED.keys()
    for name, value in OTHERS.items():
        jax.config.update(name, value)
    assert draw_settings() == OTHERS
    start_jax()
    told = capsys.readouterr().err.splitlines()
    assert [line.split("=")[0] for line in told] == [f"NOTE: {name.upper()}" for name in PINNED]
    assert told[0] == "NOTE: JAX_ENABLE_X64=True is ignored: it is False here"
    assert (jax.random.key_data(jax.random.split(jax.random.key(3))) == before).all()


@pytest.mark.parametrize(
    ("variable", "program", "told"),
    [
        ("JAX_PLATFORMS=tpu", "main --plan", "error: JAX_PLATFORMS=tpu: Unable to initialize backend 'tpu': "),
        ("JAX_PLATFORMS=cuda", "main --plan", "error: JAX_PLATFORMS=cuda: "),
        ("JAX_NUM_CPU_DEVICES=0", "main --plan", "error: JAX_NUM_CPU_DEVICES=0: Unable to initialize backend 'cpu'"),
        ("TQDM_MININTERVAL=abc", "main --plan", "float: 'abc'; correct it, or unset it (tqdm reads TQDM_MININTERVAL)"),
        ("MPLBACKEND=nope", "report runs", "macosx"),
        (
            "JAX_ENABLE_X64=maybe",
            "main --plan",
            "value 'maybe' for environment 'JAX_ENABLE_X64'; correct it",
        ),
    ],
)
def test_an_environment_that_cannot_be_is_one_sentence(variable, program, told):
    name, _, value = variable.partition("=")
    command = [sys.executable, "-m", *f"tsallis_rl.{program}".split()]
    others = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(command, cwd=ROOT, env=others | {name: value}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


ODD = {"JAX_DEBUG_INFS": "1", "JAX_DISABLE_JIT": "1", "JAX_TRANSFER_GUARD": "disallow", "JAX_DEFAULT_DEVICE": "tpu"}
ENVIRONMENT = """
import jax.numpy as jnp, numpy as np
from tsallis_rl.runs.devices import start_jax
start_jax()
print(jnp.log(jnp.add(np.zeros(3), 0)))
"""


def test_settings_under_which_no_run_works_are_not_read_and_that_is_said():
    done = subprocess.run(
        [sys.executable, "-c", ENVIRONMENT], env=os.environ | ODD | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "[-inf -inf -inf]\n", done.stderr
    told = done.stderr
    assert "NOTE: JAX_DEBUG_INFS=True is ignored: it is False here" in told and "JAX_DEFAULT_DEVICE=tpu is" in told
    assert "NOTE: JAX_TRANSFER_GUARD_HOST_TO_DEVICE=disallow is ignored: it is None here" in told


def test_cells_at_a_time_are_not_guessed_where_no_device_is(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nothing")
    with pytest.raises(
        UserError, match=r"jax finds no device for the cells \(.*nothing.*\); correct JAX_PLATFORMS, or"
    ):
        default_jobs()


@pytest.mark.parametrize(
    ("device", "told"),
    [
        (Device("cpu", "cpu", 1, 0.0, 0.0), "cpu, computing in float32"),
        (
            Device("gpu", "Tesla T4", 1, 11.04, 7.5),
            "Tesla T4, 11.0 GiB of memory for JAX, computing in float32 (it has no products of bfloat16)",
        ),
        (Device("gpu", "AMD Instinct MI300X", 1, 0.0, 0.0), "AMD Instinct MI300X, computing in float32"),
        (Device("gpu", "NVIDIA L4", 2, 16.6, 8.9), "NVIDIA L4 × 2, 16.6 GiB of memory for JAX, computing in bfloat16"),
        (Device("tpu", "TPU v5 lite", 1, 15.7, 0.0), "TPU v5 lite, 15.7 GiB of memory for JAX, computing in bfloat16"),
    ],
)
def test_a_device_is_told_with_its_memory_and_the_type_that_suits_it(device, told):
    assert str(device) == told


def test_the_device_is_asked_for_in_another_process(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    assert ask_device() == Device("cpu", "cpu", 3, 0.0, 0.0)
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    with pytest.raises(
        UserError, match=r"jax finds no device \(.*nonsense.*\); correct JAX_PLATFORMS, or install the "
    ):
        ask_device()
