"""A model that is not finite is reported before its first step; a checkpoint that is not finite is never the best."""

import dataclasses
import logging
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.model_folders import run_folder, write_folder
from tests.support.paths import ROOT
from tests.support.rollouts import ARCH, PARAMS
from tests.support.runs import small
from tests.support.tokenizer_files import write_model
from tsallis_rl.config.command_line import _quiet
from tsallis_rl.report.summary import summary
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.training.finite import check_parameters, check_probabilities, is_broken
from tsallis_rl.training.loop import quality_of

HALF = dataclasses.replace(ARCH, dtype="float16")


def with_value(name: str, value: float) -> dict:
    params = jax.tree.map(lambda x: x, PARAMS)
    layers = params["layers"]
    layers[name] = layers[name].at[(0,) * layers[name].ndim].set(value)
    return params


@pytest.mark.parametrize(
    ("params", "arch", "told"),
    [
        (PARAMS, ARCH, None),
        (PARAMS, HALF, None),
        (with_value("up", jnp.nan), ARCH, r"layers/up holds NaN or infinity; get its files again"),
        (with_value("up", -jnp.inf), ARCH, r"layers/up holds NaN or infinity; get its files again"),
        (with_value("down", 1e5), ARCH, None),
        (with_value("down", 1e5), HALF, r"layers/down holds numbers beyond 65504, .*dtype=float16; set .*=bfloat16 or"),
        (jax.tree.map(lambda x: x * jnp.nan, PARAMS), ARCH, r"embed \(and \d+ more\) holds NaN or infinity"),
    ],
)
def test_parameters_that_are_not_finite_are_named(params, arch, told):
    if told is None:
        check_parameters(params, arch, "here")
    else:
        with pytest.raises(UserError, match=rf"^here: the model is not finite before the first step: .*{told}"):
            check_parameters(params, arch, "here")


@pytest.mark.parametrize(
    ("log_p_hat", "broken"), [(-3.0, False), (-math.inf, False), (0.0, False), (math.nan, True), (math.inf, True)]
)
def test_minus_infinity_is_a_log_probability_and_nan_is_none(log_p_hat, broken):
    assert is_broken(log_p_hat) == broken
    config = small()
    for dtype, told in (("float16", "activations are too large for config.model.dtype=float16"), ("float32", "files")):
        config.model.dtype = dtype
        if broken:
            with pytest.raises(UserError, match=rf"here: .*not finite before the first step \(log P̂ is .*{told}"):
                check_probabilities({"log_p_hat": log_p_hat}, config, "here")
        else:
            check_probabilities({"log_p_hat": log_p_hat}, config, "here")
    config.model.lora_rank = 2
    if broken:
        with pytest.raises(UserError, match=r"lower config.model.lora_alpha, or get its files again"):
            check_probabilities({"log_p_hat": log_p_hat}, config, "here")


def test_a_run_whose_model_is_too_large_for_float16_ends_before_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "in", jnp.float32)
    write_model(tmp_path / "in")
    file = tmp_path / "in" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = 1e5
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"numbers beyond 65504, the largest of .*=float16; set .*=bfloat16 or float32"):
        run_folder(tmp_path, tmp_path / "in", dtype="float16")
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_checkpoint_whose_log_p_hat_is_no_number_is_never_the_best(tmp_path):
    scores = {"maj@4": 0.0, "pass@1": 0.0}
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step, log_p_hat in enumerate((-3.0, -math.inf, math.nan, math.inf)):  # of equals the later is best
        checkpoints.save(step, {"w": jnp.zeros(1)}, quality_of(scores | {"log_p_hat": log_p_hat}, 4), {})
    assert (checkpoints.best, checkpoints.latest) == (1, 3)
    checkpoints.close()
    assert quality_of({"maj@4": 0.5, "pass@1": 0.25, "log_p_hat": -3.0}, 4) == (0.5, 0.25)


def test_updates_left_out_are_counted_at_the_end():
    records = [{"step": i, "train/loss": 1.0, "train/skipped": float(i in (2, 3))} for i in range(5)]
    assert "WARNING: 2 of 5 updates were left out, the first at step 2: a loss," in summary(records)
    assert "left out" not in summary([record | {"train/skipped": 0.0} for record in records])


def test_the_writers_own_words_are_not_heard_and_others_are(capsys):
    from absl import logging as absl_logging

    _quiet()
    handler = absl_logging.get_absl_handler()
    for path, heard in (("/site-packages/orbax/checkpoint/x.py", False), ("/site-packages/jax/x.py", True)):
        record = logging.LogRecord("absl", logging.ERROR, path, 1, "a traceback", (), None)
        assert bool(handler.filter(record)) == heard


FAILED_SAVE = """
import resource, sys
from pathlib import Path
import jax.numpy as jnp
from tsallis_rl.config.command_line import _quiet
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import one_sentence
class Falls:
    def __del__(self):
        raise KeyError("told")
with one_sentence():
    _quiet()
    Falls()
    checkpoints = Checkpoints(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    checkpoints.save(1, {f"w{i}": jnp.arange(40_000.0) + i for i in range(30)}, (0.5,), {})
    checkpoints.wait()
"""


def test_the_parts_of_a_save_that_failed_are_not_heard_one_by_one_and_other_mistakes_are(tmp_path):
    (tmp_path / "program.py").write_text(FAILED_SAVE)
    arguments = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "checkpoints")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Event loop" not in done.stderr and "KeyError: 'told'" in done.stderr
    assert "error: a checkpoint could not be saved in " in done.stderr and "File too large" in done.stderr
