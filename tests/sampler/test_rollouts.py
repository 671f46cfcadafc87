"""The sampler: what it draws, forces, scores and records, and what it never recompiles for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.reference import stream_log_probs
from tests.support.rollouts import (
    ARCH,
    ENDS,
    GROUP,
    JOINT,
    PARAMS,
    SAMPLING,
    THINK_END,
    VOCAB,
    A,
    M,
    P,
    Z,
    flat_log_probs,
    sample,
)
from tsallis_rl.sampler import decode as decoding
from tsallis_rl.sampler import sampler
from tsallis_rl.sampler.record import (
    FORCED,
    NEVER,
    REPLACED,
    SAMPLED,
    TRAIN,
    Group,
    Rollouts,
    Truncation,
    address,
)
from tsallis_rl.sampler.sampler import MIN_SEGMENT, roll_out, roll_out_counted
from tsallis_rl.sampler.token_sampling import DRAW_BLOCK, draw, truncated


def programs() -> int:
    """How many the sampler has compiled."""
    return sum(program._cache_size() for program in decoding.PROGRAMS)


@pytest.fixture(scope="module", params=[0, A], ids=["gold", "sampled"])
def rollouts(request) -> Rollouts:
    return sample(max_answer=request.param)


def test_the_samplers_log_probabilities_are_the_learners(rollouts):
    learned = jax.jit(functools.partial(stream_log_probs, arch=ARCH))(PARAMS, rollouts)
    scored = rollouts.score_mask | rollouts.path_mask
    assert scored.sum() > 3 * P * M
    np.testing.assert_allclose(np.asarray(learned)[scored], rollouts.log_prob[scored], atol=1e-5)


def test_each_rollout_reads_prompt_rationale_end_of_think_joint_answer(rollouts):
    for p in range(P):
        for m in range(M):
            length, start = rollouts.rationale_length[p, m], rollouts.answer_start[p, m]
            inputs, targets = rollouts.inputs[p, m], rollouts.targets[p, m]
            assert inputs[0] == GROUP.prompt[p, GROUP.prompt_length[p] - 1]
            if rollouts.closing[p, m] == NEVER:
                assert targets[length - 1] in ENDS
                assert rollouts.answer_length[p, m] == 0
                continue
            assert targets[length - 1] == inputs[length] == THINK_END
            assert not np.isin(targets[: length - 1], [THINK_END, *ENDS]).any()
            assert tuple(targets[length:start]) == JOINT
            read = start + rollouts.answer_length[p, m]
            np.testing.assert_array_equal(inputs[length + 1 : read], targets[length : read - 1])


def test_log_w_is_the_flat_log_probability_of_the_gold_answer(rollouts):
    for p in range(P):
        prompt, gold = GROUP.prompt[p, : GROUP.prompt_length[p]], GROUP.gold[p, : GROUP.gold_length[p]]
        for m in range(0, M, 5):
            if rollouts.closing[p, m] == NEVER:
                assert rollouts.log_w[p, m] == -np.inf
                continue
            before = np.concatenate([prompt, rollouts.targets[p, m, : rollouts.rationale_length[p, m]], JOINT])
            expected = flat_log_probs(before, gold).sum()
            np.testing.assert_allclose(rollouts.log_w[p, m], expected, atol=1e-4)


def test_every_way_of_closing_occurs_and_forced_tokens_are_not_scored(rollouts):
    assert {SAMPLED, FORCED, NEVER} == set(np.unique(rollouts.closing))
    forced = rollouts.closing == FORCED
    assert (rollouts.rationale_length[forced] == Z + 1).all()
    assert (rollouts.rationale_length[~forced] <= Z).all()
    last = np.take_along_axis(rollouts.score_mask, rollouts.rationale_length[..., None] - 1, axis=-1)[..., 0]
    np.testing.assert_array_equal(last, ~forced)
    in_joint = (np.arange(rollouts.targets.shape[-1]) >= rollouts.rationale_length[..., None]) & (
        np.arange(rollouts.targets.shape[-1]) < rollouts.answer_start[..., None]
    )
    assert not (in_joint & (rollouts.score_mask | rollouts.path_mask | rollouts.sampled)).any()


def test_gold_streams_hold_the_gold_answer_and_sampled_streams_end_at_an_end_of_sequence():
    gold, sampled = sample(max_answer=0), sample(max_answer=A)
    np.testing.assert_array_equal(gold.closing, sampled.closing)
    np.testing.assert_allclose(gold.log_w, sampled.log_w, rtol=1e-6)  # two programs: sums in another order
    for p in range(P):
        for m in range(M):
            if gold.closing[p, m] == NEVER:
                continue
            n = GROUP.gold_length[p]
            np.testing.assert_array_equal(gold.targets[p, m][gold.path_mask[p, m]], GROUP.gold[p, :n])
            answer = sampled.targets[p, m][sampled.path_mask[p, m]]
            assert not np.isin(answer[:-1], ENDS).any()
            assert len(answer) == A or answer[-1] in ENDS


def test_closing_an_unclosed_rationale_reads_end_of_think_and_keeps_the_sampled_action():
    closed = sample(sampling=SAMPLING._replace(close_unclosed=jnp.array(True)))
    dropped = sample()
    never = dropped.closing == NEVER
    assert never.sum() > 3
    np.testing.assert_array_equal(closed.closing == REPLACED, never)
    assert np.isfinite(closed.log_w).all()
    at = closed.rationale_length[never]
    rows = np.arange(never.sum())
    assert np.isin(closed.targets[never][rows, at - 1], ENDS).all()
    assert (closed.inputs[never][rows, at] == THINK_END).all()
    assert closed.score_mask[never][rows, at - 1].all()


def test_a_rollout_depends_on_its_address_alone():
    whole = sample(step=3)
    part = sample(Group(*(x[2:3] for x in GROUP)), step=3, slots=np.array([2]), num_rollouts=M)
    fewer = sample(step=3, num_rollouts=5)
    np.testing.assert_array_equal(part.targets[0], whole.targets[2])
    np.testing.assert_array_equal(fewer.targets, whole.targets[:, :5])
    assert (sample(step=4).targets != whole.targets).any()


def test_changing_q_temperature_budget_or_key_compiles_nothing_new():
    sample()
    compiled = programs()
    for number in range(3):
        sampling = SAMPLING._replace(temperature=jnp.float32(0.1 * number), budget=jnp.int32(number))
        sample(step=number, sampling=sampling._replace(end_of_think=jnp.int32(7)))
    assert programs() == compiled


def test_first_tokens_are_drawn_from_the_policy():
    many = sample(Group(*(x[:1] for x in GROUP)), num_rollouts=2048)
    counts = np.bincount(many.targets[0, :, 0], minlength=VOCAB)
    prompt = GROUP.prompt[0, : GROUP.prompt_length[0]]
    p = np.array([np.exp(flat_log_probs(prompt, np.array([token]))[0]) for token in range(VOCAB)])
    chi_square = ((counts - 2048 * p) ** 2 / (2048 * p)).sum()
    assert chi_square < 26.1  # the 0.999 quantile with 8 degrees of freedom


def test_temperature_zero_is_greedy():
    greedy = sample(sampling=SAMPLING._replace(temperature=jnp.float32(0)))
    assert (greedy.targets == greedy.targets[:, :1]).all()
    prompt = GROUP.prompt[0, : GROUP.prompt_length[0]]
    best = max(range(VOCAB), key=lambda token: flat_log_probs(prompt, np.array([token]))[0])
    assert greedy.targets[0, 0, 0] == best


def test_a_budget_of_zero_goes_straight_to_the_answer():
    direct = sample(sampling=SAMPLING._replace(budget=jnp.int32(0)))
    assert (direct.rationale_length == 1).all() and (direct.closing == FORCED).all()
    assert not direct.score_mask.any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_token_of_a_large_vocabulary_follows_the_softmax_though_its_block_is_drawn_first(temperature):
    logits = jax.random.normal(jax.random.key(1), (2 * DRAW_BLOCK + 44,))
    uniform = jax.random.uniform(jax.random.key(2), (50_000, 2))
    tokens = np.asarray(jax.jit(jax.vmap(draw, in_axes=(0, None)))(uniform, logits / temperature))
    expected = 50_000 * np.asarray(jax.nn.softmax(logits / temperature))
    rare = expected < 20
    found = np.bincount(tokens, minlength=logits.size)
    found, expected = (np.append(x[~rare], x[rare].sum()) for x in (found, expected))
    chi_square = ((found - expected) ** 2 / expected).sum()
    degrees = len(found) - 1
    assert degrees > 100
    assert chi_square < degrees + 3.1 * np.sqrt(2 * degrees)  # about the 0.999 quantile


def test_a_cache_that_grew_holds_what_was_read():
    long = MIN_SEGMENT + 5
    unending = SAMPLING._replace(
        budget=jnp.int32(long), end_of_think=jnp.int32(-1), end_of_sequence=jnp.array([-1]), joint=jnp.zeros(0, int)
    )
    rollouts = sample(sampling=unending, num_rollouts=2, max_rationale=long)
    assert (rollouts.rationale_length == long + 1).all()
    learned = jax.jit(functools.partial(stream_log_probs, arch=ARCH))(PARAMS, rollouts)
    scored = rollouts.score_mask
    assert scored.sum() == 2 * P * long
    np.testing.assert_allclose(np.asarray(learned)[scored], rollouts.log_prob[scored], atol=1e-5)


def test_the_ends_of_the_unit_interval_draw_tokens_that_can_be_drawn():
    logits = jnp.full(3 * DRAW_BLOCK, -jnp.inf).at[jnp.array([4, 11])].set(0.0)
    largest = np.nextafter(np.float32(1), np.float32(0))
    assert draw(jnp.array([0.0, 0.0]), logits) == 4
    assert draw(jnp.array([largest, largest]), logits) == 11  # of another block


def truncation(top_k: int, top_p: float, min_p: float) -> Truncation:
    return Truncation(jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p))


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(3, 1, 0), (0, 0.6, 0), (0, 1, 0.3), (4, 0.7, 0.2), (0, 1, 0)])
def test_truncation_keeps_the_tokens_that_its_definition_names(top_k, top_p, min_p):
    logits = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
    kept = np.isfinite(truncated(jnp.array(logits), truncation(top_k, top_p, min_p)))
    for row, found in zip(logits.astype(np.float64), kept, strict=True):
        order = sorted(range(20), key=lambda token: -row[token])[: top_k or None]
        p = {token: np.exp(row[token]) for token in order}
        total, before, expected = sum(p.values()), 0.0, set()
        for token in order:
            if before / total < top_p and p[token] >= min_p * p[order[0]]:
                expected.add(token)
            before += p[token]
        assert set(np.flatnonzero(found)) == expected


def test_rollouts_of_one_likeliest_token_are_greedy_and_other_limits_compile_nothing_new():
    greedy = sample(sampling=SAMPLING._replace(temperature=jnp.float32(0)))
    first = sample(sampling=SAMPLING._replace(truncation=truncation(1, 1.0, 0.0)))
    np.testing.assert_array_equal(first.targets, greedy.targets)
    compiled = programs()
    others = sample(sampling=SAMPLING._replace(truncation=truncation(0, 0.9, 0.1)))
    assert programs() == compiled
    assert (others.targets != greedy.targets).any()


@pytest.fixture
def short_segments(monkeypatch):
    """Streams of some forty tokens whose rollouts leave as those of long streams do."""
    for name, value in {"LONG": 1, "MIN_SEGMENT": 4, "MAX_SEGMENTS": 12, "SIXTEENTHS": (16, 8, 4, 2)}.items():
        monkeypatch.setattr(sampler, name, value)


EXACT = ("inputs", "targets", "sampled", "rationale_length", "closing", "answer_start", "answer_length")


def assert_the_same(found: Rollouts, expected: Rollouts) -> None:
    for name in EXACT:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(found.log_w, expected.log_w, atol=1e-5)
    np.testing.assert_allclose(found.log_prob, expected.log_prob, atol=1e-5)


@pytest.mark.parametrize("max_answer", [0, A], ids=["gold", "sampled"])
def test_rollouts_that_are_done_leave_and_change_nothing(short_segments, max_answer):
    static = {"num_rollouts": 16, "max_rationale": 40, "max_answer": max_answer}
    sampling = SAMPLING._replace(budget=jnp.int32(40))
    together = sample(sampling=sampling, traced=True, **static)
    keys = address(0, TRAIN, 0, np.arange(P))
    record, work = roll_out_counted(PARAMS, GROUP, keys, sampling, arch=ARCH, **static)
    record = jax.device_get(record)
    assert_the_same(record, together)

    whole = record.answer_start + record.answer_length
    lengths = np.where(record.answer_length, whole, record.rationale_length) if max_answer else record.rationale_length
    assert lengths.max() > sampler.MIN_SEGMENT  # the cache grew on the way
    assert lengths.sum() <= work < 0.6 * lengths.size * lengths.max()


def test_prompts_that_take_the_place_of_others_get_the_rollouts_they_get_alone(short_segments, monkeypatch):
    monkeypatch.setattr(sampler, "SIXTEENTHS", (16, 4))  # fewer programs
    prompts, static = 12, {"num_rollouts": 8, "max_rationale": 40, "max_answer": A}
    sampling = SAMPLING._replace(budget=jnp.int32(40))
    group = jax.tree.map(lambda x: np.resize(x, (prompts, *x.shape[1:])), GROUP)
    keys = address(0, TRAIN, 0, np.arange(prompts))
    together = roll_out(PARAMS, group, keys, sampling, arch=ARCH, traced=True, **static)
    in_six_waves, work = roll_out_counted(PARAMS, group, keys, sampling, arch=ARCH, at_once=2, **static)
    assert_the_same(jax.device_get(in_six_waves), jax.device_get(together))
    lengths = np.where(
        together.answer_length, together.answer_start + together.answer_length, together.rationale_length
    )
    assert lengths.sum() <= work < lengths.size * lengths.max()
