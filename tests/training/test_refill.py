"""Dynamic sampling: which groups replace which; a step with replaced groups equals a step of the same prompts."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.compiled import sampler_programs
from tests.support.own_reward import rare
from tests.support.runs import small
from tsallis_rl.models.sharding import shard_prompts
from tsallis_rl.objectives import ESTIMATORS, Coefficients, coefficients
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import json_lines
from tsallis_rl.sampler import roll_out
from tsallis_rl.sampler.batch import batch_at
from tsallis_rl.sampler.keys import TRAIN, example_keys
from tsallis_rl.sampler.record import Rollouts, record_shapes
from tsallis_rl.sampler.transcripts import answer_texts
from tsallis_rl.training.checks import check
from tsallis_rl.training.control import initial_control
from tsallis_rl.training.data_order import DataOrder, Lengths
from tsallis_rl.training.loop import train
from tsallis_rl.training.refill import idle_groups, refilled, replaced, replacements
from tsallis_rl.training.regeneration import regenerate
from tsallis_rl.training.replay import load, replay
from tsallis_rl.training.setup import Setup, initial_state, prepare
from tsallis_rl.training.step import TrainingStep
from tsallis_rl.training.weighed import WeighedRollouts

P, M = 4, 4


def settings(refill: int = 2, estimator: str = "grpo", **changes):
    """A model that earns its reward now and then: about half of its groups have no signal."""
    own = {"task__reward": "tests.support.own_reward.rare", "rollouts__answer_needs_end": False}
    sizes = {"task__train_examples": 30, "train__refill": refill, "train__save_rollouts_prompts": P}
    return small(f"estimator={estimator},start=warm", **own | sizes | changes)


@pytest.mark.parametrize("lengths", [None, Lengths(np.random.default_rng(0).integers(20, 900, 96), 8)])
def test_further_batches_offer_each_example_once_an_epoch_and_keep_parts_and_widths_together(lengths):
    parts = ["cold", "warm", "warm"] * 32
    buckets = np.zeros(96, int) if lengths is None else lengths.of_prompts // 200
    order = DataOrder(parts, 6, 7, lengths)
    found = np.array([order.further_batches(step, buckets) for step in range(32)])
    own = np.array([order.batch(step) for step in range(32)])
    assert found.shape == (32, 15, 6)
    for epoch in (found[:16], found[16:]):
        for r in range(15):
            assert sorted(epoch[:, r].ravel()) == list(range(96))
    for step in range(32):
        assert len({*own[step], *found[step].ravel()}) == 96  # no example twice
        assert all(sorted(parts[i] for i in batch) == sorted(parts[i] for i in own[step]) for batch in found[step])
    of_own, of_next = buckets[own].max(1)[:16], buckets[found[:16, 0]].max(1)
    widths = len(set(of_own))
    assert (of_own != of_next).sum() == (0 if lengths is None else widths) and (lengths is None or widths == 5)
    again = DataOrder(parts, 6, 7, lengths).further_batches(20, buckets)
    np.testing.assert_array_equal(again, found[20])
    assert (DataOrder(parts, 6, 8, lengths).further_batches(20, buckets) != again).any()


@pytest.mark.parametrize(("examples", "batch"), [(10, 4), (9, 8), (30, 4), (3, 8), (8, 8)])
def test_an_epoch_that_batches_do_not_divide_has_further_batches_as_well(examples, batch):
    buckets = np.zeros(examples, int)
    order = DataOrder([""] * examples, batch, 0)
    counts = [len(order.further_batches(step, buckets)) for step in range(9)]
    assert all(count in (max(examples // batch, 1) - 1, -(-examples // batch) - 1) for count in counts)


@pytest.mark.parametrize(
    ("idle", "usable", "source"),
    [
        ([0, 1, 0, 1], [0, 1, 1, 1], [-1, 1, -1, 2]),
        ([1, 1, 1, 1], [0, 0, 1, 0], [2, -1, -1, -1]),
        ([0, 0, 0, 0], [1, 1, 1, 1], [-1] * 4),
        ([1, 1, 1, 1], [0, 0, 0, 0], [-1] * 4),
    ],
)
def test_idle_groups_are_replaced_in_order_by_groups_with_signal_in_order(idle, usable, source):
    assert replacements(np.array(idle, bool), np.array(usable, bool)).tolist() == source


@pytest.mark.parametrize("estimator", ["grpo", "raft"])
def test_the_expected_step_is_the_one_without_refill_times_a_number(estimator):
    """Enumerates all rewards of 2 groups of 2 rollouts and 2 further ones, of prompts with P = 0.1 or 0.6."""
    success = np.array([0.1, 0.6])
    states = [(x, r) for x in (0, 1) for r in itertools.product((0, 1), repeat=2)]
    chance = np.array([0.5 * np.prod(np.where(r, success[x], 1 - success[x])) for x, r in states])
    rewards = np.array([r for _, r in states], np.float32)
    score = np.asarray(coefficients(ESTIMATORS[estimator], {}, {"log_w": 0 * rewards, "rewards": rewards}).score)
    # ∇ log p of a rollout with reward r, of the logits of the two prompts' success.
    score_function = np.array([np.eye(2)[x][:, None] * (np.array(r) - success[x]) for x, r in states])
    gradient = (score_function * score[:, None]).sum(-1)
    idle = idle_groups(Coefficients(score, score))
    signal, plain = chance[~idle].sum(), chance @ gradient

    expected, kept = np.zeros(2), 0.0
    for group in itertools.product(range(len(states)), repeat=4):
        at = np.array(group)
        source = replacements(idle[at[:2]], ~idle[at[2:]])
        trained = np.where(source >= 0, at[2:][source], at[:2])
        expected += chance[at].prod() * gradient[trained].mean(0)
        kept += chance[at].prod() * (~idle[trained]).mean()
    assert signal < kept < 1 and plain[0] * plain[1] != 0
    np.testing.assert_allclose(expected, kept / signal * plain, rtol=1e-6)


def test_the_batches_that_hold_nothing_new_are_not_sampled_and_the_bound_holds():
    asked = []

    def sample(r: int) -> WeighedRollouts:
        asked.append(r)
        rollouts = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), record_shapes(2, 1, 3, 5))
        names = ("rollout_tokens", "rollout_occupancy", "answer_truncated", "grader_errors", "reward", "prompt_padding")
        zeros = jnp.zeros((2, 1))
        measured = dict.fromkeys(names, jnp.float32(r + 1))
        return WeighedRollouts(rollouts, Coefficients(zeros, zeros), measured, {}, positions=np.arange(2) + 2 * r)

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    weighed, figures = refilled(sample, np.array([[0, 1], [1, 0], [2, 0], [3, 4]]), 0, sharding)
    assert asked == [0, 2, 3] and weighed.positions.tolist() == [0, 1]
    assert figures == {"refill_batches": 2, "refill_idle": 1, "refill_replaced": 0}
    assert weighed.measured["rollout_tokens"] == weighed.measured["grader_errors"] == 1 + 3 + 4
    assert weighed.measured["reward"] == pytest.approx(8 / 3) and weighed.measured["rollout_occupancy"] == 8 / 3


def test_groups_of_narrower_prompts_are_padded():
    def made(width: int, value: int) -> WeighedRollouts:
        rollouts = jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), record_shapes(2, 1, width, 5))
        both = jnp.full((2, 1), value, jnp.float32)
        return WeighedRollouts(
            rollouts, Coefficients(both, both), None, {"rewards": both}, positions=np.arange(2) + 10 * value
        )

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for widths in ((3, 5), (5, 3)):
        found = replaced(made(widths[0], 1), made(widths[1], 2), np.array([-1, 0]), 7, sharding)
        rows = [[value] * width + [7] * (5 - width) for value, width in zip((1, 2), widths, strict=True)]
        assert found.rollouts.prompt.tolist() == rows and found.positions.tolist() == [10, 20]
        assert found.group["rewards"].tolist() == found.rollouts.log_w.tolist() == [[1], [2]]


class ByHand(NamedTuple):
    """A step's groups without any code of refill: the batch and row of each, them, and of all that it sampled."""

    chosen: list[tuple[int, int]]
    weighed: WeighedRollouts
    reward: float
    idle: float


def by_hand(setup: Setup, params: dict, step: int) -> ByHand:
    split, seed, mesh = setup.splits["train"], setup.config.seed, setup.mesh
    order = DataOrder(split.parts, P, seed)
    batches = [order.batch(step), *order.further_batches(step, np.zeros(len(split), int))[:2]]
    groups, chosen, seen = {}, [(0, row) for row in range(P)], set()
    shape = setup.rollout_shape(num_rollouts=M, samples_answers=True)

    def is_idle(of: tuple[int, int]) -> bool:
        return len(set(groups[of][1])) == 1

    for r, indices in enumerate(batches):
        keys = example_keys(seed, TRAIN, step, np.arange(P) + r * P)
        batch = shard_prompts(mesh, batch_at(split, indices))
        found = jax.device_get(roll_out(params, batch, keys, setup.sampling, shape).rollouts)
        texts = answer_texts(found, setup.tokenizer, setup.markers.stop_ids)
        for row, i in enumerate(indices):
            earned = [0.0 if text is None else rare(text, split.examples[i]) for text in texts[row]]
            groups[r, row] = [x[row] for x in found], earned
        alive = [(r, row) for row, i in enumerate(indices) if r and not is_idle((r, row)) and i not in seen]
        seen |= set(indices)
        for row in range(P):
            if is_idle(chosen[row]) and alive:
                chosen[row] = alive.pop(0)
        if not any(map(is_idle, chosen)):
            break
    rollouts = Rollouts(*(np.stack(x) for x in zip(*(groups[of][0] for of in chosen), strict=True)))
    rewards = np.array([groups[of][1] for of in chosen], np.float32)
    advantage = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-4) / M
    weighed = WeighedRollouts(*shard_prompts(mesh, (rollouts, Coefficients(advantage, advantage))))
    of_all = [earned for _, earned in groups.values()]
    return ByHand(chosen, weighed, float(np.mean(of_all)), float(np.mean(list(map(is_idle, groups)))))


def test_a_step_is_that_of_the_same_prompts_put_together_by_hand():
    setup = prepare(settings())
    state, control, further = initial_state(setup), initial_control(setup.config), []
    one_step = TrainingStep(setup, state)
    for step in (0, 1):
        expected = by_hand(setup, state.params, step)
        after, updated, _ = one_step.update(jax.tree.map(jnp.copy, state), expected.weighed)
        compiled = sampler_programs()
        output = one_step(jax.tree.map(jnp.copy, state), step, control)
        assert sampler_programs() == compiled
        rollouts, metrics = output.weighed.rollouts, output.metrics
        assert output.weighed.positions.tolist() == [r * P + row for r, row in expected.chosen]
        for name in ("prompt", "targets", "sampled", "rationale_length", "answer_length"):
            np.testing.assert_array_equal(getattr(rollouts, name), getattr(expected.weighed.rollouts, name))
        score = expected.weighed.coefficients.score
        np.testing.assert_allclose(output.weighed.coefficients.score, score, atol=1e-6)
        for x, y in zip(*(jax.tree.leaves(made.params) for made in (output.state, after)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
        assert len(set(one_step.indices(step, output.weighed.positions))) == P
        assert metrics["train/grad_norm"] == pytest.approx(float(updated["grad_norm"]), rel=1e-5)
        assert metrics["train/refill_replaced"] == sum(r > 0 for r, _ in expected.chosen) / P
        assert metrics["train/refill_idle"] == pytest.approx(expected.idle)
        assert metrics["train/reward"] == pytest.approx(expected.reward)
        plain = one_step.sample_and_weigh(state, step, np.arange(P), control)
        assert output.weighed.measured.keys() == plain.measured.keys()
        assert metrics["train/idle_groups"] == (np.asarray(score) == 0).all(1).sum()
        further.append((metrics["train/refill_batches"], metrics["train/refill_replaced"]))
    assert further == [(2, 0.5), (1, 0.25)]  # both kinds occur: the bound is reached, and all groups have signal before


def test_a_run_keeps_the_groups_that_it_trained_on_and_regenerates_any_of_them(tmp_path):
    few = dict.fromkeys(("train__steps", "task__validation_examples", "task__test_examples"), 2)
    config = settings(train__save_rollouts_every=1, **few)
    train(config, tmp_path)
    rows = json_lines(tmp_path / "rollouts" / "step_000001.jsonl")
    positions = [row["position"] for row in rows[::M]]
    assert positions == [4, 1, 11, 3]
    order = DataOrder([""] * 30, P, config.seed)
    examples = np.concatenate([order.batch(1), *order.further_batches(1, np.zeros(30, int))])
    again = regenerate(tmp_path, step=1, example=11, rollout=2)
    row = rows[2 * M + 2]
    assert row["example"] == again["example"] == str(examples[11])
    for name in ("prompt", "rationale", "gold", "answer", "reward", "position"):
        assert again[name] == row[name]
    for name in ("log_w", "score"):
        assert again[name] == pytest.approx(row[name], rel=1e-5)
    saved = load(tmp_path, 1)
    assert saved.positions.tolist() == positions
    drawn, elsewhere = (replay(x, "paft").coefficients.path for x in (saved, saved._replace(positions=np.arange(P))))
    assert [(x != y).any() for x, y in zip(drawn, elsewhere, strict=True)][:2] == [True, False]  # drawn by the place
    with pytest.raises(UserError, match=r"--example=12: step 1 trained on .* a place from 0 to 11"):
        regenerate(tmp_path, step=1, example=12, rollout=2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"estimator": "garl"}, "refill=2: it replaces .* and estimator garl trains on the gold answer"),
        ({"estimator": "rlpr"}, "estimator rlpr trains on the gold answer and samples none; leave it at 0"),
        ({"regularizer__kl": 0.1}, r"refill=2 beside config\.regularizer\.kl=0\.1: the regularizer's expectation"),
        ({"train__refill": -1}, r"config\.train\.refill=-1: choose a number from 0"),
    ],
)
def test_what_refill_has_nothing_to_do_with_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        check(settings(**changes), 1)


def test_a_batch_that_is_the_whole_data_is_refused():
    with pytest.raises(UserError, match=r"refill=2: the 4 training examples are no more than config\.train\.prompts=4"):
        prepare(settings(task__train_examples=4))
