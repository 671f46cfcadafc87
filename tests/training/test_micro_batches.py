"""How much of an update is computed at a time, for devices of given memory; and how a run keeps it."""

import copy
import dataclasses
import json

import jax
import pytest

from tests.support.plans import ARCH, settings
from tests.support.runs import small
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_directory import RunDirectory
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
    update_bytes,
    with_micro_batches,
)
from tsallis_rl.training.setup import fit_examples, prepare

EVERYTHING = 1 << 50


def needed(config, micro_batch, micro_rollouts, devices=1):
    return update_bytes(with_micro_batches(config, MicroBatches(micro_batch, micro_rollouts, 0)), ARCH, 1, devices)


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
    assert [chosen[:2] for chosen in candidates(settings(**changes), shards)] == expected


def test_the_largest_slices_are_chosen_that_take_their_share_of_a_device():
    config = settings()
    sizes = [needed(config, *chosen[:2]) for chosen in candidates(config, 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == sum(plan(config, ARCH, 1, 1)["update"].values())
    for chosen, size in zip(candidates(config, 1), sizes, strict=True):
        assert choose(config, ARCH, 1, 1, int(size / UPDATE_SHARE) + 1)[:2] == chosen[:2]
    assert choose(config, ARCH, 1, 1, int(sizes[2] / UPDATE_SHARE) - 1)[:2] == (1, 4)
    assert choose(config, ARCH, 1, 1, 1) == (1, 1, 1)
    assert choose(config, ARCH, 1, 2, 1) == (2, 1, 2)  # one on each device
    assert choose(config, ARCH, 1, 1, EVERYTHING) == (4, 8, 4)


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


def slices(setup):
    return setup.config.train.micro_batch, setup.config.train.micro_rollouts


def test_processors_that_do_not_say_what_they_have_compute_all_at_once(setup, tmp_path):
    assert jax.default_backend() != "cpu" or device_limit() is None
    assert slices(fit_memory(setup, None, tmp_path)) == (0, 0) and not list(tmp_path.iterdir())


def test_a_run_keeps_its_slices_where_they_fit_and_says_so_where_they_do_not(setup, tmp_path, capsys):
    part = fit_memory(setup, 1, tmp_path / "other")
    assert slices(part) == (1, 1)
    assert "update:      1 prompts × 1 rollouts at a time: 0.0 of a device's 0.0 GiB by" in capsys.readouterr().out
    folder = tmp_path / "run"
    assert slices(fit_memory(setup, EVERYTHING, folder)) == (4, 4)
    told = capsys.readouterr().out
    assert told == "rollouts:    4 prompts at a time\nupdate:      4 prompts × 4 rollouts at a time\n"
    kept = {"micro_batch": 4, "micro_rollouts": 4, "at_once": 4}
    assert json.loads((folder / "micro_batches.json").read_text()) == kept

    assert slices(fit_memory(setup, 1, folder, writes=False)) == (1, 1)  # a smaller card
    assert slices(fit_memory(setup, None, folder)) == (4, 4)  # a processor that does not say
    capsys.readouterr()
    assert slices(fit_memory(setup, 1, folder)) == (1, 1)
    assert (
        "until now this run computed 4 prompts × 4 rollouts, and sampled those of 4 prompts; numbers differ by rounding"
        in capsys.readouterr().out
    )
    assert slices(fit_memory(setup, EVERYTHING, folder)) == (1, 1)  # again a larger one: the same to the bit
    assert "until now" not in capsys.readouterr().out

    (folder / "micro_batches.json").write_text('{"micro_batch": "4", "micro_rollouts": 0}')
    with pytest.raises(UserError, match=r"micro_batches\.json does not hold counts above 0; remove it"):
        fit_memory(setup, 1, folder)

    # A run of a version that chose its updates alone.
    (folder / "micro_batches.json").write_text('{"micro_batch": 2, "micro_rollouts": 4}')
    again = fit_memory(setup, EVERYTHING, folder)
    assert (*slices(again), again.config.rollouts.at_once) == (2, 4, 4)


def test_settings_of_memory_may_change_in_a_runs_folder_and_are_told(tmp_path, capsys):
    RunDirectory(tmp_path, small()).claim()
    RunDirectory(tmp_path, small(train__micro_batch=4)).claim()
    assert capsys.readouterr().out == f"{tmp_path}: config.train.micro_batch was 2, and is 4 from here on\n"
    with pytest.raises(UserError, match=r"holds a run with config\.seed = 0"):
        RunDirectory(tmp_path, small(train__micro_batch=1, seed=1))


def test_settings_that_say_all_are_not_touched(tmp_path):
    setup = prepare(small(train__micro_batch=2, train__micro_rollouts=3, rollouts__at_once=2))
    assert fit_memory(setup, 1, tmp_path) is setup
