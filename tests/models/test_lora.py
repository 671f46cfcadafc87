"""Adapters: how they start, what is trained, and what they are merged into."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.backends import close
from tests.support.model_folders import run_folder, write_folder
from tests.support.tokenizer_files import write_model
from tsallis_rl.config.schema import base_config
from tsallis_rl.exports.export import export
from tsallis_rl.models import SIZES, bind, initialize, lora, parameter_shapes
from tsallis_rl.models.architecture import load_architecture
from tsallis_rl.objectives import Coefficients
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.record import supervised_record
from tsallis_rl.training.learner import update
from tsallis_rl.training.optimizer import AVERAGE, START, make_optimizer, start_state
from tsallis_rl.training.packing import one_row_each
from tsallis_rl.training.reference import rescore

PLAIN = dataclasses.replace(SIZES["tiny"], vocab_size=23, kv_heads=2, width=24, head_dim=8, ffn=40)
ARCH = dataclasses.replace(PLAIN, lora_rank=3, lora_alpha=6.0)
TOKENS = jnp.array([[1, 5, 7, 2, 9], [3, 3, 8, 1, 0]])


@functools.cache
def adapted():
    """Parameters whose adapters do something."""
    params = jax.jit(functools.partial(initialize, ARCH))(jax.random.key(0))
    layers = params["layers"]
    keys = iter(jax.random.split(jax.random.key(1), len(layers)))
    moved = {k: 0.3 * jax.random.normal(next(keys), v.shape) for k, v in layers.items() if k.endswith(lora.OUT)}
    return params, params | {"layers": layers | moved}


@functools.partial(jax.jit, static_argnames="arch")
def hidden(arch, params):
    return bind(arch, params).prefill(TOKENS)[0]


def test_training_starts_from_the_model_without_adapters():
    params, _ = adapted()
    plain, adapters = lora.split(params)
    assert len(adapters["layers"]) == 2 * 7
    assert set(parameter_shapes(PLAIN)["layers"]) == set(plain["layers"])
    np.testing.assert_allclose(hidden(ARCH, params), hidden(PLAIN, plain), atol=close(2e-6))


def test_merged_parameters_are_the_same_function():
    _, params = adapted()
    merged = lora.merge(params, ARCH)
    assert not lora.split(merged)[1]
    difference = np.abs(hidden(ARCH, params) - hidden(PLAIN, lora.split(params)[0]))
    assert difference.max() > 0.1
    np.testing.assert_allclose(hidden(PLAIN, merged), hidden(ARCH, params), atol=close(2e-5))
    expected = params["layers"]["out"] + 2 * np.einsum(
        "nkhr,nrd->nkhd", params["layers"]["out_lora_in"], params["layers"]["out_lora_out"]
    )
    np.testing.assert_allclose(merged["layers"]["out"], expected, atol=close(1e-5))


def test_an_update_changes_adapters_alone_and_optimiser_and_references_hold_nothing_else():
    _, params = adapted()
    params = lora.replace(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), lora.trained(params))
    optimizer = make_optimizer(base_config().optimizer, 10)
    state = start_state(params, optimizer, (START, AVERAGE), ARCH.dtype)
    size = sum(leaf.size for leaf in jax.tree.leaves(lora.trained(params)))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == 2 * size + 2  # moments, and two counts
    assert sum(leaf.size for leaf in jax.tree.leaves(state.references)) == 2 * size
    batch = PromptBatch(TOKENS, np.array([5, 4]), np.array([[4, 6], [7, 6]]), np.array([2, 1]))
    rollouts = supervised_record(jax.tree.map(np.asarray, batch), np.array([[9, 8], [7, 6]]), np.array([2, 1]), [2])
    ones = Coefficients(jnp.ones((2, 1)), jnp.ones((2, 1)))
    step = jax.jit(functools.partial(update, arch=ARCH, optimizer=optimizer))
    new, _ = step(state, one_row_each(rollouts, ones), decay=0.25)
    average = jax.tree.map(lambda x, y: 0.25 * x + 0.75 * y, lora.trained(params), lora.trained(new.params))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), new.references[AVERAGE], average)
    under_start = rescore(new.params, new.references[START], rollouts, None, arch=ARCH, answers=True)
    before, now = (rescore(p, lora.trained(p), rollouts, None, arch=ARCH, answers=True) for p in (params, new.params))
    np.testing.assert_array_equal(under_start, before)
    assert np.abs(before - now).max() > 1e-3
    for path, leaf in jax.tree.leaves_with_path(new.params):
        before = functools.reduce(lambda tree, key: tree[key.key], path, params)
        assert leaf.dtype == before.dtype
        assert ("_lora_" in path[-1].key) == bool((leaf != before).any()), path


def test_only_a_pretrained_folder_is_adapted():
    config = base_config()
    config.model.lora_rank = 4
    with pytest.raises(UserError, match="lora_rank=4: only a pretrained folder is adapted, not tiny"):
        load_architecture(config.model, 8)


def test_a_run_with_adapters_is_exported_merged(tmp_path, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    before = write_folder(tmp_path / "in", jnp.float32)
    write_model(tmp_path / "in")
    run_folder(tmp_path, tmp_path / "in", lora_rank=2, lora_alpha=8.0)
    export(tmp_path / "run", tmp_path / "out", step=1)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == before.keys()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["lora_rank"] == 2
    for name, array in before.items():
        change = after[name] - array
        if array.ndim == 2 and ".layers." in name:
            assert 1 <= np.linalg.matrix_rank(change, tol=1e-3 * np.linalg.norm(change, 2)) <= 2, name
        else:
            assert not change.any(), name
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.steps == [1]
    checkpoints.close()
