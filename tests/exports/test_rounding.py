"""The share of a change that survives rounding, compared with numbers worked out by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.model_folders import load, write_folder
from tsallis_rl.exports.rounding import Kept, kept_of_factors, kept_of_parameters
from tsallis_rl.models import SIZES


def test_what_moved_by_less_than_half_a_step_is_lost(tmp_path):
    """Near 1, numbers of bfloat16 are 2^−7 apart: 2^−9 is rounded away, 2^−7 stays, 1.5 × 2^−7 becomes 2 × 2^−7."""
    tensors = write_folder(tmp_path / "in")
    arch, params = load(tmp_path / "in")
    start = np.ones(params["norm"].shape, np.float32)
    change = np.zeros_like(start)
    change[:3] = 2**-9, 2**-7, 1.5 * 2**-7
    save_file(tensors | {"model.norm.weight": start.astype(jnp.bfloat16)}, tmp_path / "in" / "model.safetensors")
    kept = kept_of_parameters(params | {"norm": jnp.array(start + change)}, arch, tmp_path / "in", "bfloat16")
    before, after = np.array([0.25, 1, 1.5]), np.array([0, 1, 2])  # in 2^−7
    assert kept.moved == 3
    assert kept.share == pytest.approx(2 / 3)
    assert kept.norm == pytest.approx(np.linalg.norm(after) / np.linalg.norm(before))
    assert kept.cosine == pytest.approx(before @ after / np.linalg.norm(after) / np.linalg.norm(before))
    nothing = kept_of_parameters(params | {"norm": jnp.array(start)}, arch, tmp_path / "in", "bfloat16")
    assert nothing.moved == 0 and "moved no number" in nothing.sentence("bfloat16")


def test_numbers_of_every_tensor_are_counted(tmp_path):
    tensors = write_folder(tmp_path / "in", tie_word_embeddings=True)
    arch, params = load(tmp_path / "in")
    doubled = {k: {n: 2 * x for n, x in v.items()} if k == "layers" else 2 * v for k, v in params.items()}
    kept = kept_of_parameters(doubled, arch, tmp_path / "in", "bfloat16")
    assert kept == Kept(sum(array.size for array in tensors.values()), 1.0, 1.0, pytest.approx(1.0))


def test_adapters_keep_their_product(tmp_path):
    arch = dataclasses.replace(SIZES["tiny"], lora_rank=1, lora_alpha=2.0)
    into, out = np.array([[[1 + 2**-9], [0]]], np.float32), np.array([[[3.0, 0.0]]], np.float32)
    kept = kept_of_factors({"layers": {"up_lora_in": into, "up_lora_out": out}}, arch, "bfloat16")
    assert kept.moved == 1 and kept.share == 1
    assert kept.norm == pytest.approx(1 / (1 + 2**-9), rel=1e-7)
