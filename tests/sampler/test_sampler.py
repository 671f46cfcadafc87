"""The sampler: what it samples, forces, scores and records, and changes that never recompile it."""

import dataclasses
import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backends import close, on_cpu
from tests.support.compiled import sampler_programs
from tests.support.decoding import SMALL
from tests.support.reference import learner_log_probs
from tests.support.rollouts import (
    ARCH,
    BATCH,
    ENDS,
    JOINT,
    PARAMS,
    RULES,
    SAMPLING,
    THINK_END,
    VOCAB,
    A,
    M,
    P,
    Z,
    flat_log_probs,
    sample,
    sampled,
    truncation,
    with_rules,
    with_tokens,
)
from tsallis_rl.models import KeyValues, RowCache, residual
from tsallis_rl.models.attention import decode_kernel, decoding
from tsallis_rl.sampler import compaction, sampler
from tsallis_rl.sampler.record import FORCED, NEVER, REPLACED, SAMPLED, Rollouts, record_shapes
from tsallis_rl.sampler.rules import recorded_barred_counts
from tsallis_rl.sampler.schedule import NO_COMPACTION, ScheduleLimits


@pytest.fixture(scope="module", params=[0, A], ids=["gold", "sampled"])
def rollouts(request) -> Rollouts:
    return sample(max_answer=request.param)


def test_the_samplers_log_probabilities_are_the_learners(rollouts):
    learned = jax.jit(functools.partial(learner_log_probs, arch=ARCH))(PARAMS, rollouts)
    scored = rollouts.score_mask | rollouts.path_mask
    assert scored.sum() > 3 * P * M
    np.testing.assert_allclose(np.asarray(learned)[scored], rollouts.log_prob[scored], atol=close(1e-5))


def test_each_rollout_reads_prompt_rationale_end_of_think_joint_answer(rollouts):
    for p in range(P):
        for m in range(M):
            length, start = rollouts.rationale_length[p, m], rollouts.answer_start[p, m]
            inputs, targets = rollouts.inputs[p, m], rollouts.targets[p, m]
            assert inputs[0] == BATCH.prompt[p, BATCH.prompt_length[p] - 1]
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
        prompt, gold = BATCH.prompt[p, : BATCH.prompt_length[p]], BATCH.gold[p, : BATCH.gold_length[p]]
        for m in range(0, M, 5):
            if rollouts.closing[p, m] == NEVER:
                assert rollouts.log_w[p, m] == -np.inf
                continue
            before = np.concatenate([prompt, rollouts.targets[p, m, : rollouts.rationale_length[p, m]], JOINT])
            expected = flat_log_probs(before, gold).sum()
            np.testing.assert_allclose(rollouts.log_w[p, m], expected, atol=close(1e-4))


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
    gold, own = sample(max_answer=0), sample(max_answer=A)
    np.testing.assert_array_equal(gold.closing, own.closing)
    np.testing.assert_allclose(gold.log_w, own.log_w, rtol=close(1e-6))  # two programs: sums in another order
    for p in range(P):
        for m in range(M):
            if gold.closing[p, m] == NEVER:
                continue
            n = BATCH.gold_length[p]
            np.testing.assert_array_equal(gold.targets[p, m][gold.path_mask[p, m]], BATCH.gold[p, :n])
            answer = own.targets[p, m][own.path_mask[p, m]]
            assert not np.isin(answer[:-1], ENDS).any()
            assert len(answer) == A or answer[-1] in ENDS


def test_closing_an_unclosed_rationale_reads_end_of_think_and_keeps_the_sampled_action():
    closed = sample(sampling=with_rules(close_unclosed=jnp.array(True)))
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
    part = sample(jax.tree.map(lambda x: x[2:3], BATCH), step=3, positions=np.array([2]), num_rollouts=M)
    fewer = sample(step=3, num_rollouts=5)
    np.testing.assert_array_equal(part.targets[0], whole.targets[2])
    np.testing.assert_array_equal(fewer.targets, whole.targets[:, :5])
    assert (sample(step=4).targets != whole.targets).any()


def test_changing_q_temperature_budget_or_key_compiles_nothing_new():
    sample()
    compiled = sampler_programs()
    for number in range(3):
        sampling = with_rules(budget=jnp.int32(number), end_of_think=jnp.array([7]))
        sample(step=number, sampling=sampling._replace(tokens=with_tokens(0.1 * number).tokens))
    assert sampler_programs() == compiled


def test_first_tokens_are_drawn_from_the_policy():
    many = sample(jax.tree.map(lambda x: x[:1], BATCH), num_rollouts=2048)
    counts = np.bincount(many.targets[0, :, 0], minlength=VOCAB)
    prompt = BATCH.prompt[0, : BATCH.prompt_length[0]]
    p = np.array([np.exp(flat_log_probs(prompt, np.array([token]))[0]) for token in range(VOCAB)])
    chi_square = ((counts - 2048 * p) ** 2 / (2048 * p)).sum()
    assert chi_square < 26.1  # the 0.999 quantile with 8 degrees of freedom


def test_temperature_zero_is_greedy():
    greedy = sample(sampling=with_tokens(temperature=0.0))
    assert (greedy.targets == greedy.targets[:, :1]).all()
    prompt = BATCH.prompt[0, : BATCH.prompt_length[0]]
    best = max(range(VOCAB), key=lambda token: flat_log_probs(prompt, np.array([token]))[0])
    assert greedy.targets[0, 0, 0] == best


def test_a_budget_of_zero_goes_straight_to_the_answer():
    direct = sample(sampling=with_rules(budget=jnp.int32(0)))
    assert (direct.rationale_length == 1).all() and (direct.closing == FORCED).all()
    assert not direct.score_mask.any()


def test_a_cache_that_grew_holds_what_was_read():
    long = ScheduleLimits().min_segment + 5
    unending = with_rules(
        budget=jnp.int32(long), end_of_think=jnp.array([-1]), stop_ids=jnp.array([-1]), joint=jnp.zeros(0, int)
    )
    rollouts = sample(sampling=unending, num_rollouts=2, max_rationale=long)
    assert (rollouts.rationale_length == long + 1).all()
    learned = jax.jit(functools.partial(learner_log_probs, arch=ARCH))(PARAMS, rollouts)
    scored = rollouts.score_mask
    assert scored.sum() == 2 * P * long
    np.testing.assert_allclose(np.asarray(learned)[scored], rollouts.log_prob[scored], atol=close(1e-5))


def test_rollouts_of_one_likeliest_token_are_greedy_and_other_limits_compile_nothing_new():
    greedy = sample(sampling=with_tokens(temperature=0.0))
    first = sample(sampling=with_tokens(truncation=truncation(1, 1.0, 0.0)))
    np.testing.assert_array_equal(first.targets, greedy.targets)
    compiled = sampler_programs()
    others = sample(sampling=with_tokens(truncation=truncation(0, 0.9, 0.1)))
    assert sampler_programs() == compiled
    assert (others.targets != greedy.targets).any()


# Rollouts of some forty tokens whose finished rows are retired as those of long ones are.
SHORT = ScheduleLimits(min_segment=6, max_segments=8, compact_from=1, row_shares=(16, 8, 4))


EXACT = ("inputs", "targets", "sampled", "rationale_length", "closing", "answer_start", "answer_length")


def assert_the_same(found: Rollouts, expected: Rollouts) -> None:
    for name in EXACT:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(found.log_w, expected.log_w, atol=close(1e-5))
    np.testing.assert_allclose(found.log_prob, expected.log_prob, atol=close(1e-5))


def sampled_lengths(record: Rollouts) -> np.ndarray:
    """Tokens [P, M] that were sampled or forced of rollouts with sampled answers."""
    return np.where(record.answer_length, record.answer_start + record.answer_length, record.rationale_length)


@pytest.mark.parametrize("max_answer", [0, A], ids=["gold", "sampled"])
def test_retiring_finished_rows_changes_no_rollout(max_answer):
    options = {"num_rollouts": 16, "max_rationale": 40, "max_answer": max_answer}
    sampling = with_rules(budget=jnp.int32(40))
    plain = sampled(sampling=sampling, limits=NO_COMPACTION, **options)
    record, computed = sampled(sampling=sampling, limits=SHORT, **options)
    assert_the_same(record, plain.rollouts)

    lengths = sampled_lengths(record) if max_answer else record.rationale_length
    assert lengths.max() > SHORT.min_segment  # the cache grew on the way
    assert lengths.sum() <= computed < 0.7 * lengths.size * lengths.max()
    assert plain.computed_tokens == lengths.size * lengths.max()  # the last one ends the batch


def test_merged_batches_get_the_rollouts_they_get_alone():
    prompts, options = 12, {"num_rollouts": 8, "max_rationale": 40, "max_answer": A}
    limits = ScheduleLimits(min_segment=24, max_segments=2, compact_from=1, row_shares=(16, 4))
    sampling = with_rules(budget=jnp.int32(40))
    batch = jax.tree.map(lambda x: np.resize(x, (prompts, *x.shape[1:])), BATCH)
    plain = sample(batch, sampling=sampling, limits=NO_COMPACTION, **options)
    merged, computed = sampled(batch, sampling=sampling, at_once=2, limits=limits, **options)
    assert_the_same(merged, plain)
    lengths = sampled_lengths(plain)
    assert lengths.sum() <= computed < lengths.size * lengths.max()


def test_merging_holds_only_one_layer_of_the_caches_twice(monkeypatch):
    held, concatenate = [], compaction.concatenate_rows

    def observed(parts):
        whole = concatenate(parts)
        if isinstance(parts[0], KeyValues | RowCache):
            held.append(sum(x.nbytes for x in jax.live_arrays()))
        return whole

    monkeypatch.setattr(compaction, "concatenate_rows", observed)
    options = {"num_rollouts": 8, "max_rationale": 40, "max_answer": A}
    limits = ScheduleLimits(min_segment=24, max_segments=2, compact_from=1, row_shares=(16, 4))
    batch = jax.tree.map(lambda x: np.resize(x, (8, *x.shape[1:])), BATCH)
    gc.collect()  # of what other tests left
    sampled(batch, sampling=with_rules(budget=jnp.int32(40)), at_once=2, limits=limits, **options)
    assert len(held) == ARCH.layers > 1
    assert len(set(held)) == 1  # a layer of the batches' caches went as each merged one came


def test_prompts_at_once_must_divide_the_prompts():
    told = "at_once=3 does not divide the 4 prompts"
    with pytest.raises(ValueError, match=told):
        sampled(at_once=3)
    with pytest.raises(ValueError, match=told):
        sampler.score_without_rationale(PARAMS, BATCH, RULES, ARCH, at_once=3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": BATCH.prompt[0]}, r"batch.prompt has shape \(7,\), expected \[P, T0\]"),
        ({"gold_length": np.ones(3, np.int32)}, r"batch.gold_length has shape \(3,\)"),
        ({"gold": BATCH.gold.astype(np.float32)}, "batch.gold has dtype float32"),
    ],
)
def test_arrays_of_another_rank_size_or_dtype_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        sampled(BATCH._replace(**change))


def test_the_shapes_of_a_record_are_those_of_a_sampled_one(rollouts):
    tokens = rollouts.targets.shape[-1]
    for found, expected in zip(rollouts, record_shapes(P, M, BATCH.prompt.shape[1], tokens), strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


MARKERS = {"one id": (THINK_END,), "two": (7, 8), "itself again": (7, 7, 7), "three": (7, THINK_END, 7)}


@pytest.mark.parametrize("marker", MARKERS.values(), ids=MARKERS.keys())
@pytest.mark.parametrize("closes", [False, True])
def test_scores_with_any_end_of_think_are_those_of_one_flat_sequence(marker, closes):
    rules = {"end_of_think": jnp.array(marker, jnp.int32), "close_unclosed": jnp.array(closes)}
    gold, answered = (sample(sampling=with_rules(**rules), max_answer=a, limits=NO_COMPACTION) for a in (0, A))
    np.testing.assert_array_equal(gold.rationale_length, answered.rationale_length)
    np.testing.assert_allclose(gold.log_w, answered.log_w, atol=close(1e-5))
    closed = 0
    for p in range(P):
        prompt = BATCH.prompt[p, : BATCH.prompt_length[p]]
        answer = BATCH.gold[p, : BATCH.gold_length[p]]
        for m in range(M):
            length, targets, sampled = (x[p, m] for x in (gold.rationale_length, gold.targets, gold.sampled))
            if gold.closing[p, m] == NEVER:
                assert gold.log_w[p, m] == -np.inf and not closes and sampled[length - 1]
                continue
            closed += 1
            read = gold.inputs[p, m, 1 : length + 1]  # what came next, as the model read it
            assert tuple(read[-len(marker) :]) == marker
            flat = flat_log_probs(prompt, np.concatenate([read, JOINT, answer]))
            np.testing.assert_allclose(flat[length + len(JOINT) :].sum(), gold.log_w[p, m], atol=close(1e-4))
            own = sampled[:length] & (read == targets[:length])
            np.testing.assert_allclose(gold.log_prob[p, m, :length][own], flat[:length][own], atol=close(1e-5))
            assert (gold.log_prob[p, m, :length][~sampled[:length]] == 0).all()
            forced = np.flatnonzero(~sampled[:length])
            assert (targets[forced] == np.array(marker)[len(marker) - len(forced) :]).all()
            start = answered.answer_start[p, m]
            assert tuple(answered.targets[p, m, start - len(JOINT) : start]) == JOINT
    assert closed > P * M // 8
    rare = len(set(marker)) == 2 and len(marker) == 3  # nine words make three in a row by chance too seldom
    for kind in {FORCED, REPLACED if closes else NEVER, *([] if rare else [SAMPLED])}:
        assert (gold.closing == kind).any(), (marker, kind)


@pytest.mark.parametrize("marker", [(THINK_END,), (7, 8)])
@pytest.mark.parametrize("limits", [NO_COMPACTION, dataclasses.replace(SHORT, min_segment=4)])
def test_a_least_rationale_is_sampled_and_scored_without_what_would_end_it(marker, limits):
    least = 4
    rules = with_rules(end_of_think=jnp.array(marker, jnp.int32), min_rationale=jnp.int32(least)).rules
    found = sample(sampling=SAMPLING._replace(rules=rules), limits=limits)
    assert found.rationale_length.min() == least + 1  # so some end as soon as they may
    assert not np.isin(found.targets[..., :least], ENDS).any()
    counts = np.asarray(recorded_barred_counts(found, rules))
    assert set(counts[..., :least].ravel()) == ({2, 3} if len(marker) > 1 else {3})
    assert not counts[..., least:].any()
    for p in range(P):
        prompt = BATCH.prompt[p, : BATCH.prompt_length[p]]
        for m in range(4):
            targets = found.targets[p, m, :least]
            assert all(tuple(targets[i : i + len(marker)]) != marker for i in range(least))
            for t, token in enumerate(targets):
                whole = np.array([flat_log_probs(prompt, np.append(targets[:t], v))[-1] for v in range(VOCAB)])
                barred = [*ENDS, marker[-1]][: counts[p, m, t]]
                allowed = np.setdiff1d(np.arange(VOCAB), barred)
                assert token in allowed
                expected = whole[token] - np.logaddexp.reduce(whole[allowed])
                np.testing.assert_allclose(found.log_prob[p, m, t], expected, atol=close(1e-5))


def test_ids_without_a_token_are_never_sampled_and_have_no_probability():
    arch = dataclasses.replace(ARCH, absent_ids=((0, 2), (8, 9)))
    found = sample(arch=arch, max_answer=A)
    assert not np.isin(found.targets[found.sampled], [0, 1, 8]).any()
    whole = sample(max_answer=A)
    assert np.isin(whole.targets[whole.sampled], [0, 1, 8]).any()
    learned = jax.jit(functools.partial(learner_log_probs, arch=arch))(PARAMS, found)
    scored = found.sampled
    np.testing.assert_allclose(np.asarray(learned)[scored], found.log_prob[scored], atol=close(1e-5))


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("choices", ["of TPUs", "of GPUs", "a GPU's kernels"])
def test_choices_of_other_processors_sample_what_those_of_a_cpu_sample(monkeypatch, choices, merges):
    """By dots, from row caches: with one position for all rows, and with one for each once batches merge."""
    sampling = with_rules(budget=jnp.int32(24), end_of_think=jnp.array([0]), stop_ids=jnp.array([1]))
    limits = ScheduleLimits(min_segment=16, max_segments=2, compact_from=1, row_shares=(16, 4))
    options = {"sampling": sampling, "max_rationale": 24, "num_rollouts": 4}
    options |= {"limits": limits, "at_once": 2} if merges else {"limits": NO_COMPACTION}
    expected = sample(**options)
    of_tpus, by_kernels = choices == "of TPUs", choices == "a GPU's kernels"
    how = {"writes_by_batch": of_tpus, "cuts_vocabulary": of_tpus, "sums_together": not of_tpus}
    on_cpu(monkeypatch, multiplies_and_sums=False, row_cache=True, **how)
    if by_kernels:
        for module in (decoding, sampler):
            monkeypatch.setattr(module, "uses_kernel", lambda *_: True)
        attend = functools.partial(decode_kernel.attend, interpret=True, tiles=SMALL)
        monkeypatch.setattr(decode_kernel, "attend", attend)
        monkeypatch.setattr(residual, "add_and_norm", functools.partial(residual.add_and_norm, interpret=True))
    context = ARCH.context + 1 + of_tpus + 2 * by_kernels  # compiled anew
    found = sample(**options, arch=dataclasses.replace(ARCH, context=context))
    np.testing.assert_array_equal(found.targets, expected.targets)
    np.testing.assert_allclose(found.log_prob, expected.log_prob, atol=close(1e-5))
    np.testing.assert_allclose(found.log_w, expected.log_w, atol=close(1e-5))
