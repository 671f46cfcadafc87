"""Pretrained folders in and out: every bit comes back, from any mesh and from a run; and what is refused."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.checkpoints import flip, largest
from tests.support.model_folders import QWEN, assert_same_bits, edit_json, load, read, run_folder, write_folder
from tests.support.paths import OFFICIAL, ROOT
from tests.support.tokenizer_files import write_model
from tsallis_rl.config import command_line as settings
from tsallis_rl.config.schema import base_config
from tsallis_rl.exports.export import export
from tsallis_rl.models.families import pretrained_architecture
from tsallis_rl.models.pretrained import save_pretrained
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.training.loop import train

DATA = OFFICIAL / "finqa"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("files", [1, 3])
def test_every_bit_comes_back_from_one_file_and_from_several(tmp_path, dtype, files):
    tensors = write_folder(tmp_path / "in", jnp.dtype(dtype), files, tie_word_embeddings=files == 3)
    arch, params = load(tmp_path / "in")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    (tmp_path / "out").mkdir()
    save_pretrained(params, arch, tmp_path / "out", dtype=dtype, shard_bytes=10_000 if files > 1 else 10**9)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > files - 1
    assert_same_bits(read(tmp_path / "out"), tensors)
    if files > 1:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
        for name, file in index["weight_map"].items():
            assert name in load_file(tmp_path / "out" / file)


SHARDED = """
import sys
import jax, numpy as np
from pathlib import Path
from tests.support.model_folders import assert_same_bits, load, read
from tsallis_rl.models.pretrained import save_pretrained
folder = Path(sys.argv[1])
arch, params = load(folder, data=1, fsdp=2, tensor=2)
query = params["layers"]["query"]
assert query.sharding.shard_shape(query.shape) == (3, 8, 2, 6), query.sharding
assert params["embed"].addressable_shards[3].data.shape == (210, 8)
(folder / "out").mkdir()
save_pretrained(params, arch, folder / "out", dtype="bfloat16")
assert_same_bits(read(folder / "out"), read(folder))
"""


def test_every_bit_comes_back_from_a_mesh_of_four_devices(tmp_path):
    write_folder(tmp_path / "in")
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED, str(tmp_path / "in")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def refused(folder):
    with pytest.raises(UserError) as error:
        load(folder)
    return str(error.value)


def test_a_missing_or_misshapen_tensor_is_named(tmp_path):
    tensors = write_folder(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "model.safetensors")
    assert f"has the tensor {name}" in refused(tmp_path)
    save_file(tensors | {name: tensors[name].T.copy()}, tmp_path / "model.safetensors")
    assert f"{name} has shape [16, 24], where its config.json asks for [24, 16]" in refused(tmp_path)
    save_file(tensors | {name: tensors[name].astype(np.int8)}, tmp_path / "model.safetensors")
    assert f"{name} is of type I8; only F32, F16, BF16" in refused(tmp_path)


def test_tensors_of_layers_that_the_config_does_not_ask_for_are_told(tmp_path, capfd):
    write_folder(tmp_path)
    _, whole = load(tmp_path)
    assert "WARNING" not in capfd.readouterr().err
    edit_json(tmp_path / "config.json", lambda config: config.update(num_hidden_layers=1))
    _, part = load(tmp_path)
    assert len(part["layers"]["query"]) == 1 < len(whole["layers"]["query"])
    told = capfd.readouterr().err
    assert f"WARNING: {tmp_path}: config.json does not ask for model.layers.1.input_layernorm.weight (" in told


def test_numbers_too_large_for_the_type_are_not_written_as_infinities(tmp_path):
    write_folder(tmp_path, jnp.float32)
    arch, params = load(tmp_path)
    params["embed"] = params["embed"].at[0, 0].set(1e5)
    with pytest.raises(UserError, match=r"--dtype=float16: the tensor model.embed_tokens.weight holds numbers too"):
        save_pretrained(params, arch, tmp_path, dtype="float16")
    save_pretrained(params, arch, tmp_path, dtype="bfloat16")


def test_a_copied_link_to_nothing_is_told_as_one(tmp_path):
    for name in ("model.safetensors", "config.json"):
        write_folder(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("../../blobs/abc")
        assert f"{name} is a link to ../../blobs/abc, which is not there" in refused(tmp_path)
        (tmp_path / name).unlink()


def test_folders_that_cannot_be_read_are_refused_in_a_sentence(tmp_path):
    write_folder(tmp_path, files=3)
    (tmp_path / "part-1.safetensors").unlink()
    assert "part-1.safetensors cannot be read" in refused(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "is no index of safetensors" in refused(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "holds no safetensors" in refused(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "only pytorch_model.bin: pickled files can run code" in refused(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    assert "model.safetensors cannot be read" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported; choose a model of Qwen3ForCaus"),
        ({"architectures": None, "model_type": None}, "the architecture none is not supported"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'silu'"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rotary scaling 'yarn' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "has no field 'rope_scaling.factor'"),
        ({"hidden_size": None}, "has no field 'hidden_size'"),
    ],
)
def test_architectures_and_settings_that_are_not_supported_are_named(tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps(QWEN | changes))
    with pytest.raises(UserError) as error:
        pretrained_architecture(tmp_path)
    assert message in str(error.value)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A pretrained folder, a run of one step from it, and the run's last step exported."""
    root = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSALLIS_RL_CACHE", str(root / "cache"))
        write_folder(root / "in", jnp.float32)
        write_model(root / "in")
        run_folder(root, root / "in")
        assert export(root / "run", root / "out", step=1) == (1, "float32", None)
    return root


def test_a_run_is_exported_with_the_parameters_of_its_checkpoint(exported):
    checkpoints = Checkpoints(exported / "run" / "checkpoints")
    _, before = load(exported / "in")
    saved = checkpoints.restore_params(1, before)
    checkpoints.close()
    _, written = load(exported / "out")
    jax.tree.map(np.testing.assert_array_equal, written, saved)
    assert np.abs(written["layers"]["up"] - before["layers"]["up"]).max() > 1e-3
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (exported / "out" / name).read_bytes() == (exported / "in" / name).read_bytes()
    assert json.loads((exported / "out" / "config.json").read_text()) == QWEN | {"torch_dtype": "float32"}


def test_a_damaged_checkpoint_is_not_exported_but_named(exported, tmp_path, capsys):
    shutil.copytree(exported / "run", tmp_path / "run")
    flip(largest(tmp_path / "run" / "checkpoints" / "1"))
    with pytest.raises(UserError, match=r"--step: .* has sound checkpoints of .*, not of 1"):
        export(tmp_path / "run", tmp_path / "out", step=1)
    assert re.search(r"checkpoints/1 is damaged: \S+ is not what was saved", capsys.readouterr().err)


def test_what_cannot_be_exported_is_one_sentence(exported, tmp_path):
    with pytest.raises(UserError, match=r"--step: .* has sound checkpoints of \[1\], not of 7"):
        export(exported / "run", tmp_path / "out", step=7)
    with pytest.raises(UserError, match="holds files; choose a folder that does not exist"):
        export(exported / "run", exported / "out")
    with pytest.raises(UserError, match="is not the folder of a run"):
        export(exported, tmp_path / "out")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config.json holds \[\] where an object .* choose the folder of a run"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text(json.dumps({"model": {"size": "tiny"}}))
    with pytest.raises(UserError, match=r"has no field base.batch: another version"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text(base_config().to_json())
    with pytest.raises(UserError, match="'tiny', which is not a pretrained folder here"):
        export(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(("there", "room"), [(True, 100), (False, 100), (False, 20_000)])
def test_a_full_disk_leaves_no_half_export(exported, tmp_path, there, room):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(UserError, match=rf"{out} cannot be written \(.*File too large.*\); make room there"):
            export(exported / "run", out, step=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.exists() == there and (not there or not any(out.iterdir()))  # the same command may try again


def test_transformers_loads_an_export_with_the_same_logits(exported):
    torch = pytest.importorskip("torch", reason="needs the extra parity: torch and transformers")
    transformers = pytest.importorskip("transformers", reason="needs the extra parity: torch and transformers")
    check_transformers(torch, transformers, exported / "out", 1e-5)


def check_transformers(torch, transformers, folder, atol):
    from tsallis_rl.models import bind, output_logits

    arch, params = load(folder)
    tokens = np.random.default_rng(0).integers(arch.vocab_size, size=(2, 9))
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    decoder = bind(arch, params)
    hidden, _ = decoder.prefill(jnp.array(tokens))
    np.testing.assert_allclose(output_logits(hidden, decoder.output_head()), expected, atol=atol)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the excerpts of the official release are not there")
def test_a_model_of_the_shape_of_qwen3_0_6b_is_loaded_trained_evaluated_and_exported(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="needs the extra parity: torch and transformers")
    transformers = pytest.importorskip("transformers", reason="needs the extra parity: torch and transformers")
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    write_folder(
        tmp_path / "in", vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960,
        rope_theta=1_000_000.0, tie_word_embeddings=True,
    )  # fmt: skip
    write_model(tmp_path / "in", texts=[(DATA / "train.json").read_text()], vocab_size=8000)
    config = settings.load_config(f"{ROOT / 'configs' / 'finq.py'}:q=0.75,start=warm,model={tmp_path / 'in'}")
    config.task.update(folder=str(DATA), max_prompt=384, prompt_overflow="trim", max_answer=16)
    config.task.update(train_examples=8, validation_examples=1, test_examples=1)
    config.model.remat = "layers"
    config.rollouts.update(num_rollouts=4, max_rationale=6)
    config.train.update(steps=1, prompts=1, save_rollouts_every=0)
    config.evaluate.update(every=1, samples=1, prompts=1)
    records = train(config, tmp_path / "run")
    (step,) = [record for record in records if "train/loss" in record]
    assert np.isfinite(step["train/loss"]) and step["train/grad_norm"] > 0
    assert any("eval/test/pass@1" in record for record in records)
    assert export(tmp_path / "run", tmp_path / "out", step=1) == (1, "float32", None)
    check_transformers(torch, transformers, tmp_path / "out", 1e-4)
