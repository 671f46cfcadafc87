"""Runs with adapters, exported: merged onto the pretrained weights, or alone, to be trained on."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.command_line import call
from tests.support.model_folders import double, edit_json, read, run_folder, write_folder
from tests.support.tokenizer_files import write_model
from tsallis_rl.config.saved import run_config
from tsallis_rl.export import main
from tsallis_rl.exports.export import export
from tsallis_rl.models import lora
from tsallis_rl.models.architecture import load_architecture
from tsallis_rl.models.sharding import make_mesh
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.training.base_model import base_parameters


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A pretrained folder in float32, a run of one step in bfloat16 with adapters, and their export."""
    root = tmp_path_factory.mktemp("adapted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSALLIS_RL_CACHE", str(root / "cache"))
        write_folder(root / "in", jnp.float32)
        write_model(root / "in")
        run_folder(root, root / "in", dtype="bfloat16", lora_rank=2, lora_alpha=8.0, lora_targets=("v_proj", "o_proj"))
        export(root / "run", root / "adapter", step=1, adapter=True)
    return root


def start_from(root, adapter):
    """Parameters of a run that starts from an adapter."""
    config = run_config(root / "run", "")
    config.model.update(adapter=str(adapter), lora_rank=0, lora_alpha=32.0, lora_targets=())
    arch = load_architecture(config.model, 420)
    return arch, base_parameters(config, task=None, markers=None, arch=arch, mesh=make_mesh(config.mesh))


def test_a_run_from_an_exported_adapter_starts_with_the_same_bits(adapted):
    arch, params = start_from(adapted, adapted / "adapter")
    assert (arch.lora_rank, arch.lora_alpha, arch.lora_targets) == (2, 8.0, ("value", "out"))
    checkpoints = Checkpoints(adapted / "run" / "checkpoints")
    saved = checkpoints.restore_params(1, params)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, params, saved)
    assert any(np.any(leaf) for name, leaf in params["layers"].items() if name.endswith(lora.OUT))


def test_an_adapters_folder_states_base_and_targets(adapted):
    settings = json.loads((adapted / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(adapted / "in")
    assert (settings["r"], settings["lora_alpha"], settings["target_modules"]) == (2, 8, ["v_proj", "o_proj"])
    assert sorted(file.name for file in (adapted / "adapter").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    card = (adapted / "adapter" / "README.md").read_text()
    assert 'library_name: "peft"' in card and "| train | " in card and "| test, before training |" in card


def test_frozen_weights_are_those_of_the_folder_though_training_held_them_in_bfloat16(adapted, tmp_path):
    export(adapted / "run", tmp_path / "out", step=1)
    before, after = read(adapted / "in"), read(tmp_path / "out")
    tensors = load_file(adapted / "adapter" / "adapter_model.safetensors")
    for name, array in before.items():
        factors = [
            tensors.get(f"base_model.model.{name.removesuffix('weight')}lora_{letter}.weight") for letter in "AB"
        ]
        change = 0 if factors[0] is None else 4 * factors[1] @ factors[0]
        assert after[name].dtype == np.float32
        np.testing.assert_allclose(after[name], array + change, atol=1e-7 if factors[0] is not None else 0)


def test_an_adapter_in_bfloat16_says_what_it_keeps(adapted, tmp_path, capsys):
    assert not call(
        main,
        f"--checkpoint={adapted / 'run'}",
        f"--out={tmp_path / 'out'}",
        "--step=1",
        "--adapter",
        "--dtype=bfloat16",
    )
    told = capsys.readouterr().out
    assert "numbers that training moved, 100.0% still differ" in told and "norm, cosine 1.00" in told
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {array.dtype.name for array in tensors.values()} == {"bfloat16"}


def test_a_run_without_adapters_has_none_to_export_and_says_what_bfloat16_loses_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "in", jnp.bfloat16)
    write_model(tmp_path / "in")
    run_folder(tmp_path, tmp_path / "in", learning_rate=1e-4)
    with pytest.raises(UserError, match=r"--adapter: the run in .* trained all parameters and has no adapters; leave"):
        export(tmp_path / "run", tmp_path / "out", adapter=True)
    assert not (tmp_path / "out").exists()
    # Written in the pretrained folder's own type, half of what moved is lost, and that is said.
    kept = export(tmp_path / "run", tmp_path / "out", step=1, dtype="bfloat16").kept
    before, after = read(tmp_path / "in"), read(tmp_path / "out")
    export(tmp_path / "run", tmp_path / "exact", step=1)
    exact = read(tmp_path / "exact")
    moved = sum(int((exact[name] != array.astype(np.float32)).sum()) for name, array in before.items())
    left = sum(int((after[name] != array).sum()) for name, array in before.items())
    assert (kept.moved, kept.share) == (moved, left / moved)
    assert 0.1 < kept.share < 0.9
    assert kept.sentence("bfloat16") in (tmp_path / "out" / "README.md").read_text()


def test_a_run_continues_from_an_adapter(adapted, tmp_path, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    run_folder(tmp_path, adapted / "in", adapter=str(adapted / "adapter"))
    export(tmp_path / "run", tmp_path / "out", step=1, adapter=True)
    before, after = (load_file(x / "adapter_model.safetensors") for x in (adapted / "adapter", tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(0 < np.abs(after[name] - array).max() < 0.05 for name, array in before.items())


def test_transformers_says_the_same_of_the_merged_export_and_of_the_adapter_on_its_base(adapted, tmp_path):
    reason = "needs the extra parity: torch, transformers and peft"
    torch, transformers, peft = (pytest.importorskip(x, reason=reason) for x in ("torch", "transformers", "peft"))
    export(adapted / "run", tmp_path / "out", step=1)
    tokens = torch.tensor(np.random.default_rng(0).integers(420, size=(2, 9)))

    def logits(model):
        with torch.no_grad():
            return model(tokens).logits.numpy()

    load = functools.partial(transformers.AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    merged, before = logits(load(tmp_path / "out")), logits(load(adapted / "in"))
    assert np.abs(merged - before).max() > 1e-3
    found = logits(peft.AutoPeftModelForCausalLM.from_pretrained(adapted / "adapter", dtype=torch.float32))
    np.testing.assert_allclose(found, merged, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (double, "model.safetensors is not what it began with"),
        (lambda model: edit_json(model / "config.json", lambda c: c.update(rope_theta=7.0)), "model's config.json, or"),
        (lambda model: write_model(model, texts=["zebra dogma vixen"] * 9), "its tokeniser is not the one"),
        (lambda model: (model / "tokenizer.json").unlink(), "holds neither tokenizer.json nor tokenizer.model"),
    ],
    ids=["weights", "arithmetic", "tokeniser", "no tokeniser"],
)
def test_adapters_are_not_merged_into_another_model_that_took_the_folders_place(adapted, tmp_path, change, told):
    shutil.copytree(adapted, tmp_path / "moved")
    run, model = tmp_path / "moved" / "run", tmp_path / "moved" / "in"
    edit_json(run / "config.json", lambda config: config["model"].update(size=str(model)))
    change(model)
    with pytest.raises(UserError, match=told):
        export(run, tmp_path / "out", step=1)
    assert not (tmp_path / "out").exists()
