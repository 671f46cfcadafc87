"""Adapters to and from peft's folders: which projections have them, what is read and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.backends import close
from tests.support.model_folders import assert_same_bits, load, write_folder
from tsallis_rl.config.schema import base_config
from tsallis_rl.models import bind, lora, output_logits, parameter_shapes
from tsallis_rl.models.adapters import save_adapter
from tsallis_rl.models.architecture import load_architecture
from tsallis_rl.models.sharding import make_mesh
from tsallis_rl.runs.errors import UserError
from tsallis_rl.training.base_model import base_parameters

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A pretrained folder."""
    folder = tmp_path_factory.mktemp("model") / "base"
    write_folder(folder, jnp.float32)
    return folder


def model_config(base, **model):
    config = base_config()
    config.model.size = str(base)
    config.model.update(model)
    return config


def architecture(base, **model):
    return load_architecture(model_config(base, **model).model, 420)


def adapted(base, **model):
    """An architecture with adapters, and parameters whose adapters all do something."""
    arch = architecture(base, **model)
    shapes = parameter_shapes(arch)
    _, params = load(base)
    keys = iter(jax.random.split(jax.random.key(1), len(shapes["layers"])))
    factors = {
        name: 0.3 * jax.random.normal(next(keys), like.shape) for name, like in lora.trained(shapes)["layers"].items()
    }
    return arch, params | {"layers": params["layers"] | factors}


def write_adapter(folder, base, dtype="float32", **model):
    """A folder of peft; returns the parameters that it was made from."""
    arch, params = adapted(base, **model)
    folder.mkdir(parents=True)
    save_adapter(lora.trained(params), arch, folder, dtype=dtype, base=str(base))
    return params


def start(base, folder, **model):
    """Parameters with which a run starts from an adapter."""
    config = model_config(base, adapter=str(folder), **model)
    arch = load_architecture(config.model, 420)
    return arch, base_parameters(config, task=None, markers=None, arch=arch, mesh=make_mesh(config.mesh))


def test_only_the_chosen_projections_have_adapters(base):
    arch, params = adapted(base, lora_rank=3, lora_targets=("v_proj", "q_proj", "o_proj"))
    names = {name.removesuffix(lora.IN).removesuffix(lora.OUT) for name in lora.trained(params)["layers"]}
    assert names == {"query", "value", "out"}
    assert arch.lora_targets == ("query", "value", "out")
    assert params["layers"]["out_lora_in"].shape == (3, 4, 6, 3)  # layers, heads, width of a head, rank
    tokens = jnp.array([[1, 5, 7, 2, 9]])
    changed, _ = bind(arch, params).prefill(tokens)
    plain = dataclasses.replace(arch, lora_rank=0)
    merged, _ = bind(plain, lora.merge(params, arch)).prefill(tokens)
    np.testing.assert_allclose(merged, changed, atol=close(1e-4))
    assert np.abs(changed - bind(plain, lora.split(params)[0]).prefill(tokens)[0]).max() > 0.1
    assert architecture(base, lora_rank=3).lora_targets == ("query", "key", "value", "out", "gate", "up", "down")


@pytest.mark.parametrize("targets", [(), ("o_proj", "down_proj")])
def test_an_adapter_comes_back_bit_for_bit_and_brings_its_settings(base, tmp_path, targets):
    saved = write_adapter(tmp_path / "adapter", base, lora_rank=3, lora_alpha=5.0, lora_targets=targets)
    arch, params = start(base, tmp_path / "adapter")
    assert (arch.lora_rank, arch.lora_alpha, len(arch.lora_targets)) == (3, 5.0, len(targets) or 7)
    jax.tree.map(np.testing.assert_array_equal, params, saved)
    same, _ = start(base, tmp_path / "adapter", lora_rank=3, lora_alpha=5.0, lora_targets=targets or NAMES)
    assert same == arch


def test_a_rank_stabilised_adapter_is_divided_by_the_root_of_its_rank(base, tmp_path):
    write_adapter(tmp_path / "adapter", base, lora_rank=4, lora_alpha=5.0)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_rslora": True}))
    arch = architecture(base, adapter=str(tmp_path / "adapter"))
    assert arch.lora_alpha / arch.lora_rank == 5 / 2


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"lora_rank": 8}, r"config.model.lora_rank=8: the adapter in .* has 3; leave that field at its default"),
        ({"lora_alpha": 16.0}, r"config.model.lora_alpha=16.0: the adapter in .* has 5.0; leave"),
        ({"lora_targets": ("q_proj",)}, r"lora_targets=\('q_proj',\): the adapter in .* has \['q_proj', 'v_proj'\]; l"),
        ({"lora_targets": ("lm_head",)}, r"config.model.lora_targets: 'lm_head' is not supported; name some of q_proj"),
    ],
)
def test_a_setting_that_contradicts_the_adapter_is_refused(base, tmp_path, model, sentence):
    write_adapter(tmp_path / "adapter", base, lora_rank=3, lora_alpha=5.0, lora_targets=("q_proj", "v_proj"))
    with pytest.raises(UserError, match=sentence):
        architecture(base, adapter=str(tmp_path / "adapter"), **model)


def test_settings_of_adapters_that_nothing_reads_are_refused(base, tmp_path):
    with pytest.raises(UserError, match=r"lora_targets=\('q_proj',\): no adapters are trained, so nothing reads it"):
        architecture(base, lora_targets=("q_proj",))
    with pytest.raises(UserError, match=r"config.model.adapter=x: only a pretrained folder is adapted, not tiny"):
        architecture("tiny", adapter="x")
    with pytest.raises(UserError, match=r"config.model.adapter: there is no folder .*nowhere"):
        architecture(base, adapter=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported, only 'LORA'"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"rank_pattern": {"q_proj": 2}}, r"rank_pattern=\{'q_proj': 2\} is not supported"),
        ({"alpha_pattern": {"q_proj": 2}}, r"alpha_pattern=\{'q_proj': 2\} is not supported"),
        ({"layers_to_transform": [0]}, r"layers_to_transform=\[0\] is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True is not supported"),
        ({"of_a_later_peft": 1}, "of_a_later_peft=1 is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported: it changes the base model's"),
        ({"r": 0}, "r=0 is no rank"),
        ({"lora_alpha": "8"}, "lora_alpha='8' is not supported; expected a number above 0"),
        ({"lora_alpha": 10**400}, "lora_alpha=1000.* is not supported; expected a number above 0"),
        ({"use_rslora": "no"}, "use_rslora='no' is not supported; expected true or false"),
        ({"target_modules": "all-linear"}, "target_modules: 'all-linear' is not supported; name some of q_proj"),
        ({"target_modules": "q_proj"}, r"target_modules: 'q_proj' is not supported; .* as in \('q_proj', 'v_proj'\)"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target_modules: 'lm_head' is not supported"),
        ({"target_modules": [["q_proj"]]}, r"target_modules: \['q_proj'\] is not supported"),
        ({"target_modules": []}, "target_modules: an empty list is not supported"),
    ],
)
def test_what_is_not_supported_of_an_adapter_is_named(base, tmp_path, changes, sentence):
    write_adapter(tmp_path / "adapter", base, lora_rank=2)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=rf"adapter_config.json: {sentence}"):
        architecture(base, adapter=str(tmp_path / "adapter"))


def test_a_damaged_adapter_is_one_sentence(base, tmp_path):
    folder = tmp_path / "adapter"
    write_adapter(folder, base, lora_rank=2, lora_targets=("q_proj", "o_proj"))
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.self_attn.o_proj.lora_B.weight"
    assert tensors[name].shape == (16, 2)

    def refused(changed):
        save_file(changed, file)
        with pytest.raises(UserError) as error:
            start(base, folder)
        return str(error.value)

    assert f"lacks the tensor {name}" in refused({key: value for key, value in tensors.items() if key != name})
    other = name.replace("o_proj", "v_proj")
    assert f"the tensor {other} belongs to nothing that is adapted" in refused(tensors | {other: tensors[name]})
    wrong = tensors | {name: tensors[name].T.copy()}
    assert f"{name} has shape [2, 16], where r and the model's config.json ask for [16, 2]" in refused(wrong)
    assert "holds numbers that are not finite" in refused(tensors | {name: tensors[name] * np.float32(np.nan)})
    assert f"{name} is int8" in refused(tensors | {name: tensors[name].astype(np.int8)})
    file.write_bytes(b"12345678901")
    with pytest.raises(UserError, match=r"adapter_model.safetensors cannot be read \(.*copy the adapter's folder"):
        start(base, folder)
    file.unlink()
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no adapter_model.safetensors; adapter_model.bin is pickled"):
        start(base, folder)


def logits(arch, params, tokens):
    decoder = bind(arch, params)
    return output_logits(decoder.prefill(jnp.array(tokens))[0], decoder.output_head())


@pytest.fixture(scope="module")
def peft():
    reason = "needs the extra parity: torch, transformers and peft"
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason=reason)
    return pytest.importorskip("peft", reason=reason)


@pytest.mark.parametrize("targets", [(), ("q_proj", "o_proj", "up_proj")])
def test_peft_loads_an_adapter_with_our_logits(base, tmp_path, peft, targets):
    import torch
    import transformers

    arch, params = adapted(base, lora_rank=3, lora_alpha=5.0, lora_targets=targets)
    write_adapter(tmp_path / "adapter", base, lora_rank=3, lora_alpha=5.0, lora_targets=targets)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    tokens = np.random.default_rng(0).integers(420, size=(2, 9))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
        with model.disable_adapter():
            without = model(torch.tensor(tokens)).logits.numpy()
    assert np.abs(theirs - without).max() > 0.1
    np.testing.assert_allclose(logits(arch, params, tokens), theirs, atol=close(1e-5))


def test_an_adapter_that_peft_saved_is_read_with_its_logits_and_written_as_it_was(base, tmp_path, peft):
    import torch
    import transformers

    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, lora_dropout=0.1, target_modules=["k_proj", "o_proj", "down_proj"],
        init_lora_weights="gaussian", use_rslora=True,
    )  # fmt: skip
    model = peft.get_peft_model(plain, settings).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "theirs")
    arch, params = start(base, tmp_path / "theirs")
    tokens = np.random.default_rng(0).integers(420, size=(2, 9))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(logits(arch, params, tokens), theirs, atol=close(1e-5))
    (tmp_path / "ours").mkdir()
    save_adapter(lora.trained(params), arch, tmp_path / "ours", dtype="float32", base=str(base))
    found, expected = (load_file(tmp_path / x / "adapter_model.safetensors") for x in ("ours", "theirs"))
    assert_same_bits(found, expected)
