"""Damaged and hostile model folders: each is refused in one sentence that names the file, whatever is in it."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.support.model_folders import QWEN, load, write_folder, write_tensors
from tests.support.paths import ROOT
from tests.support.tokenizer_files import TEXTS, write_model
from tsallis_rl.models.families import pretrained_architecture
from tsallis_rl.models.pretrained import Safetensors
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.pretrained_tokenizers import HuggingFaceTokenizer, pretrained_tokenizer
from tsallis_rl.tasks.tokenizers import train_sentencepiece
from tsallis_rl.training.base_model import _find

fuzz = settings(max_examples=150, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = [-1, 0, 1, 3, 2**31, 2**63, 2**64 - 1, 10**30, 0.5, 1e308, float("nan"), float("inf")]
VALUES = st.sampled_from(
    [*NUMBERS, None, True, False, "", "x", "…" * 300, "\\ud800", [], [[]], [1, "a"], {}, {"a": 1}, "GONE"]
)


def places(tree, path=()):
    """Where a JSON value has values inside; of a long list or object, some."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items)[:30]:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(tree, path, value):
    """A copy of a JSON value with another value, or none, at a place."""
    copy = json.loads(json.dumps(tree))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if value == "GONE":
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


def damaged(data: bytes):
    """Strategy: `data` cut short, or with some bytes changed, or other bytes altogether."""
    flips = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), min_size=1, max_size=4)

    def flipped(places: list[tuple[int, int]]) -> bytes:
        copy = bytearray(data)
        for place, byte in places:
            copy[place] = byte
        return bytes(copy)

    cut = st.integers(0, len(data) - 1).map(lambda length: data[:length])
    return st.one_of(st.binary(max_size=200), cut, flips.map(flipped))


def sentence(error: pytest.ExceptionInfo | UserError, *names: str) -> None:
    assert any(name in str(error) for name in names) and "Traceback" not in str(error)


TENSORS = write_tensors(QWEN | {"num_hidden_layers": 1}, "float32")
WHOLE = save(TENSORS)
HEADER = json.loads(WHOLE[8 : 8 + struct.unpack("<Q", WHOLE[:8])[0]])
BODY = WHOLE[8 + struct.unpack("<Q", WHOLE[:8])[0] :]
NAME = "model.layers.0.mlp.up_proj.weight"


def headed(header, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + BODY


headers = st.one_of(
    st.tuples(st.sampled_from(list(places(HEADER))), VALUES).map(lambda change: headed(changed(HEADER, *change))),
    st.lists(st.integers(-(2**63), 2**64) | st.integers(0, 9000), min_size=0, max_size=3).map(
        lambda offsets: headed(changed(HEADER, (NAME, "data_offsets"), offsets))
    ),
    st.lists(st.integers(-1, 2**40), max_size=4).map(
        lambda shape: headed(changed(HEADER, (NAME, "shape"), shape))
    ),
    st.integers(0, 2**64 - 1).map(lambda length: headed(HEADER, length)),
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_folder(folder, "float32", num_hidden_layers=1)
    return folder


@fuzz
@given(headers | damaged(WHOLE))
def test_safetensors_of_anything_are_the_tensors_or_one_sentence(model, data):
    (model / "model.safetensors").write_bytes(data)
    try:
        _, params = load(model)
    except UserError as error:
        sentence(error, str(model))
    else:
        assert params["embed"].shape == (420, 16)


def test_safetensors_that_overlap_or_claim_more_than_the_file_holds_are_refused(model):
    first, second = list(HEADER)[:2]
    overlap = changed(HEADER, (second, "data_offsets"), HEADER[first]["data_offsets"])
    for header, length in (
        (overlap, None),
        (changed(HEADER, (NAME, "shape"), [2**40, 2**20]), None),
        (changed(HEADER, (NAME, "data_offsets"), [-8, 0]), None),
        (HEADER, 2**62),
    ):
        (model / "model.safetensors").write_bytes(headed(header, length))
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
            load(model)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/hostname", "a/b", "..", ".", "", "\0", 5, None, [], {"a": "b"}]
)
def test_no_path_of_an_index_leaves_the_folder(tmp_path, name):
    folder = tmp_path / "model"
    write_folder(folder)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {NAME: name}}))
    with pytest.raises(UserError, match=r"is no index of safetensors|cannot be read"):
        Safetensors(folder)


@pytest.mark.parametrize("index", ["", "[]", "5", "{", '{"weight_map": 5}', '{"weight_map": []}', "[" * 10**5, "\xff"])
def test_an_index_of_anything_is_one_sentence(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_bytes(index.encode("latin-1"))
    with pytest.raises(UserError, match=r"index\.json (is no|is not|holds)"):
        Safetensors(tmp_path)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        Safetensors(tmp_path)


GEMMA = QWEN | {
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4,
    "sliding_window_pattern": 2,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 6,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
LLAMA = QWEN | {
    "architectures": ["LlamaForCausalLM"],
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
PUBLISHED = [QWEN, GEMMA, LLAMA]
configs = st.sampled_from(PUBLISHED).flatmap(
    lambda config: st.tuples(st.just(config), st.sampled_from(list(places(config))), VALUES)
)


@settings(fuzz, max_examples=500)
@given(configs)
def test_a_config_json_of_anything_is_an_architecture_or_one_sentence(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps(changed(*change)))
    try:
        arch = pretrained_architecture(tmp_path)
    except UserError as error:
        sentence(error, "config.json")
    else:
        sizes = (arch.vocab_size, arch.width, arch.layers, arch.heads, arch.kv_heads, arch.head_dim, arch.ffn)
        assert all(type(size) is int and 0 < size <= 2**24 for size in sizes)
        assert 0 < arch.context <= 2**31
        assert all(0 < number < float("inf") for number in (arch.rope_theta, arch.local_rope_theta, arch.norm_eps))
        assert len(arch.local_layers) in (0, arch.layers)


@pytest.mark.parametrize("text", ["", "[]", "5", "{", "[" * 10**5, '"x"', "\xff"])
def test_a_config_json_that_is_no_object_is_one_sentence(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json (is not JSON|holds)"):
        pretrained_architecture(tmp_path)


CLAIMS = """
import json, resource, sys
from pathlib import Path
from tests.support.model_folders import QWEN, load, write_folder
from tsallis_rl.training.base_model import _find
from tsallis_rl.runs.errors import UserError
folder = Path(sys.argv[1])
write_folder(folder, "float32")
load(folder)
(folder / "config.json").write_text(json.dumps(QWEN | {"vocab_size": 1}))
try:
    load(folder)  # refused, as below: the threads that it takes are there before the limit
except UserError:
    pass
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 2**28,) * 2)
for field, size in (("intermediate_size", 2**20), ("num_hidden_layers", 10_000), ("head_dim", 2**20),
                    ("vocab_size", 2**24), ("num_attention_heads", 2**20), ("hidden_size", 2**20)):
    (folder / "config.json").write_text(json.dumps(QWEN | {field: size}))
    try:
        load(folder)
    except UserError as error:
        print(error)
"""


def test_no_room_is_made_in_a_size_that_is_merely_claimed(tmp_path):
    command = [sys.executable, "-c", CLAIMS, str(tmp_path / "model")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("which its config.json asks for") == 1  # a layer that is not there
    assert done.stdout.count("where its config.json asks for") == 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("tokenizer"), generation={"eos_token_id": [0]})
    return folder, {file.name: json.loads(file.read_text()) for file in folder.glob("*.json")}


@settings(fuzz, max_examples=400)
@given(data=st.data())
def test_tokenizer_files_of_anything_are_a_tokenizer_or_one_sentence(tokenizer, data):
    folder, whole = tokenizer
    for name, tree in whole.items():
        (folder / name).write_text(json.dumps(tree))
    name = data.draw(st.sampled_from(["tokenizer.json", *whole]))
    if data.draw(st.booleans()):
        path, value = data.draw(st.sampled_from(list(places(whole[name])))), data.draw(VALUES)
        (folder / name).write_text(json.dumps(changed(whole[name], path, value)))
    else:
        (folder / name).write_bytes(data.draw(damaged(json.dumps(whole[name]).encode())))
    try:
        found = HuggingFaceTokenizer(folder)
        found.encode_prompt("the cat é </think>")
        named = [found.end_of_think, *found.stop_ids]
        try:
            found.encode_prompt(({"role": "user", "content": "the cat"},))
            named.append(found.end_of_turn)
        except UserError as error:
            sentence(error, str(folder))
    except UserError as error:
        sentence(error, str(folder))
    else:
        assert all(0 <= id < found.vocab_size for id in (found.pad, *named) if id is not None)
        assert max(found.encode(TEXTS[0]), default=0) < found.vocab_size
        found.decode(found.encode(TEXTS[0]), special=True)


def test_a_tokenizer_that_makes_its_library_panic_is_one_sentence(tokenizer, tmp_path):
    _, whole = tokenizer
    panics = changed(whole["tokenizer.json"], ("model", "continuing_subword_prefix"), "\ud7ff")  # wider than a piece
    (tmp_path / "tokenizer.json").write_text(json.dumps(panics))
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        HuggingFaceTokenizer(tmp_path)


def test_ids_of_a_vocabulary_with_gaps_stay_below_its_size(tokenizer, tmp_path):
    _, whole = tokenizer
    path = ("added_tokens", len(whole["tokenizer.json"]["added_tokens"]) - 1, "id")
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed(whole["tokenizer.json"], path, 100_000)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(whole["tokenizer_config.json"]))
    try:
        found = HuggingFaceTokenizer(tmp_path)
    except UserError:
        pass  # some releases of the library refuse it
    else:
        assert max(found.encode("</think>", special=True)) < found.vocab_size


BASE = {"embed": np.ones(3), "layers": {"up": np.arange(9.0)}}


@fuzz
@given(st.data())
def test_a_base_model_of_the_cache_that_is_damaged_is_what_was_kept_or_named(tmp_path, capsys, data):
    file, kept = tmp_path / "base.npz", {}
    np.savez(file, **flatten_dict(BASE, sep="/"))
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    if _find(file, BASE, kept):
        assert {n: x.shape for n, x in flatten_dict(kept).items()} == {
            n: x.shape for n, x in flatten_dict(BASE).items()
        }
    else:
        assert not kept
        assert capsys.readouterr().err.endswith("; it is made again\n")


SENTENCEPIECE = train_sentencepiece(TEXTS, 400)


@fuzz
@given(damaged(SENTENCEPIECE))
def test_a_sentencepiece_model_of_anything_is_a_tokenizer_or_one_sentence(tmp_path, data):
    (tmp_path / "tokenizer.model").write_bytes(data)
    try:
        found = pretrained_tokenizer(tmp_path)
    except UserError as error:
        sentence(error, str(tmp_path / "tokenizer.model"))
    else:
        found.decode(found.encode("the cat é </think>"))
