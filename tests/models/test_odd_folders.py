"""Model folders that differ from those of the four families' own pages: each works, or is refused in one sentence."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.model_folders import QWEN, assert_same_bits, load, write_folder, write_tensors
from tsallis_rl.models.families import FAMILIES, TYPES, pretrained_architecture, read_config
from tsallis_rl.models.pretrained import Safetensors, load_pretrained, save_pretrained
from tsallis_rl.runs.errors import UserError


def write_shards(folder, total: int, **changes) -> dict[str, np.ndarray]:
    """A folder of shards without an index."""
    tensors = write_folder(folder, **changes)
    (folder / "model.safetensors").unlink()
    for i in range(total):
        part = {name: tensors[name] for name in list(tensors)[i::total]}
        save_file(part, folder / f"model-{i + 1:05}-of-{total:05}.safetensors")
    return tensors


def write_config(folder, **changes) -> None:
    folder.mkdir(exist_ok=True)
    config = {name: value for name, value in (QWEN | changes).items() if value != "GONE"}
    (folder / "config.json").write_text(json.dumps(config))


def test_shards_without_an_index_are_the_model(tmp_path):
    tensors = write_shards(tmp_path / "model", 3)
    arch, params = load(tmp_path / "model")
    (tmp_path / "out").mkdir()
    save_pretrained(params, arch, tmp_path / "out", dtype="bfloat16")
    assert_same_bits(load_file(tmp_path / "out" / "model.safetensors"), tensors)


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_a_shard_that_is_missing_is_named(tmp_path, gone):
    write_shards(tmp_path / "model", 3)
    (tmp_path / "model" / f"model-0000{gone}-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=rf"holds 2 of 3 shards and no .*model-0000{gone}-of-00003\.safetensors is mis"):
        Safetensors(tmp_path / "model")


def test_shards_of_two_models_are_refused(tmp_path):
    write_shards(tmp_path / "model", 3)
    write_shards(tmp_path / "model", 2)
    with pytest.raises(UserError, match=r"shards of 00002 and of 00003 files, and no model\.safetensors\.index\.json"):
        Safetensors(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "consolidated.safetensors",
            "only consolidated.safetensors: rename it to model.safetensors if it is the whole",
        ),
        ("pytorch_model.bin", "only pytorch_model.bin: pickled files can run code and are not read; convert it"),
        ("part-2.safetensors", "only part-1.safetensors and others without model.safetensors.index.json; copy that"),
        ("notes.txt", "neither model.safetensors, nor model.safetensors.index.json, nor shards"),
    ],
)
def test_a_folder_without_the_file_says_what_it_has_instead(tmp_path, name, sentence):
    (tmp_path / name).write_bytes(b"")
    if name == "part-2.safetensors":
        (tmp_path / "part-1.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(sentence)):
        Safetensors(tmp_path)


def test_a_head_of_odd_width_is_refused_and_one_that_is_not_width_over_heads_is_not(tmp_path):
    write_config(tmp_path / "odd", head_dim=7)
    with pytest.raises(UserError, match=r"odd/config\.json: head_dim is 7; rotary positions turn pairs, so it must be"):
        pretrained_architecture(tmp_path / "odd")
    write_config(tmp_path / "derived", head_dim="GONE", hidden_size=20)
    with pytest.raises(UserError, match=r"hidden_size / num_attention_heads, the width of a head, is 5"):
        pretrained_architecture(tmp_path / "derived")
    write_folder(tmp_path / "other", head_dim=10, hidden_size=18)  # 18 / 4 is not even whole
    assert load(tmp_path / "other")[1]["layers"]["query"].shape == (3, 18, 4, 10)


@pytest.mark.parametrize("kind", sorted(TYPES.keys() - {"gemma3"}))
@pytest.mark.parametrize("architectures", ["GONE", None, []])
def test_without_architectures_the_model_type_is_the_family(tmp_path, kind, architectures):
    changes = {"architectures": architectures, "model_type": kind, "sliding_window": 8}
    write_config(tmp_path, **changes, hidden_activation="gelu_pytorch_tanh")
    assert pretrained_architecture(tmp_path).post_norms == (kind == "gemma3_text")
    assert TYPES[kind] in FAMILIES


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": "GONE", "model_type": "mamba"}, "mamba"),
        ({"architectures": "GONE", "model_type": "GONE"}, "none"),
        ({"architectures": ["Qwen3Model"]}, "Qwen3Model"),
    ],
)
def test_another_family_is_refused_by_its_name(tmp_path, changes, named):
    write_config(tmp_path, **changes)
    with pytest.raises(
        UserError, match=rf"the architecture {named} is not supported; choose a model of Qwen3ForCausal"
    ):
        pretrained_architecture(tmp_path)


@pytest.mark.parametrize("claimed", [400, 500])
def test_an_embedding_of_more_or_fewer_rows_says_what_to_write(tmp_path, claimed):
    write_folder(tmp_path)
    write_config(tmp_path, vocab_size=claimed)
    with pytest.raises(
        UserError, match=rf"has shape \[420, 16\], .* asks for \[{claimed}, 16\]; set vocab_size there to the 420 rows"
    ):
        load(tmp_path)
    write_config(tmp_path, vocab_size=420)
    assert load(tmp_path)[1]["embed"].shape == (420, 16)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
)
def test_weights_that_are_no_numbers_are_named_with_their_file(tmp_path, value, dtype, name):
    tensors = write_folder(tmp_path, dtype, files=2)
    tensors[name].flat[-1] = value
    file = tmp_path / f"part-{list(tensors).index(name) % 2}.safetensors"
    part = {other: tensors[other] for other in load_file(file)}
    save_file(part, file)
    with pytest.raises(UserError, match=rf"{file}: the tensor {re.escape(name)} holds NaN or infinities; copy the mod"):
        load(tmp_path)


def test_weights_beyond_the_type_of_the_computation_are_not_made_infinite(tmp_path):
    tensors = write_folder(tmp_path)
    tensors["model.norm.weight"][3] = 1e5
    save_file(tensors, tmp_path / "model.safetensors")
    arch, params = load(tmp_path)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float16"), params)
    with pytest.raises(
        UserError, match=r"norm\.weight holds values too large for float16; compute in another config\.mo"
    ):
        load_pretrained(tmp_path, arch, half, jax.tree.map(lambda x: x.sharding, params))


# As google/gemma-3-4b-it is published: most of the text part's fields are left to transformers' defaults.
PUBLISHED = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eos_token_id": [1, 106],
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}


def test_the_text_part_of_a_published_gemma_of_text_and_images_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    arch = pretrained_architecture(tmp_path)
    assert (arch.vocab_size, arch.width, arch.layers, arch.heads, arch.kv_heads) == (262_208, 2560, 34, 8, 4)
    assert (arch.head_dim, arch.ffn, arch.window, arch.context) == (256, 10_240, 1024, 131_072)
    assert arch.rope_scaling.factor == 8 and arch.query_scale == 1 / 16 and arch.local_layers[4:7] == (1, 0, 1)
    fields = read_config(tmp_path)
    assert fields["architectures"] == ["Gemma3ForCausalLM"] and fields["torch_dtype"] == "bfloat16"
    assert fields["eos_token_id"] == [1, 106] and "vision_config" not in fields
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED | {"text_config": None}))
    with pytest.raises(UserError, match=r"config\.json has no object text_config"):
        pretrained_architecture(tmp_path)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_tensors_of_the_text_part_are_found_beside_those_of_images(tmp_path, prefix):
    tensors = write_tensors(QWEN, jnp.bfloat16)
    named = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    named["language_model.lm_head.weight"] = named.pop("lm_head.weight")
    write_config(tmp_path)
    save_file(named | {"vision_tower.head.weight": np.ones(3)}, tmp_path / "model.safetensors")
    _, params = load(tmp_path)
    np.testing.assert_array_equal(params["embed"], tensors["model.embed_tokens.weight"].astype(np.float32))
    np.testing.assert_array_equal(params["head"], tensors["lm_head.weight"].T.astype(np.float32))
