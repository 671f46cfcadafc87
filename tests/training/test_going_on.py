"""Continuing after a run: more steps in its folder, or another run that starts from its parameters."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backends import only_on_cpu
from tests.support.checkpoints import saved_state
from tests.support.model_folders import double, edit_json, write_folder
from tests.support.paths import ROOT
from tests.support.runs import SMALL, small, without_clocks
from tests.support.tokenizer_files import write_model
from tsallis_rl.config import command_line as settings
from tsallis_rl.models import bind
from tsallis_rl.report.summary import summary
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_directory import RunDirectory, read_records
from tsallis_rl.runs.run_lock import hold_run_lock
from tsallis_rl.training.earlier_run import find_origin
from tsallis_rl.training.inputs import keep_inputs
from tsallis_rl.training.loop import begin, save, train
from tsallis_rl.training.regeneration import regenerate
from tsallis_rl.training.setup import fill_cache, initial_state, prepare


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A run of four steps, whose best checkpoint may be any, with all of them kept."""
    os.environ["TSALLIS_RL_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    folder = tmp_path_factory.mktemp("earlier") / "run"
    train(small(train__keep_checkpoints=9), folder)
    return folder


def assert_same_tree(found, expected):
    for (path, x), y in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=str(path))


def test_more_steps_in_the_same_folder_are_those_of_a_run_that_had_them_from_the_start(tmp_path):
    changes = {"estimator__name": "curverl"}  # its coefficients depend on the batches before
    whole = train(small(train__steps=8, **changes), tmp_path / "whole")
    first = train(small(train__steps=4, **changes), tmp_path / "run")
    going_on = train(small(train__steps=8, **changes), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"] == 8
    assert going_on[: len(first)] == first
    tested = [record["step"] for record in going_on if "eval/test/checkpoint_step" in record]
    assert tested == [4, 8]  # made again at the new end
    without_the_first_end = [r for r in going_on if not (r["step"] == 4 and "eval/test/checkpoint_step" in r)]
    assert without_clocks(without_the_first_end) == without_clocks(whole)
    assert_same_tree(saved_state(tmp_path / "run", 8), saved_state(tmp_path / "whole", 8))
    last = next(r for r in whole if "eval/test/checkpoint_step" in r)
    assert f"(after: step {last['eval/test/checkpoint_step']}," in summary(going_on)
    assert train(small(train__steps=8, **changes), tmp_path / "run") == going_on


def test_a_run_killed_after_its_test_was_written_is_tested_again_and_has_one_record_of_it(tmp_path, monkeypatch):
    config, update_control = small(train__steps=2), Checkpoints.update_control

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "update_control", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path)
    monkeypatch.setattr(Checkpoints, "update_control", update_control)
    (first,) = (line for line in (tmp_path / "metrics.jsonl").open() if "eval/test/checkpoint_step" in line)
    records = train(config, tmp_path)
    assert [r for r in records if "eval/test/checkpoint_step" in r] == [json.loads(first)]
    assert train(config, tmp_path) == records


def test_an_end_between_two_evaluations_is_told_when_a_run_goes_on(tmp_path, capfd):
    train(small(train__steps=1), tmp_path)
    train(small(train__steps=2), tmp_path)
    assert "step 1 was the run's end, and evaluated although config.evaluate.every=2; in a" in capfd.readouterr().err
    train(small(train__steps=3), tmp_path)
    assert "was the run's end" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train__steps": 3}, r"config.train.steps = 4, this one has 3: they may only grow; choose another --workdir"),
        (
            {"train__steps": 5, "estimator__q": 0.5},
            r"config.estimator.q = 0.75, this one has 0.5; to go on, only config.train.steps may change; choose",
        ),
        (
            {"train__steps": 5, "optimizer__schedule": "cosine"},
            r"falls to zero at step 4 .*cannot go on to 5; .* another --workdir: --config.train.init=.*:latest",
        ),
    ],
)
def test_what_cannot_go_on_is_one_sentence(tmp_path, changes, told):
    before = {name: value for name, value in changes.items() if "schedule" in name}
    RunDirectory(tmp_path, small(**before)).claim()
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(UserError, match=told):
        RunDirectory(tmp_path, small(**changes))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 4


@pytest.mark.parametrize(("keep", "kept"), [(1, {2, 5}), (2, {2, 4, 5}), (3, {2, 3, 4, 5}), (9, {1, 2, 3, 4, 5})])
def test_the_last_checkpoints_are_kept_besides_the_best(tmp_path, keep, kept):
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step, quality in enumerate((0.1, 0.9, 0.2, 0.3, 0.2), 1):
        checkpoints.save(step, {"w": jnp.arange(4.0) + step}, (quality,), {})
    checkpoints.close()
    assert {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()} == kept
    assert Checkpoints(tmp_path).sound_steps == sorted(kept)


def test_a_run_starts_from_the_parameters_of_another_and_from_nothing_else_of_it(tmp_path, earlier, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    config = small(train__init=f"{earlier}:2", estimator__name="paft", optimizer__learning_rate=1e-2, base__steps=5)
    fill_cache(config)
    origin = find_origin(config.train.init, tmp_path)
    state = initial_state(prepare(config), origin)
    assert_same_tree(state.params, saved_state(earlier, 2)["params"])
    assert state.step == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))

    records = train(config, tmp_path / "next")
    assert not (tmp_path / "cache" / "base").exists()  # no base model was trained
    assert [r["step"] for r in records if "train/loss" in r] == [0, 1, 2, 3]
    there = next(r for r in read_records(earlier) if r["step"] == 2 and "eval/validation/log_p_hat" in r)
    assert records[1]["step"] == 0  # after the test split: validation before the first step
    assert records[1]["eval/validation/log_p_hat"] == pytest.approx(there["eval/validation/log_p_hat"], abs=1e-5)
    kept = json.loads((tmp_path / "next" / "init.json").read_text())
    assert (kept["run"], kept["step"]) == (str(earlier), 2)


@pytest.mark.parametrize("word", ["", ":latest"])
def test_the_step_that_a_word_means_is_looked_up_once_and_kept(tmp_path, earlier, word, capsys):
    source = tmp_path / "source"
    shutil.copytree(earlier, source)
    config = small(train__init=f"{source}{word}", train__steps=1, evaluate__every=1)
    train(config, tmp_path / "run")
    checkpoints = Checkpoints(source / "checkpoints")
    step = checkpoints.latest if word == ":latest" else checkpoints.best
    assert find_origin(f"{source}:best", tmp_path).step == checkpoints.best
    assert f"starting from the parameters of {source} at step {step}\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "init.json").read_text())["step"] == step

    checkpoints.save(9, checkpoints.restore(0, saved_state(source, 0)), (2.0, 2.0), {})  # the best and the latest now
    checkpoints.close()
    records = train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # it begins again, and must not begin from step 9
    with pytest.raises(UserError, match=rf"began from step {step} of {source}, which is not there any more.* of 9"):
        train(config, tmp_path / "run")
    shutil.rmtree(source)
    shutil.copytree(earlier, source)
    assert without_clocks(train(config, tmp_path / "run")) == without_clocks(records)
    drawn = json.loads((tmp_path / "run" / "rollouts" / "step_000000.jsonl").read_text().splitlines()[0])
    assert regenerate(tmp_path / "run", 0, 0, 0)["rationale"] == drawn["rationale"]
    shutil.rmtree(source)
    assert train(config, tmp_path / "run")  # its own checkpoints are enough to continue
    with pytest.raises(UserError, match=rf"began from step {step} of {source}, which is no folder of a run any more"):
        regenerate(tmp_path / "run", 0, 0, 0)


def test_a_checkpoint_that_goes_while_a_run_begins_from_it_is_looked_up_again(tmp_path, earlier, capsys):
    """As of a run that trains meanwhile; once the run has begun, it is that very checkpoint or none."""
    shutil.copytree(earlier, tmp_path / "source")
    config = small(train__init=f"{tmp_path / 'source'}:latest")
    setup, directory = prepare(config), RunDirectory(tmp_path / "run", config)
    saves = Checkpoints(tmp_path / "run" / "checkpoints")
    origin = find_origin(config.train.init, directory.path)
    (tmp_path / "source" / "checkpoints" / f"{origin.step}.manifest").unlink()
    assert_same_tree(begin(setup, directory, saves, origin).state.params, saved_state(earlier, 2)["params"])
    assert json.loads((tmp_path / "run" / "init.json").read_text())["step"] == 2
    assert "that was found is gone; that of step 2 is taken\n" in capsys.readouterr().err
    (tmp_path / "source" / "checkpoints" / "2.manifest").unlink()
    with pytest.raises(UserError, match=r"this run began from step 2 of .*source, which is not there any more"):
        begin(setup, directory, saves, find_origin(config.train.init, directory.path))


def test_another_checkpoint_of_the_same_step_is_refused(tmp_path, earlier):
    config = small(train__init=str(earlier))
    origin = find_origin(config.train.init, tmp_path)
    with pytest.raises(UserError, match=rf"step {origin.step} of {earlier}, which is another one now; choose another"):
        initial_state(prepare(config), origin._replace(sha256="0" * 64))


@pytest.mark.processes
@only_on_cpu
def test_a_run_starts_from_another_on_another_mesh(tmp_path, earlier):
    flags = SMALL | {"train.steps": 1, "train.init": f"{earlier}:4", "mesh.tensor": 2, "mesh.fsdp": 2}
    command = [sys.executable, "-m", "tsallis_rl.main", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.{name}={value}" for name, value in flags.items()]
    four = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | four, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = next(r for r in read_records(earlier) if r["step"] == 4 and "eval/validation/log_p_hat" in r)
    here = next(r for r in read_records(tmp_path / "run") if "eval/validation/log_p_hat" in r)
    assert here["eval/validation/log_p_hat"] == pytest.approx(there["eval/validation/log_p_hat"], rel=2e-5)


@pytest.mark.parametrize(
    ("init", "told"),
    [
        ("nowhere", r"init='nowhere': nowhere is not the folder of a run; write RUN, RUN:best, RUN:latest or RUN:STEP"),
        ("{earlier}:last", r":last is not the folder of a run; write RUN"),
        ("{earlier}:3", r"has sound checkpoints of 0, 2, 4, not of 3; choose one of these"),
        ("{empty}", r"has no sound checkpoint; let that run reach one"),
        ("{own}:4", r"is this run's own folder; choose another --workdir"),
    ],
)
def test_a_run_or_step_that_is_not_there_is_one_sentence(tmp_path, earlier, init, told):
    RunDirectory(tmp_path / "empty", small()).claim()
    init = init.format(earlier=earlier, empty=tmp_path / "empty", own=tmp_path / "own")
    with pytest.raises(UserError, match=told):
        train(small(train__init=init), tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_a_run_of_another_model_is_refused_by_the_shape_that_differs(tmp_path, earlier):
    setup = prepare(small(train__init=f"{earlier}:4"))
    wider = dataclasses.replace(setup, arch=dataclasses.replace(setup.arch, ffn=96))
    origin = find_origin(f"{earlier}:4", tmp_path)
    with pytest.raises(UserError, match=r"another model: layers/down has shape \[2, 192, 64\] there and \[2, 96, 64\]"):
        initial_state(wider, origin)


def lines(folder, count=12):
    rows = [{"prompt": f"the cat {i} sat on the mat", "answer": "on"} for i in range(count)]
    (folder / "data").mkdir()
    for split in ("train", "validation", "test"):
        (folder / "data" / f"{split}.jsonl").write_text(
            "".join(json.dumps(row | {"prompt": f"{row['prompt']} {split}"}) + "\n" for row in rows)
        )
    return folder / "data"


def question_answers(path, argument, **model):
    """A config of one step on the lines of `path`."""
    config = settings.load_config(f"{ROOT / 'configs' / 'jsonl.py'}:{argument}")
    config.task.update(path=str(path), max_prompt=64, max_answer=4)
    config.model.update(model)
    config.rollouts.update(num_rollouts=3, max_rationale=6)
    config.optimizer.learning_rate = 1e-2
    config.train.update(steps=1, prompts=2, save_rollouts_every=0)
    config.evaluate.update(every=1, samples=2, prompts=2)
    return config


def begun(config, folder):
    """A run that saved what it starts with, and made no step."""
    setup, directory = prepare(config), RunDirectory(folder, config)
    directory.claim()
    keep_inputs(setup, folder, continues=False)
    with hold_run_lock(folder), closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        save(begin(setup, directory, checkpoints, None), (0.5, 0.5))


def test_adapters_go_on_as_adapters_or_merged_and_other_ones_are_refused(tmp_path, capsys):
    write_folder(tmp_path / "model", jnp.float32)
    write_model(tmp_path / "model")
    path, argument = lines(tmp_path), f"start=chat,model={tmp_path / 'model'}"
    adapters = {"lora_rank": 2, "lora_alpha": 8.0}
    train(question_answers(path, argument, **adapters), tmp_path / "lora")
    origin = find_origin(f"{tmp_path / 'lora'}:1", tmp_path)

    same = prepare(question_answers(path, argument, **adapters))
    state = initial_state(same, origin)
    assert_same_tree(state.params, saved_state(tmp_path / "lora", 1)["params"])
    full = prepare(question_answers(path, argument))
    merged = initial_state(full, origin).params
    assert not [name for name in merged["layers"] if "_lora_" in name]
    tokens = jnp.array([[5, 9, 12, 7]])
    hidden = [bind(s.arch, p).prefill(tokens)[0] for s, p in ((same, state.params), (full, merged))]
    np.testing.assert_allclose(*hidden, atol=2e-5)
    assert np.abs(hidden[0] - bind(full.arch, initial_state(full).params).prefill(tokens)[0]).max() > 1e-3

    rounded = question_answers(path, argument, **adapters, dtype="bfloat16")
    begun(rounded, tmp_path / "rounded")
    start = initial_state(full, find_origin(str(tmp_path / "rounded"), tmp_path)).params
    assert_same_tree(start, initial_state(full).params)  # frozen parameters are not those rounded for computing
    edit_json(tmp_path / "rounded" / "config.json", lambda config: config["model"].update(size=str(tmp_path / "gone")))
    start = initial_state(full, find_origin(str(tmp_path / "rounded"), tmp_path)).params
    assert_same_tree(start, initial_state(full).params)  # this run names a folder of the same weights
    assert "WARNING" not in capsys.readouterr().err
    (tmp_path / "rounded" / "inputs.json").unlink()
    start = initial_state(full, find_origin(str(tmp_path / "rounded"), tmp_path)).params
    assert not np.array_equal(start["embed"], initial_state(full).params["embed"])
    told = capsys.readouterr().err
    assert "/gone' is no folder here, so that its frozen parameters are taken from the checkpoint, where they" in told
    assert "rounded keeps no inputs.json, as the version that began the run did not write it: whether the model" in told

    for other, told in (
        ({"lora_rank": 3, "lora_alpha": 8.0}, "has config.model.lora_rank=2, this run 3; give this run the same"),
        ({"lora_rank": 2}, "has config.model.lora_alpha=8.0, this run 32.0; give this run the same"),
    ):
        with pytest.raises(UserError, match=told):
            initial_state(prepare(question_answers(path, argument, **other)), origin)
    shutil.copytree(tmp_path / "model", tmp_path / "another")
    elsewhere = question_answers(path, f"start=chat,model={tmp_path / 'another'}", **adapters)
    with pytest.raises(UserError, match=r"adapters beside config.model.size='.*/model', this run has '.*/another'"):
        initial_state(prepare(elsewhere), origin)
    begun(question_answers(path, argument), tmp_path / "full")
    with pytest.raises(UserError, match=r"trained all parameters, and this run adapters \(config.model.lora_rank=2\)"):
        initial_state(same, find_origin(str(tmp_path / "full"), tmp_path))


@pytest.mark.parametrize(
    ("change", "adapters", "told"),
    [
        (lambda model: write_model(model, texts=["zebra dogma vixen"] * 9), {}, "has another tokeniser: its token ids"),
        (lambda model: edit_json(model / "config.json", lambda c: c.update(rope_theta=7.0)), {}, "config.json, or its"),
        (double, {"lora_rank": 2}, "model.safetensors is not what it began with"),
    ],
    ids=["tokeniser", "arithmetic", "frozen weights"],
)
def test_a_run_does_not_start_from_one_whose_model_was_changed_in_place(tmp_path, change, adapters, told):
    write_folder(tmp_path / "model", jnp.float32)
    write_model(tmp_path / "model")
    config = question_answers(lines(tmp_path), f"start=chat,model={tmp_path / 'model'}", **adapters)
    begun(config, tmp_path / "run")
    change(tmp_path / "model")
    with pytest.raises(UserError, match=f"config.train.init: .*/run .*{told}"):
        initial_state(prepare(config), find_origin(str(tmp_path / "run"), tmp_path))


def test_a_tokeniser_that_was_trained_on_other_text_is_refused(tmp_path):
    path = lines(tmp_path)
    argument = "start=cold"
    config = question_answers(path, argument)
    config.task.vocab_size = 300
    begun(config, tmp_path / "run")
    origin = find_origin(str(tmp_path / "run"), tmp_path)
    config.estimator.name = "paft"
    initial_state(prepare(config), origin)
    text = "zebra dogma vixen quartz jumps fjord"
    (path / "train.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{text} {i}", "answer": "on"}) + "\n" for i in range(12))
    )
    with pytest.raises(UserError, match="another tokeniser: its token ids mean other text here; start from a run of"):
        initial_state(prepare(config), origin)
