"""The learner's gradient, compared with a sum over flat sequences, and what must not change it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backends import close
from tests.support.reference import learner_log_probs
from tests.support.rollouts import (
    ARCH,
    BATCH,
    PARAMS,
    VOCAB,
    A,
    P,
    coefficients,
    flat_log_probs,
    sample,
    with_rules,
)
from tsallis_rl.config.schema import base_config
from tsallis_rl.models import bind, initialize, token_log_probs
from tsallis_rl.objectives import Coefficients
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.record import NEVER, Rollouts, supervised_record
from tsallis_rl.training.learner import gradient, update
from tsallis_rl.training.log_prob_gaps import gap_figures
from tsallis_rl.training.optimizer import learning_rate, make_optimizer, start_state, state_shapes
from tsallis_rl.training.packing import (
    PackedRows,
    RowTokens,
    Slices,
    first_fit,
    merge_identical,
    one_row_each,
    pack,
)

M = 4  # rollouts of most tests, which then share one compiled gradient
compiled = jax.jit(functools.partial(gradient, arch=ARCH), static_argnames="slices")


def assert_trees_close(found, expected, rtol: float) -> None:
    for (path, x), y in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=rtol * float(jnp.abs(y).max()), err_msg=str(path))


@pytest.mark.parametrize("max_answer", [0, A], ids=["gold", "sampled"])
def test_the_gradient_is_the_coefficients_times_flat_log_probabilities(max_answer):
    rollouts = sample(num_rollouts=M, max_answer=max_answer)
    weights = coefficients(rollouts.log_w.shape)
    sequences = []
    for p in range(P):
        prompt = BATCH.prompt[p, : BATCH.prompt_length[p]]
        for m in range(M):
            stop = int(rollouts.answer_start[p, m] + rollouts.answer_length[p, m])
            if rollouts.closing[p, m] == NEVER:
                stop = int(rollouts.rationale_length[p, m])
            place = np.arange(stop)
            token_weight = np.where(place < rollouts.rationale_length[p, m], weights.score[p, m], 0.0)
            token_weight = np.where(
                rollouts.sampled[p, m, :stop] | (place >= rollouts.answer_start[p, m]), token_weight, 0
            )
            token_weight = np.where(place >= rollouts.answer_start[p, m], weights.path[p, m], token_weight)
            sequences.append((np.concatenate([prompt, rollouts.targets[p, m, :stop]]), token_weight))

    width = max(len(tokens) for tokens, _ in sequences)
    tokens = np.stack([np.pad(t, (0, width - len(t))) for t, _ in sequences])
    token_weights = np.stack([np.pad(w, (len(t) - len(w), width - len(t))) for t, w in sequences])

    @jax.jit
    @jax.grad
    def flat(params):
        decoder = bind(ARCH, params)
        hidden, _ = decoder.prefill(tokens)
        log_probs = token_log_probs(hidden[:, :-1], decoder.output_head(), tokens[:, 1:])
        return -(token_weights[:, 1:] * log_probs).sum() / P

    found, metrics = compiled(PARAMS, one_row_each(rollouts, weights))
    assert_trees_close(found, flat(PARAMS), close(1e-5))
    assert metrics["log_prob_gaps"].largest.max() < close(1e-5)


@pytest.mark.parametrize("slices", [Slices(micro_batches=4), Slices(micro_rollouts=3), Slices(room=1)])
def test_micro_batches_and_micro_rollouts_change_nothing_but_memory(slices):
    rollouts = sample(num_rollouts=M)
    weights = coefficients(rollouts.log_w.shape)
    (whole, measured), (sliced, measured_in_slices) = (
        compiled(PARAMS, one_row_each(rollouts, weights), slices=how) for how in (Slices(), slices)
    )
    assert_trees_close(sliced, whole, close(1e-5))
    for name in ("surrogate", "grad_norm"):
        np.testing.assert_allclose(measured_in_slices[name], measured[name], rtol=close(1e-5))


@pytest.mark.slow
def test_in_bfloat16_many_parts_round_the_gradient_no_more_than_one():
    """Summed in bfloat16 over these 256 parts, the prompt's share of it would be wrong by half as much again."""
    keys = jax.random.split(jax.random.key(0), 3)
    prompt, ids = jax.random.randint(keys[0], (1, 24), 0, VOCAB), jax.random.randint(keys[1], (1, 256, 6), 0, VOCAB)
    numbers = jnp.full(ids.shape, 1 / 256)
    rows = PackedRows(prompt, jnp.array([24]), RowTokens(ids, jnp.roll(ids, -1, axis=2), numbers, 0 * numbers))
    params = initialize(ARCH, keys[2])

    def value(dtype: str, parts: int) -> np.ndarray:
        arch = dataclasses.replace(ARCH, dtype=dtype)
        of_slices = functools.partial(gradient, arch=arch, slices=Slices(micro_rollouts=256 // parts))
        return np.asarray(jax.jit(of_slices)(params, rows)[0]["layers"]["value"])

    exact = value("float32", 1)
    errors = [np.linalg.norm(value("bfloat16", parts) - exact) for parts in (1, 256)]
    assert errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize("slices", [Slices(), Slices(micro_batches=4), Slices(micro_rollouts=3)])
def test_the_gaps_of_all_slices_are_those_between_the_record_and_the_learner(slices):
    rollouts = sample(num_rollouts=M)
    rows = one_row_each(rollouts, coefficients(rollouts.log_w.shape))
    offset = np.float32(np.random.default_rng(0).exponential(size=rows.tokens.log_prob.shape))
    moved = rows._replace(tokens=rows.tokens._replace(log_prob=rows.tokens.log_prob + offset))
    found = gap_figures(jax.device_get(compiled(PARAMS, moved, slices=slices)[1]["log_prob_gaps"]))
    chosen = offset[np.asarray(rows.tokens.coefficient) != 0]
    assert found["log_prob_gap_mean"] == pytest.approx(chosen.mean(), rel=1e-4)
    assert found["log_prob_gap"] == pytest.approx(chosen.max(), rel=1e-4)
    assert found["log_prob_gap_p99"] == pytest.approx(np.quantile(chosen, 0.99, method="inverted_cdf"), rel=0.06)


def all_different(rollouts):
    """Rollouts of which no two of a prompt read the same first two tokens."""
    m, inputs = np.arange(rollouts.inputs.shape[1]), np.array(rollouts.inputs)
    inputs[..., 0], inputs[..., 1] = m // VOCAB, m % VOCAB
    return rollouts._replace(inputs=inputs)


def test_what_carries_no_coefficient_is_left_out_of_the_update_and_out_of_nothing_else():
    rollouts = all_different(sample(num_rollouts=16))
    used = np.zeros((P, 16), bool)
    used[2, [3, 7, 15]] = True  # one live group of four, three rollouts of sixteen
    weights = jax.tree.map(lambda x: jnp.where(used, x, 0), coefficients(used.shape))
    packed, metrics = pack(rollouts, weights, Slices())
    assert packed.tokens.inputs.shape == (1, 4, rollouts.inputs.shape[2])
    assert metrics["update_share"] == 1 / 16
    stops = (rollouts.answer_start + rollouts.answer_length)[used]
    np.testing.assert_allclose(metrics["update_padding"], 1 - stops.sum() / packed.tokens.inputs.size)
    (whole, measured), (part, of_part) = compiled(PARAMS, one_row_each(rollouts, weights)), compiled(PARAMS, packed)
    assert measured["grad_norm"] > 0.1
    assert_trees_close(part, whole, close(1e-5))
    np.testing.assert_allclose(of_part["surrogate"], measured["surrogate"], rtol=close(1e-5))
    assert pack(rollouts, weights, Slices(shards=4))[0].tokens.inputs.shape[:2] == (4, 4)
    # Four slices of P would keep four groups; those that are only as many as there is room for keep the live one.
    assert pack(rollouts, weights, Slices(micro_batches=4))[0].tokens.inputs.shape[:2] == (4, 4)
    assert pack(rollouts, weights, Slices(micro_batches=4, room=1))[0].tokens.inputs.shape[:2] == (1, 4)


def test_what_a_regulariser_alone_trains_is_computed_up_to_the_end_of_its_rationale():
    """As under PAFT: few rollouts are drawn, all have a score coefficient."""
    rollouts = all_different(sample(num_rollouts=16))
    drawn = np.zeros((P, 16), bool)
    drawn[2, [3, 7, 15]] = True
    weights = coefficients(drawn.shape)
    weights = weights._replace(path=jnp.where(drawn, weights.path, 0))
    packed, metrics = pack(rollouts, weights, Slices())
    ends = np.where(drawn, rollouts.answer_start + rollouts.answer_length, rollouts.rationale_length)
    assert metrics["update_tokens"] == ends.sum()
    (whole, _), (part, _) = compiled(PARAMS, one_row_each(rollouts, weights)), compiled(PARAMS, packed)
    assert_trees_close(part, whole, close(1e-5))


@pytest.mark.parametrize("least", [0, 3])
def test_rows_hold_several_rollouts_and_nothing_that_carries_no_coefficient(least):
    sampling = with_rules(budget=jnp.int32(100), min_rationale=jnp.int32(least) if least else None)
    rollouts = sample(num_rollouts=16, sampling=sampling, max_rationale=100)
    used = np.zeros((P, 16), bool)
    used[2, [3, 7, 8, 9, 15]], used[1] = True, True  # of four groups two, of one of these five rollouts of sixteen
    weights = jax.tree.map(lambda x: jnp.where(used, x, 0), coefficients(used.shape))
    whole, measured = compiled(PARAMS, one_row_each(rollouts, weights, sampling.rules))
    assert measured["grad_norm"] > 0.1 and measured["log_prob_gaps"].largest.max() < close(1e-5)
    if least:  # scored as if nothing had been barred, they are other numbers
        assert compiled(PARAMS, one_row_each(rollouts, weights))[1]["log_prob_gaps"].largest.max() > 0.1
    stops = (rollouts.answer_start + rollouts.answer_length)[used].sum()
    for slices, most in ((Slices(), 1.0), (Slices(micro_batches=2, micro_rollouts=1), 0.7), (Slices(room=300), 1.0)):
        rows, metrics = pack(rollouts, weights, slices, rules=sampling.rules)
        assert rows.tokens.inputs.shape[1] < 8 and (rows.tokens.start > 0).any()
        assert metrics["update_tokens"] <= stops
        assert metrics["update_share"] < 0.11 and metrics["update_padding"] < most
        part, of_part = compiled(PARAMS, rows, slices=slices)
        assert_trees_close(part, whole, close(1e-5))
        np.testing.assert_allclose(of_part["surrogate"], measured["surrogate"], rtol=close(1e-5))
        assert of_part["log_prob_gaps"].largest.max() < close(1e-5)


def test_rollouts_that_are_the_same_are_computed_once_with_the_sum_of_their_coefficients():
    rollouts = sample(num_rollouts=8, sampling=with_rules(budget=jnp.int32(70)), max_rationale=70)
    group = jax.tree.map(lambda x: x.copy(), rollouts)
    for field in Rollouts._fields[2:]:  # of the first prompt three different ones, of the second all the same
        array = getattr(group, field)
        array[0], array[1] = array[0][[0, 1, 0, 0, 4, 1, 0, 4]], array[1][[3] * 8]
    weights = coefficients((P, 8))
    merged, different = merge_identical(group, weights)
    assert different[:2].tolist() == [3, 1] and (different[2:] > 1).all()
    np.testing.assert_allclose(merged.score[0, 0], weights.score[0, [0, 2, 3, 6]].sum(), rtol=close(1e-6))
    np.testing.assert_allclose(merged.path[0, 4], weights.path[0, [4, 7]].sum(), rtol=close(1e-6))
    assert not merged.score[0, [2, 3, 5, 6, 7]].any() and not merged.path[1, 1:].any()
    rows, metrics = pack(group, weights, Slices())
    (whole, measured), (part, of_part) = compiled(PARAMS, one_row_each(group, weights)), compiled(PARAMS, rows)
    assert_trees_close(part, whole, close(1e-5))
    np.testing.assert_allclose(of_part["surrogate"], measured["surrogate"], rtol=close(1e-5))
    assert metrics["unique_rollouts"] == np.mean(different)
    once = (one_row_each(group, merged).tokens.coefficient != 0).sum()  # the gaps of what is the same count once, too
    assert of_part["log_prob_gaps"].tokens.sum() == once < measured["log_prob_gaps"].tokens.sum()
    alone = jax.tree.map(jnp.array, group)._replace(closing=jnp.zeros_like(group.closing))  # how it closed is no token
    np.testing.assert_array_equal(merge_identical(alone, weights)[1], different)
    other = group._replace(
        targets=np.where(np.arange(group.targets.shape[2]) == 0, np.arange(8)[:, None], group.targets)
    )
    assert (merge_identical(other, weights)[1] == 8).all()


def test_rollouts_that_are_all_as_long_as_they_may_be_stay_in_rows_of_their_own():
    rollouts = all_different(sample(num_rollouts=M))
    full = jnp.full((P, M), rollouts.inputs.shape[2])
    rollouts = rollouts._replace(answer_start=full, answer_length=jnp.zeros_like(full))
    weights = coefficients(full.shape)
    rows, metrics = pack(rollouts, weights, Slices())
    assert metrics["update_padding"] == 0 and metrics["update_share"] == 1
    jax.tree.map(np.testing.assert_array_equal, rows, one_row_each(rollouts, weights))
    assert pack(rollouts, jax.tree.map(jnp.zeros_like, weights), Slices(micro_batches=P))[0].tokens.inputs.shape[
        :2
    ] == (P, 1)


def test_lengths_spread_as_those_of_real_rationales_leave_little_padding():
    rng = np.random.default_rng(0)
    prompts, count, tokens = 16, 32, 640
    lengths = np.minimum(rng.geometric(5 / tokens, (prompts, count)), tokens)
    record = Rollouts(
        prompt=np.zeros((prompts, 1), np.int32), prompt_length=np.ones(prompts, np.int32),
        inputs=np.zeros((prompts, count, tokens), np.int32), targets=np.zeros((prompts, count, tokens), np.int32),
        sampled=np.ones((prompts, count, tokens), bool), log_prob=np.zeros((prompts, count, tokens), np.float32),
        rationale_length=lengths, answer_start=lengths, answer_length=np.zeros_like(lengths), closing=None, log_w=None,
    )  # fmt: skip
    record = record._replace(targets=rng.integers(9, size=record.targets.shape))  # no two are the same
    ones = Coefficients(np.ones((prompts, count)), np.ones((prompts, count)))
    assert pack(record, ones, Slices(micro_batches=prompts, micro_rollouts=1))[1]["update_padding"] < 0.15
    for row in first_fit(lengths[0], tokens):
        assert lengths[0][row].sum() <= tokens


def test_a_supervised_record_scores_rationale_and_answer_as_one_flat_sequence():
    rationale, length = np.array([[5, 6, 7], [8, 0, 0]]), np.array([3, 1])
    group = PromptBatch(BATCH.prompt[:2], BATCH.prompt_length[:2], BATCH.gold[:2], BATCH.gold_length[:2])
    record = supervised_record(group, rationale, length, end_of_think=[2])
    found = learner_log_probs(PARAMS, record, ARCH)
    for p in range(2):
        gold = group.gold[p, : group.gold_length[p]]
        continuation = np.concatenate([rationale[p, : length[p]], [2], gold])
        mask = (record.score_mask | record.path_mask)[p, 0]
        np.testing.assert_array_equal(record.targets[p, 0][mask], continuation)
        expected = flat_log_probs(group.prompt[p, : group.prompt_length[p]], continuation)
        np.testing.assert_allclose(found[p, 0][mask], expected, atol=close(1e-5))


def test_a_step_is_adamw_behind_clipping():
    config = base_config().optimizer
    config.clip, config.eps, config.weight_decay, config.learning_rate = 0.01, 1e-3, 0.1, 0.5
    optimizer = make_optimizer(config, 10)
    rollouts = sample(num_rollouts=M)
    weights = coefficients(rollouts.log_w.shape)
    grads, _ = compiled(PARAMS, one_row_each(rollouts, weights))
    config.schedule = "cosine"
    rate = learning_rate(config, 10)
    step = jax.jit(functools.partial(update, arch=ARCH, optimizer=optimizer, rate=rate))
    before = start_state(PARAMS, optimizer)
    state, metrics = step(before, one_row_each(rollouts, weights))
    assert metrics["learning_rate"] == 0.5
    _, later = step(before._replace(step=jnp.int32(5)), one_row_each(rollouts, weights))
    assert later["learning_rate"] == pytest.approx(0.25, rel=1e-6)  # half of a cosine's way
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=close(1e-5))
    for new, old, g in zip(*map(jax.tree.leaves, (state.params, PARAMS, grads)), strict=True):
        clipped = np.asarray(g, np.float64) * min(1, 0.01 / norm)
        expected = old - 0.5 * (clipped / (np.abs(clipped) + 1e-3) + 0.1 * np.asarray(old))
        np.testing.assert_allclose(new, expected, atol=close(1e-5))


def test_a_step_gives_a_state_that_the_same_program_takes():
    optimizer = make_optimizer(base_config().optimizer, 10)
    state = state_shapes(ARCH, optimizer)
    rollouts = sample(num_rollouts=M)
    step = functools.partial(update, arch=ARCH, optimizer=optimizer)
    new, _ = jax.eval_shape(step, state, one_row_each(rollouts, coefficients(rollouts.log_w.shape)))
    assert new == state  # types that are weak in one of them would compile the program again


def test_sgd_is_a_sum_of_clipped_gradients_that_fades_by_b1():
    config = base_config().optimizer
    config.name, config.b1, config.clip, config.weight_decay, config.learning_rate = "sgd", 0.5, 4.0, 0.1, 0.25
    optimizer = make_optimizer(config, 10)
    params = {"x": jnp.array([2.0, -1.0])}
    state = optimizer.init(params)
    first, state = optimizer.update({"x": jnp.array([3.0, 0.0])}, state, params)
    np.testing.assert_allclose(first["x"], [-0.25 * (3.0 + 0.2), -0.25 * -0.1], rtol=close(1e-6))
    second, _ = optimizer.update({"x": jnp.array([6.0, 8.0])}, state, params)  # clipped to [2.4, 3.2]
    np.testing.assert_allclose(second["x"], [-0.25 * (1.5 + 2.4 + 0.2), -0.25 * (3.2 - 0.1)], rtol=close(1e-6))


def test_learning_rate_schedules_start_and_end_where_they_should():
    config = base_config().optimizer
    config.learning_rate, config.warmup_steps, config.schedule = 2.0, 10, "cosine"
    rate = learning_rate(config, 110)
    found = [rate(step) for step in (0, 4, 9, 10, 60, 110)]
    np.testing.assert_allclose(found, [2 / 11, 10 / 11, 20 / 11, 2, 1, 0], atol=close(1e-6))
    config.warmup_steps = 1
    np.testing.assert_allclose([learning_rate(config, 110)(step) for step in (0, 1)], [1, 2], rtol=close(1e-6))
    config.schedule = "constant"
    assert learning_rate(config, 110)(109) == 2.0
