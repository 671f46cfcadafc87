"""Runs whose prompts are padded to several widths, and budgets that do not fit a model's context."""

import json

import jax
import numpy as np
import pytest

from configs import jsonl
from tests.support.compiled import sampler_programs
from tests.support.model_folders import write_folder
from tests.support.runs import without_clocks
from tests.support.tokenizer_files import write_model
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import json_lines
from tsallis_rl.sampler.keys import VALIDATION
from tsallis_rl.training.control import initial_control
from tsallis_rl.training.loop import train
from tsallis_rl.training.planned import planned
from tsallis_rl.training.regeneration import regenerate
from tsallis_rl.training.setup import initial_state, prepare
from tsallis_rl.training.step import TrainingStep

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "by"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Examples with prompts of 3 to 300 words, a third of them long."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, examples in (("train", 26), ("validation", 11), ("test", 3)):
        lengths = [rng.integers(200, 300) if i % 3 == 0 else rng.integers(3, 40) for i in range(examples)]
        rows = [{"prompt": " ".join(rng.choice(WORDS, n)), "answer": str(rng.choice(WORDS))} for n in lengths]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(data, argument: str = "", **changes):
    config = jsonl.get_config(argument)
    config.task.update(path=str(data), max_answer=8, vocab_size=300)
    config.rollouts.update(num_rollouts=4, max_rationale=6, at_once=2)
    config.train.update(steps=3, prompts=4, micro_batch=2, save_rollouts_every=1, save_rollouts_prompts=4)
    config.evaluate.update(every=3, samples=2, prompts=4)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def test_widths_change_no_rollout_and_no_more_programs_are_compiled_than_there_are_widths(data):
    found = []
    for most in (1, 8):
        setup = prepare(settings(data, rollouts__prompt_widths=most, train__length_window=0))
        state = initial_state(setup)
        one_step = TrainingStep(setup, state)
        rollouts = []
        before = sampler_programs()
        for step in range(13):
            sampled = one_step.sample_and_weigh(state, step, np.arange(4), initial_control(setup.config))
            rollouts.append(jax.device_get(sampled.rollouts))
        widths = {group.prompt.shape[1] for group in rollouts}
        assert widths <= set(setup.splits["train"].widths)
        programs = sampler_programs() - before
        found.append(
            (rollouts, widths, programs, setup.evaluator(state.params, setup.splits["validation"], VALIDATION))
        )
    (whole, one, programs, evaluated), (narrow, several, more_programs, as_evaluated) = found
    assert one == {448} and several == {64, 448}
    assert 0 < more_programs <= programs  # those of the width of 448 are compiled already
    for x, y in zip(whole, narrow, strict=True):
        for name in ("inputs", "targets", "sampled", "rationale_length", "closing", "answer_start", "answer_length"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))
        np.testing.assert_allclose(x.log_w, y.log_w, rtol=1e-5)
        np.testing.assert_allclose(x.log_prob, y.log_prob, rtol=1e-4, atol=1e-5)
    assert evaluated.outcomes == as_evaluated.outcomes
    assert evaluated.scores == pytest.approx(as_evaluated.scores, rel=1e-5)


def test_batches_of_like_lengths_are_padded_less(data):
    found = []
    for window in (0, 64):
        setup = prepare(settings(data, train__length_window=window))
        one_step, split = TrainingStep(setup, initial_state(setup)), setup.splits["train"]
        batches = [one_step.batches(step)[0] for step in range(13)]
        found.append(np.mean([1 - split.prompt_length[x].mean() / split.width(x) for x in batches]))
    assert found[1] < 0.42 < 0.6 < found[0]


def test_a_rollout_is_drawn_again_alone_at_the_width_of_its_batch(data, tmp_path):
    config = settings(data, train__length_window=0, train__steps=2)  # batches of long and short prompts
    records = train(config, tmp_path)
    rows = json_lines(tmp_path / "rollouts" / "step_000001.jsonl")
    shortest = min(range(4), key=lambda example: len(rows[4 * example]["prompt"]))
    setup = prepare(config)
    state = initial_state(setup)
    one_step = TrainingStep(setup, state)
    alone = one_step.sample_and_weigh(state, 1, np.array([shortest]), initial_control(config)).rollouts
    assert alone.prompt_length[0] < 64 and alone.prompt.shape == (1, 448)
    whole = setup.splits["train"].prompt_length[one_step.batches(1)[0]]
    (padding,) = (r["train/prompt_padding"] for r in records if r["step"] == 1 and "train/loss" in r)
    assert padding == pytest.approx(1 - whole.mean() / 448)

    again, expected = regenerate(tmp_path, step=1, example=shortest, rollout=3), rows[4 * shortest + 3]
    for name in ("example", "prompt", "rationale"):
        assert again[name] == expected[name]
    assert again["log_w"] == pytest.approx(expected["log_w"], rel=1e-5)


def test_prompts_that_are_all_short_have_one_width_and_an_order_that_no_window_changes(tmp_path):
    rows = [{"prompt": " ".join(WORDS[: 1 + i % 9]), "answer": WORDS[i % 9]} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(rows[0] | {"prompt": name}) + "\n")
    setup = prepare(settings(tmp_path))
    assert all(split.widths == (64,) for split in setup.splits.values())
    steps = [TrainingStep(prepare(settings(tmp_path, train__length_window=n)), initial_state(setup)) for n in (0, 64)]
    for step in range(5):
        np.testing.assert_array_equal(*(one_step.batches(step)[0] for one_step in steps))


def test_the_plan_is_for_the_longest_prompt_that_occurs(data):
    wide = planned(settings(data), devices=1, memory=9)
    assert wide == planned(settings(data, task__max_prompt=448), devices=1, memory=9)
    longer = settings(data, rollouts__max_rationale=3000)
    assert planned(longer, devices=1, memory=9) != wide


def test_a_rationale_that_the_context_has_no_room_for_is_reduced_and_the_run_keeps_what_was_written(tmp_path, capsys):
    folder = tmp_path / "model"
    write_folder(folder)  # its context is 128
    write_model(folder)
    rows = [{"prompt": " ".join(["cat"] * (i + 2)), "answer": "mat"} for i in range(40)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"task__max_answer": 4, "rollouts__max_rationale": 120, "train__save_rollouts_every": 1}
    config = settings(tmp_path / "task.jsonl", f"model={folder}", **changes)
    setup = prepare(config)
    longest = max(split.prompt_length.max() for split in setup.splits.values())
    room = 128 - longest - setup.markers.fixed_tokens - 4
    assert 30 < room < 120
    told = capsys.readouterr().out
    assert told.count("the model's context is 128 tokens") == 1
    assert f"config.rollouts.max_rationale=120 is taken as {room}\n" in told
    assert config.rollouts.max_rationale == 120 and sum(setup.splits["train"].dropped.values()) == 0
    shape = setup.rollout_shape(num_rollouts=4, samples_answers=False)
    assert shape.max_rationale == setup.evaluator.config.rollouts.max_rationale == room
    assert f"{planned(config, devices=1)}" == planned(
        settings(tmp_path / "task.jsonl", f"model={folder}", **changes | {"rollouts__max_rationale": int(room)}),
        devices=1,
    )

    config.train.steps = 1
    records = train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["rollouts"]["max_rationale"] == 120
    assert without_clocks(train(config, tmp_path / "run")) == without_clocks(records)


def test_prompts_are_limited_where_a_shorter_rationale_does_not_suffice(data, capsys):
    setup = prepare(settings(data, task__max_answer=3800, rollouts__max_rationale=100))
    told = capsys.readouterr().out
    assert "prompts have up to 441, and 3801 are kept for the answer: config.rollouts.max_rationale=100 is" in told
    assert "is taken as 25 and config.task.max_prompt=512 is taken as 270" in told
    assert "9 left out: prompt longer than task.max_prompt=270 tokens" in told
    for split in setup.splits.values():
        assert split.prompt_length.max() + 25 + 3801 <= 4096


def test_a_reduced_rationale_is_as_long_as_its_penalty_asks(data):
    penalty = {"regularizer__length": 1.0, "regularizer__min_length": 40}
    setup = prepare(settings(data, task__max_answer=3800, rollouts__max_rationale=100, **penalty))
    assert setup.config.rollouts.max_rationale == 40


def test_budgets_that_leave_no_room_are_one_sentence(data):
    with pytest.raises(UserError, match=r"the model's context is 4096; lower config\.task\.max_prompt, config\.roll"):
        prepare(settings(data, task__max_answer=4080))
