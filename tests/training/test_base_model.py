"""The base model in the cache: anything wrong in its place is recognised, named and replaced."""

import os
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.support.runs import small
from tsallis_rl.training.base_model import _find, cache_file
from tsallis_rl.training.optimizer import held_shapes
from tsallis_rl.training.setup import fill_cache, prepare

SHAPES = {
    "embed": jax.ShapeDtypeStruct((4, 3), np.float32),
    "layers": {"up": jax.ShapeDtypeStruct((2, 3), np.float32)},
}
WHOLE = {"embed": np.ones((4, 3), np.float32), "layers/up": np.zeros((2, 3), np.float32)}
FOREIGN = {
    "a name more": (WHOLE | {"head": np.ones(3, np.float32)}, "it has other names, as head"),
    "a name less": ({"embed": WHOLE["embed"]}, "it has other names, as layers/up"),
    "another shape": (
        WHOLE | {"layers/up": np.zeros((3, 2), np.float32)},
        r"layers/up is float32 \[3, 2\], not",
    ),
    "too large": (WHOLE | {"layers/up": np.zeros((200, 300), np.float32)}, r"layers/up is larger than \[2, 3\]"),
    "another type": (WHOLE | {"layers/up": np.zeros((2, 3), np.float16)}, r"layers/up is float16 \[2, 3\]"),
    "text": (WHOLE | {"layers/up": np.full((2, 3), "x")}, r"layers/up is str"),
    "objects": (WHOLE | {"layers/up": np.full((2, 3), None)}, "it holds pickled objects"),
    "NaN": (WHOLE | {"embed": np.full((4, 3), np.nan, np.float32)}, "embed holds NaN or infinity"),
    "infinity": (WHOLE | {"embed": np.full((4, 3), np.inf, np.float32)}, "embed holds NaN or infinity"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_an_archive_of_something_else_is_named(tmp_path, capsys, what):
    arrays, told = FOREIGN[what]
    file, kept = tmp_path / "base.npz", {}
    np.savez(file, **arrays)
    assert not _find(file, SHAPES, kept) and not kept
    error = capsys.readouterr().err
    assert error.startswith(f"WARNING: {file} is not the base model that was kept (") and error.count("\n") == 1
    assert error.endswith("; it is made again\n")
    assert re.search(told, error)


@pytest.mark.parametrize("device", ["pipe", "/dev/zero", "folder"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, capsys, device):
    file = tmp_path / "base.npz"
    {"pipe": os.mkfifo, "folder": os.mkdir}.get(device, lambda at: at.symlink_to(device))(file)
    assert not _find(file, SHAPES, {})
    assert capsys.readouterr().err.startswith(f"WARNING: {file} is not the base model that was kept (")


def test_what_was_kept_is_found_and_nothing_is_said_of_a_file_that_is_not_there(tmp_path, capsys):
    kept = {}
    assert not _find(tmp_path / "base.npz", SHAPES, kept)
    np.savez(tmp_path / "base.npz", **WHOLE)
    assert _find(tmp_path / "base.npz", SHAPES, kept)
    assert {name: array.tolist() for name, array in flatten_dict(kept, sep="/").items()} == {
        name: array.tolist() for name, array in WHOLE.items()
    }
    (tmp_path / "base.npz").unlink()
    (tmp_path / "base.npz").symlink_to("/proc/self/mem")  # answers with an input/output error
    assert not _find(tmp_path / "base.npz", SHAPES, {})
    assert "Input/output error" in capsys.readouterr().err


def test_a_base_model_in_whose_place_is_another_is_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path))
    setup = prepare(small())
    file = cache_file(setup.config, setup.task, setup.markers, setup.arch)
    file.parent.mkdir()
    np.savez(file, **WHOLE)
    fill_cache(small())
    told = capsys.readouterr()
    assert f"WARNING: {file} is not the base model that was kept (it has other names, as" in told.err
    assert "base model: /" not in told.out
    assert _find(file, held_shapes(setup.arch), {}) and [file] == list(file.parent.iterdir())
