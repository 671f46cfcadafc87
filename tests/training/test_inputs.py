"""A run continues only with the inputs that it began with: data, tokeniser, model, settings of jax."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.checkpoints import flip
from tests.support.model_folders import double, edit_json, write_folder
from tests.support.paths import ROOT
from tests.support.tokenizer_files import write_model
from tsallis_rl.config.files import load_config
from tsallis_rl.models.architecture import architecture_fingerprint
from tsallis_rl.models.sizes import SIZES
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.fingerprints import BLOCK, BLOCKS, FILE, file_fingerprint, other_inputs
from tsallis_rl.runs.run_directory import RunDirectory
from tsallis_rl.tasks.base import Example
from tsallis_rl.tasks.encoding import EncodedSplit, Head, fingerprint
from tsallis_rl.tasks.token_rows import TokenRows
from tsallis_rl.tasks.tokenizers import WordTokenizer, vocabulary_fingerprint
from tsallis_rl.training.inputs import keep_inputs
from tsallis_rl.training.loop import train
from tsallis_rl.training.regeneration import regenerate
from tsallis_rl.training.setup import _advice, prepare


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with a model, examples, and a run with a checkpoint that stands for one; and the run's config."""
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "in", jnp.float32)
    write_model(tmp_path / "in")
    lines = [{"prompt": f"the cat {i} sat", "answer": "on"} for i in range(12)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = load_config(f"{ROOT / 'configs' / 'jsonl.py'}:start=chat,model={tmp_path / 'in'}")
    config.task.update(path=str(tmp_path / "task.jsonl"), max_prompt=64, max_answer=4)
    config.rollouts.update(num_rollouts=3, max_rationale=6)
    config.train.update(steps=1, prompts=2)
    config.evaluate.update(samples=2, prompts=2)
    RunDirectory(tmp_path / "run", config).claim()
    keep_inputs(prepare(config), tmp_path / "run", continues=False)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(1, {"w": jnp.zeros(1)}, (0.0,), {})
    checkpoints.close()
    return tmp_path, config


def edit_lines(file: Path, edit) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in edit([json.loads(x) for x in file.open()])))


def rename_an_unused_token(content: dict) -> None:
    """Gives the text of an id that no example has to another text."""
    vocabulary = content["model"]["vocab"]
    token = max((t for t in vocabulary if len(t) == 1 and t.isascii() and t in "~^|`{}"), key=vocabulary.get)
    vocabulary["~~~~" if token != "~" else "^^^^"] = vocabulary.pop(token)


CHANGES = {
    "another answer": (
        lambda root: edit_lines(root / "task.jsonl", lambda rows: [row | {"answer": "sat"} for row in rows]),
        "split is not the data that it began with",
    ),
    "another order": (
        lambda root: edit_lines(root / "task.jsonl", lambda rows: rows[::-1]),
        "split is not the data that it began with: other examples, golds or prompts, or in another order",
    ),
    "one example more": (
        lambda root: edit_lines(root / "task.jsonl", lambda rows: [*rows, {"prompt": "a dog sat", "answer": "on"}]),
        "split is not the data that it began with",
    ),
    "another text of an id": (
        lambda root: edit_json(root / "in" / "tokenizer.json", rename_an_unused_token),
        "its tokeniser is not the one that it began with, so that ids mean other text; put its files back",
    ),
    "another architecture": (
        lambda root: edit_json(root / "in" / "config.json", lambda config: config.update(rope_theta=77.0)),
        "the model's config.json, or its adapter's adapter_config.json, is not what it began with; put it back",
    ),
    "other weights": (
        lambda root: flip(root / "in" / "model.safetensors"),
        "model.safetensors is not what it began with; put the model's files back",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_continue_over_other_inputs(run, change):
    root, config = run
    make, told = CHANGES[change]
    make(root)
    (root / "run" / "metrics.jsonl").write_text('{"step": 7}\n')
    with pytest.raises(UserError, match=rf"run cannot continue here \({FILE}\): .*{told}.*start in another --workdir"):
        train(config, root / "run")
    assert (root / "run" / "metrics.jsonl").read_text() == '{"step": 7}\n'
    with pytest.raises(UserError, match=rf"{told}.*, or it is another one"):
        regenerate(root / "run", step=0, example=0, rollout=0)


def test_a_run_does_not_continue_where_jax_draws_otherwise(run):
    root, config = run
    jax.config.update("jax_random_seed_offset", 7)
    try:
        with pytest.raises(UserError, match="jax's setting jax_random_seed_offset is not what it began with"):
            train(config, root / "run")
    finally:
        jax.config.update("jax_random_seed_offset", 0)


def test_a_run_of_an_earlier_version_is_told_once_and_kept_from_then_on(run, capsys):
    root, config = run
    kept, setup = (root / "run" / FILE).read_text(), prepare(config)
    (root / "run" / FILE).unlink()
    keep_inputs(setup, root / "run", continues=True)
    assert f"{root / 'run'} keeps no {FILE}, as the version that began the run" in capsys.readouterr().err
    assert (root / "run" / FILE).read_text() == kept
    keep_inputs(setup, root / "run", continues=True)
    assert "WARNING" not in capsys.readouterr().err


def test_weights_that_are_not_needed_any_more_need_not_be_there(run):
    root, config = run
    (root / "in" / "model.safetensors").unlink()
    keep_inputs(prepare(config), root / "run", continues=True)


def test_a_run_that_begins_anew_keeps_what_is_there_now(run):
    root, config = run
    kept = (root / "run" / FILE).read_text()
    CHANGES["one example more"][0](root)
    keep_inputs(prepare(config), root / "run", continues=False)
    assert (root / "run" / FILE).read_text() != kept


def test_a_start_that_was_refused_leaves_its_folder_to_the_corrected_one(run):
    root, config = run
    workdir = root / "again"
    double(root / "in", np.nan)
    with pytest.raises(UserError, match="holds NaN or infinities; copy the model's folder again"):
        train(config, workdir)
    assert (workdir / "markers.json").exists()
    write_folder(root / "in", jnp.float32)
    config.task.joint = " so "
    assert train(config, workdir)[-1]["step"] == 1
    with pytest.raises(UserError, match=r"holds a run with config.task.joint = ' so '"):
        config.task.joint = " then "
        train(config, workdir)


def test_changed_code_of_ones_own_is_told_once_and_the_run_continues(run, capsys, monkeypatch):
    root, config = run
    (root / "mygrader.py").write_text("def score(prediction, example):\n    return 1.0\n")
    monkeypatch.syspath_prepend(root)
    config.task.metric = "mygrader.score"
    keep_inputs(prepare(config), root / "run", continues=False)
    keep_inputs(prepare(config), root / "run", continues=True)
    assert "WARNING" not in capsys.readouterr().err
    with (root / "mygrader.py").open("a") as file:
        file.write("# another line\n")
    keep_inputs(prepare(config), root / "run", continues=True)
    assert "WARNING" not in capsys.readouterr().err  # the code that is loaded is what the run began with
    importlib.reload(sys.modules["mygrader"])
    for warnings in (1, 0):
        keep_inputs(prepare(config), root / "run", continues=True)
        told = capsys.readouterr().err
        assert told.count("the file of mygrader is not what the run began with (inputs.json); the run con") == warnings


FOUND = {"splits": {"train": "a"}, "tokenizer": "b", "architecture": "c", "weights": {"w": "d"}, "draws": {"x": 1}}


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ([], r"holds \[\] where an object .* remove it, and what is there now is taken"),
        ({}, "holds None as 'splits', which no run writes; remove it, and what is there now is taken"),
        (FOUND | {"splits": 3}, "holds 3 as 'splits', which no run writes"),
        (FOUND | {"splits": {}}, "holds {} as 'splits', which no run writes"),
        (FOUND | {"tokenizer": None}, "holds None as 'tokenizer', which no run writes"),
        (FOUND | {"weights": ["w"]}, r"holds \['w'\] as 'weights', which no run writes"),
    ],
)
def test_what_is_kept_and_no_fingerprint_is_told(tmp_path, kept, told):
    (tmp_path / FILE).write_text(json.dumps(kept))
    with pytest.raises(UserError, match=rf"inputs.json {told}"):
        other_inputs(FOUND, tmp_path)


def test_inputs_of_another_version_are_compared_as_far_as_both_have_them(tmp_path):
    assert other_inputs(FOUND, tmp_path) == ""
    (tmp_path / FILE).write_text(json.dumps(FOUND | {"later": 1, "weights": {"gone": "e"}, "draws": {"y": 2}}))
    assert other_inputs(FOUND, tmp_path) == ""
    (tmp_path / FILE).write_text(json.dumps(FOUND | {"draws": {"x": 2}}))
    assert "jax's setting x is not what it began with" in other_inputs(FOUND, tmp_path)


def split(prompts, answers, pad=0, **more) -> EncodedSplit:
    rows = [
        TokenRows(np.concatenate(rows).astype(np.int32), np.cumsum([0, *map(len, rows)])) for rows in (prompts, answers)
    ]
    examples = [Example(**({"id": str(i), "prompt": "", "answer": str(i)} | more)) for i in range(len(prompts))]
    heads = [Head(example.id, example.answer, example.aliases, example.part) for example in examples]
    return EncodedSplit(*rows, examples, heads, {}, max_prompt=4, max_answer=4, pad=pad)


def test_fingerprints_tell_apart_what_trains_otherwise_and_nothing_else(tmp_path):
    same = fingerprint(split([[1, 2], [3]], [[4], [5]]))
    assert fingerprint(split([[1, 2], [3]], [[4], [5]], pad=9)) == same
    others = [
        split([[1], [2, 3]], [[4], [5]]), split([[3], [1, 2]], [[4], [5]]), split([[1, 2], [3]], [[5], [4]]),
        split([[1, 2], [3]], [[4], [5]], aliases=("x",)), split([[1, 2], [3]], [[4], [5]], part="cold"),
        split([[1, 2]], [[4]]),
    ]  # fmt: skip
    assert len({same, *map(fingerprint, others)}) == len(others) + 1

    words = [vocabulary_fingerprint(WordTokenizer(words)) for words in (["a", "b"], ["b", "a"], ["a"], ["a", "c"])]
    assert len(set(words)) == 4

    arch = SIZES["tiny"]
    changes = {"remat": "layers", "attention": "xla", "rope_theta": 3.0, "norm_eps": 0.5, "logit_cap": 2.0}
    found = {name: architecture_fingerprint(dataclasses.replace(arch, **{name: x})) for name, x in changes.items()}
    same = architecture_fingerprint(arch)
    assert {name for name, value in found.items() if value == same} == {"remat", "attention"}

    file = tmp_path / "weights"
    size = BLOCKS * BLOCK + 3 * BLOCK
    seen = set()
    for at in (None, 0, size // 2, size - 1):
        content = bytearray(size)
        if at is not None:
            content[max(0, at - BLOCK) : at + BLOCK] = b"\1" * len(content[max(0, at - BLOCK) : at + BLOCK])
        file.write_bytes(content)
        seen.add(file_fingerprint(file))
    file.write_bytes(bytes(size + 1))
    assert len(seen | {file_fingerprint(file)}) == 5
    with pytest.raises(UserError, match=r"nothing cannot be read \(No such file or directory\)"):
        file_fingerprint(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("dropped", "advice"),
    [
        ({}, "give the validation split at least one example, for the choice of the best checkpoint"),
        ({"answer longer than task.max_answer=1 tokens": 3}, "raise config.task.max_answer, as far as the model's"),
        (
            {"prompt longer than task.max_prompt=1 tokens": 3, "answer longer than task.max_answer=1 tokens": 1},
            "raise config.task.max_prompt and config.task.max_answer, as far",
        ),
    ],
)
def test_a_split_without_examples_comes_with_advice(dropped, advice):
    empty = dataclasses.replace(split([[1]], [[2]]), examples=(), dropped=dropped)
    assert _advice("validation", empty).startswith(advice)


def test_that_advice_is_part_of_the_sentence(run):
    _, config = run
    config.task.max_answer = 1
    with pytest.raises(UserError, match=r"train split can be used: 0 examples; .*; raise config.task.max_answer"):
        prepare(config)
