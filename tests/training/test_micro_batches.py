"""How much of an update is computed at a time, given a device's memory; and how a run keeps that choice."""

import copy
import dataclasses
import json

import jax
import pytest

from tests.support.plans import ARCH, settings
from tests.support.runs import ROUNDING, small
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_directory import RunDirectory
from tsallis_rl.sampler.keys import VALIDATION
from tsallis_rl.training import micro_batches
from tsallis_rl.training.checks import check
from tsallis_rl.training.memory_plan import held_in_rollouts, plan
from tsallis_rl.training.micro_batches import (
    ROLLOUT_SHARE,
    UPDATE_SHARE,
    MicroBatches,
    candidates,
    choose,
    choose_at_once,
    device_limit,
    fit_memory,
    prompts_at_once,
    rollout_bytes,
    room_of,
    update_bytes,
    update_slices,
    with_micro_batches,
)
from tsallis_rl.training.packing import Slices
from tsallis_rl.training.setup import fit_examples, initial_state, prepare

EVERYTHING = 1 << 50


def needed(config, *chosen, devices=1):
    micro_batch, micro_rollouts, remat = chosen
    chosen = MicroBatches(micro_batch, micro_rollouts, 0, remat)
    return update_bytes(with_micro_batches(config, chosen), ARCH, 1, devices)


@pytest.mark.parametrize(
    ("changes", "shards", "expected"),
    [
        ({}, 1, [(4, 8), (2, 8), (1, 8), (1, 4), (1, 2), (1, 1)]),
        ({}, 2, [(4, 8), (2, 8), (2, 4), (2, 2), (2, 1)]),
        ({"train__micro_batch": 2}, 1, [(2, 8), (2, 4), (2, 2), (2, 1)]),
        ({"train__micro_rollouts": 3}, 1, [(4, 3), (2, 3), (1, 3)]),
        ({"train__micro_batch": 2, "train__micro_rollouts": 3}, 1, [(2, 3)]),
    ],
)
def test_prompts_are_divided_before_rollouts_and_what_is_set_stays(changes, shards, expected):
    assert [chosen[:2] for chosen in candidates(settings(**changes), shards, "layers")] == expected


def test_the_largest_slices_are_chosen_that_take_their_share_of_a_device():
    config = settings(model__remat="none")
    found = candidates(config, 1, "none")
    sizes = [needed(config, *chosen[:2], "none") for chosen in found]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == sum(plan(config, ARCH, 1, 1)["update"].values())
    for chosen, size in zip(found, sizes, strict=True):
        assert choose(config, ARCH, 1, 1, int(size / UPDATE_SHARE) + 1)[:2] == chosen[:2]
    assert choose(config, ARCH, 1, 1, int(sizes[2] / UPDATE_SHARE) - 1)[:2] == (1, 4)
    assert choose(config, ARCH, 1, 1, 1) == (1, 1, 1, "none")
    assert choose(config, ARCH, 1, 2, 1) == (2, 1, 2, "none")  # one on each device
    assert choose(config, ARCH, 1, 1, EVERYTHING) == (4, 8, 4, "none")


def test_no_more_is_recomputed_than_leaves_slices_large_enough(monkeypatch):
    config = settings()  # remat auto
    largest = [(4, 8, "matmuls"), (4, 8, "attention"), (2, 8, "matmuls"), (4, 8, "layers"), (1, 8, "matmuls")]
    fits = {chosen: int(needed(config, *chosen) / UPDATE_SHARE) + 1 for chosen in (*largest, (1, 2, "layers"))}
    assert sorted(fits.values(), reverse=True) == list(fits.values())

    def chosen(limit):
        micro_batch, micro_rollouts, _, remat = choose(config, ARCH, 1, 1, limit)
        return micro_batch, micro_rollouts, remat

    assert chosen(EVERYTHING) == chosen(fits[4, 8, "matmuls"]) == (4, 8, "matmuls")
    # Half of the prompts have 2 × 8 × 73 tokens of rollouts, too few for a slice.
    assert chosen(fits[4, 8, "attention"]) == (4, 8, "attention")
    assert chosen(fits[2, 8, "matmuls"]) == chosen(fits[4, 8, "layers"]) == (4, 8, "layers")
    assert chosen(fits[1, 2, "layers"]) == (1, 2, "layers") and chosen(1) == (1, 1, "layers")
    monkeypatch.setattr(micro_batches, "ENOUGH_TOKENS", 8 * 73)
    assert chosen(fits[2, 8, "matmuls"]) == (2, 8, "matmuls") and chosen(fits[1, 8, "matmuls"]) == (1, 8, "matmuls")
    assert chosen(fits[1, 2, "layers"]) == (1, 2, "layers")
    config.train.micro_batch, config.train.micro_rollouts = 2, 4  # what is set is all there is
    assert chosen(fits[2, 8, "matmuls"]) == (2, 4, "matmuls") and chosen(1) == (2, 4, "layers")


def test_slices_hold_more_of_rows_that_are_shorter_or_fewer_than_those_that_memory_was_counted_for():
    config = settings()
    room = room_of(config, MicroBatches(1, 8, 4, "layers"), 1, 1)
    assert room == 2 * 64 + 8 * 73
    slices = update_slices(config, 1, room)
    assert slices.of(4, 8, 73, 64) == Slices(4, 8)
    assert slices.of(4, 2, 73, 64) == Slices(2, 2)  # 2 × (2 × 64 + 2 × 73) of 712 tokens
    assert slices.of(3, 2, 73, 64) == Slices(3, 2)
    assert slices.of(4, 8, 8, 64) == Slices(2, 8)  # 3 fit, and divide no 4 prompts
    assert slices.of(4, 16, 73, 64) == Slices(4, 8)
    assert slices.of(4, 8, 73, 32) == Slices(4, 8)
    halves = room_of(config, MicroBatches(2, 4, 4, "layers"), 1, 2)  # a prompt on each of two devices
    assert update_slices(config, 2, halves).of(4, 8, 73, 64) == Slices(2, 4, shards=2)
    assert room_of(settings(train__micro_batch=1), MicroBatches(1, 8, 4, "layers"), 1, 1) == 0
    assert update_slices(settings(train__micro_batch=1), 1).of(4, 2, 8, 64) == Slices(4)


@pytest.mark.parametrize(
    ("changes", "shards", "expected"),
    [
        ({}, 1, [4, 2, 1]),
        ({"evaluate__prompts": 2}, 2, [4, 2]),
        ({"evaluate__prompts": 16}, 1, [16, 8, 4, 2, 1]),
        ({"evaluate__prompts": 6}, 1, [6, 2, 1]),
        ({"rollouts__at_once": 2}, 1, [2]),
    ],
)
def test_prompts_that_are_rolled_out_at_a_time_divide_those_of_training_and_evaluation(changes, shards, expected):
    config = settings(**changes)
    assert prompts_at_once(config, shards) == expected
    for config.rollouts.at_once in expected:
        config.mesh.data = shards
        check(config, shards)  # settings that a person may give as well


def test_as_many_prompts_are_rolled_out_at_a_time_as_take_their_share_of_a_device():
    config = settings(evaluate__prompts=16, evaluate__samples=8)
    sizes = {}
    for config.rollouts.at_once in (0, 16, 8, 4, 2, 1):
        sizes[config.rollouts.at_once] = rollout_bytes(config, ARCH, 1, 1)
        assert sizes[config.rollouts.at_once] == sum(plan(config, ARCH, 1, 1)["rollouts"].values())
    assert sizes[0] == sizes[16] > sizes[8] > sizes[4] > sizes[2] > sizes[1]
    config.rollouts.at_once = 0
    for number in (16, 8, 4, 2, 1):
        assert choose(config, ARCH, 1, 1, int(sizes[number] / ROLLOUT_SHARE) + 1).at_once == number


def test_rollouts_are_counted_of_the_batch_that_needs_most_at_a_time():
    """64 prompts × 8 training rollouts are more than 4 × 64 samples, but of 4 prompts at a time they are not."""
    config = settings(train__prompts=64, evaluate__prompts=4, evaluate__samples=64, rollouts__at_once=4)
    alone = settings(train__prompts=4, evaluate__prompts=4, evaluate__samples=64, rollouts__at_once=4)
    assert rollout_bytes(config, ARCH, 1, 1) == rollout_bytes(alone, ARCH, 1, 1)


def test_an_evaluation_alone_is_counted_without_what_training_holds():
    config = settings(train__prompts=9, evaluate__prompts=4, evaluate__samples=2, regularizer__kl=0.1)
    held = held_in_rollouts(config, ARCH, 1, 4, trains=False)
    assert not {"optimiser", "reference parameters"} & held.keys() and held["parameters"] > 0
    assert held.keys() < held_in_rollouts(config, ARCH, 1, 4).keys()
    assert prompts_at_once(config, 4, trains=False) == [4]  # training's 9 are no multiple of 4 devices
    limit = int(sum(held.values()) / ROLLOUT_SHARE) + 1
    assert choose_at_once(config, ARCH, 1, 4, limit, trains=False) == 4


@pytest.mark.parametrize(
    ("at_once", "examples", "prompts"), [(0, 3, 3), (16, 3, 3), (4, 3, 3), (4, 6, 8), (4, 100, 16)]
)
def test_a_batch_of_an_evaluation_is_no_larger_than_its_examples_need(at_once, examples, prompts):
    config = settings(evaluate__prompts=16, rollouts__at_once=at_once)
    fit_examples(config, examples)
    assert config.evaluate.prompts == prompts


@pytest.fixture(scope="module")
def setup():
    return prepare(small(train__micro_batch=0))


def test_a_run_evaluates_in_batches_no_larger_than_its_largest_split_needs(setup):
    largest = max(len(setup.splits[name]) for name in ("validation", "test"))
    config = copy.deepcopy(setup.config)
    config.evaluate.prompts = 8 * largest
    assert dataclasses.replace(setup, config=config).evaluator.config.evaluate.prompts == largest


def test_validation_on_a_few_examples_takes_smaller_batches_and_gives_the_same_figures(setup):
    config = copy.deepcopy(setup.config)
    config.evaluate.prompts, config.evaluate.examples = 6, 3
    few, state = dataclasses.replace(setup, config=config), initial_state(setup)
    whole = few.evaluator(state.params, few.splits["validation"], VALIDATION, examples=3)
    part = few.validate(state)
    assert (few.evaluator.config.evaluate.prompts, few._validator.config.evaluate.prompts) == (6, 3)
    assert part.outcomes == whole.outcomes
    assert part.scores == pytest.approx(whole.scores, **ROUNDING)


def slices(setup):
    return setup.config.train.micro_batch, setup.config.train.micro_rollouts


def test_processors_that_do_not_say_what_they_have_compute_all_at_once(setup, tmp_path):
    assert jax.default_backend() != "cpu" or device_limit() is None
    assert slices(fit_memory(setup, None, tmp_path)) == (0, 0) and not list(tmp_path.iterdir())


def test_a_run_keeps_its_slices_where_they_fit_and_says_so_where_they_do_not(setup, tmp_path, capsys):
    part = fit_memory(setup, 1, tmp_path / "other")
    assert slices(part) == (1, 1)
    told = capsys.readouterr().out
    assert "update:      1 prompt × 1 rollout (remat layers) at a time: 0.0 of a device's 0.0 GiB by" in told
    assert part.arch.remat == "layers" and setup.arch.remat == "none"
    folder = tmp_path / "run"
    whole = fit_memory(setup, EVERYTHING, folder)
    assert slices(whole) == (4, 4) and whole.arch.remat == whole.config.model.remat == "matmuls"
    prompt = setup.counted_config().task.max_prompt
    assert whole.room == 4 * (2 * prompt + 4 * (part.room - 2 * prompt))
    told = capsys.readouterr().out
    assert told == "rollouts:    4 prompts at a time\nupdate:      4 prompts × 4 rollouts (remat matmuls) at a time\n"
    kept = {"micro_batch": 4, "micro_rollouts": 4, "at_once": 4, "remat": "matmuls"}
    assert json.loads((folder / "micro_batches.json").read_text()) == kept

    assert slices(fit_memory(setup, 1, folder, writes=False)) == (1, 1)  # a smaller card
    assert slices(fit_memory(setup, None, folder)) == (4, 4)  # a processor that does not say
    capsys.readouterr()
    assert slices(fit_memory(setup, 1, folder)) == (1, 1)
    assert (
        "until now this run computed 4 prompts × 4 rollouts (remat matmuls) and sampled 4 prompts at a time; numbers "
        "differ by rounding" in capsys.readouterr().out
    )
    assert slices(fit_memory(setup, EVERYTHING, folder)) == (1, 1)  # again a larger one: the same to the bit
    assert "until now" not in capsys.readouterr().out

    (folder / "micro_batches.json").write_text('{"micro_batch": "4", "micro_rollouts": 0}')
    with pytest.raises(UserError, match=r"micro_batches\.json does not hold counts above 0; remove it"):
        fit_memory(setup, 1, folder)
    (folder / "micro_batches.json").write_text('{"micro_batch": 4, "micro_rollouts": 1, "remat": 2}')
    with pytest.raises(UserError, match=r"micro_batches\.json holds a remat that is no text; remove it"):
        fit_memory(setup, 1, folder)
    (folder / "micro_batches.json").write_text('{"micro_batch": 4, "micro_rollouts": 1, "remat": "all"}')
    assert slices(fit_memory(setup, EVERYTHING, folder, writes=False)) == (4, 4)  # chosen anew

    # A run of a version that chose its updates alone, and recomputed nothing but what its settings said.
    config = copy.deepcopy(setup.config)
    config.model.remat = "layers"
    (folder / "micro_batches.json").write_text('{"micro_batch": 2, "micro_rollouts": 4}')
    again = fit_memory(dataclasses.replace(setup, config=config), EVERYTHING, folder, writes=False)
    assert (*slices(again), again.config.rollouts.at_once, again.arch.remat) == (2, 4, 4, "layers")
    capsys.readouterr()
    again = fit_memory(setup, EVERYTHING, folder)  # now with remat="auto"
    assert slices(again) == (4, 4) and again.arch.remat == "matmuls"
    assert "until now this run computed 2 prompts × 4 rollouts (remat none)" in capsys.readouterr().out


def test_settings_of_memory_may_change_in_a_runs_folder_and_are_told(tmp_path, capsys):
    RunDirectory(tmp_path, small()).claim()
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    RunDirectory(tmp_path, small(train__micro_batch=4)).claim()
    assert capsys.readouterr().out == f"{tmp_path}: config.train.micro_batch was 2, and is 4 from here on\n"
    with pytest.raises(UserError, match=r"holds a run with config\.seed = 0"):
        RunDirectory(tmp_path, small(train__micro_batch=1, seed=1))


def test_settings_that_say_all_are_not_touched(tmp_path):
    told = {"train__micro_batch": 2, "train__micro_rollouts": 3, "rollouts__at_once": 2, "model__remat": "none"}
    setup = prepare(small(**told))
    assert fit_memory(setup, 1, tmp_path) is setup


def test_the_gradient_comparison_computes_with_the_programs_of_the_step(tmp_path):
    setup = fit_memory(prepare(small(shadow__every=1)), EVERYTHING, tmp_path)
    shape = setup.rollout_shape(num_rollouts=setup.config.rollouts.num_rollouts, samples_answers=False)
    assert setup.comparison._shape == shape and shape.arch.remat == "matmuls"
    assert setup.comparison.config.rollouts.at_once == setup.config.rollouts.at_once > 0
