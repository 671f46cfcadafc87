"""Other methods' estimators, compared with float64 references written out rollout by rollout."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.groups import LENGTH, group_of
from tsallis_rl import objectives
from tsallis_rl.objectives import ESTIMATORS, HISTORIES
from tsallis_rl.objectives.histories import WINDOW, extended

# Compiled, as in training.
garl, jepo, log_likelihood, raft = map(
    jax.jit, (objectives.garl, objectives.jepo, objectives.log_likelihood, objectives.raft)
)
latro = jax.jit(objectives.latro, static_argnames="kl")
pkpo = jax.jit(objectives.pkpo, static_argnames=("k", "baseline"))
regularize = jax.jit(objectives.regularize, static_argnames="sampled_answers")
RNG = np.random.default_rng(0)


def by_name(name: str, log_w, rewards, options=None, **more) -> tuple[np.ndarray, np.ndarray]:
    score, path = _by_name(name, tuple((options or {}).items()), log_w, rewards, more)
    return np.asarray(score), np.asarray(path)


@functools.partial(jax.jit, static_argnames=("name", "options"))
def _by_name(name: str, options: tuple, log_w, rewards, more):
    return objectives.coefficients(ESTIMATORS[name], dict(options), group_of(log_w, rewards, **more))


def mean_log(log_w: list[float]) -> float:
    top = max(log_w)
    return top + math.log(sum(math.exp(x - top) for x in log_w) / len(log_w))


def reference_jepo(log_w):
    m = len(log_w)
    score = [mean_log(log_w) - mean_log(log_w[:i] + log_w[i + 1 :]) for i in range(m)]
    return score, [math.exp(x - mean_log(log_w)) / m for x in log_w]


def reference_latro(log_w):
    m = len(log_w)
    reward = [x - 0.05 * 0.3 * math.cos(i) for i, x in enumerate(log_w)]
    return [(r - (sum(reward) - r) / (m - 1)) / m for r in reward], [1 / m] * m


def reference_rlpr(log_w):
    m = len(log_w)
    reward = [max(0.0, math.exp(x / LENGTH) - 0.05) for x in log_w]
    mean = sum(reward) / m
    std = math.sqrt(sum((r - mean) ** 2 for r in reward) / m)
    kept = std > 0 and std >= 0.5 * 0.01
    return [(r - mean) / (std + 1e-4) / m * kept for r in reward], [0.0] * m


def reference_nover(log_w):
    m = len(log_w)
    perplexity = [math.exp(-x / (LENGTH * max(1, 1 + math.log(1 + i)))) for i, x in enumerate(log_w)]
    reward = [1 - sum(other < own for other in perplexity) / m for own in perplexity]
    mean = sum(reward) / m
    std = math.sqrt(sum((r - mean) ** 2 for r in reward) / m)
    return [(r - mean) / (std + 1e-4) / m for r in reward], [0.0] * m


def reference_garl_per_token(log_w, q=0.6):
    m, u = len(log_w), [math.exp(x / LENGTH) for x in log_w]
    mean, others = sum(u) / m, [(sum(u) - x) / (m - 1) for x in u]
    path = [x / mean**q / m / m**q for x in u]
    return [p - o ** (1 - q) / m / m**q for p, o in zip(path, others, strict=True)], [p / LENGTH for p in path]


REFERENCES = {name[len("reference_") :]: f for name, f in globals().items() if name.startswith("reference_")}


@pytest.mark.parametrize("name", REFERENCES)
def test_rewards_of_the_gold_answer_are_those_written_out(name):
    with jax.enable_x64(True):
        for m in (2, 7):
            log_w = RNG.uniform(-12, -0.1, m)
            expected = REFERENCES[name](log_w.tolist())
            np.testing.assert_allclose(by_name(name, log_w, log_w, q=0.6), expected, rtol=1e-9, atol=1e-12)


def test_a_bound_far_below_underflow_keeps_its_digits():
    log_w = RNG.uniform(-12, -1, 8)
    near, far = jepo(log_w.astype(np.float32)), jepo((log_w - 9000).astype(np.float32))
    np.testing.assert_allclose(far.score, near.score, atol=2e-3)
    np.testing.assert_allclose(np.asarray(far.score)[0], reference_jepo((log_w - 9000).tolist())[0][0], atol=2e-3)


def test_rollouts_without_weight_compare_as_said():
    log_w = np.array([-3.0, -np.inf, -5.0, np.nan])
    score, path = jepo(log_w)
    np.testing.assert_allclose(np.asarray(score)[[1, 3]], math.log(3 / 4), rtol=1e-6)
    assert not np.asarray(path)[[1, 3]].any()
    np.testing.assert_allclose(jepo(np.array([-3.0, -np.inf])).score, [0, math.log(1 / 2)], rtol=1e-6)
    np.testing.assert_allclose(latro(log_w, np.zeros(4)), log_likelihood(log_w), rtol=1e-6)
    score, _ = by_name("nover", log_w, log_w, rationale_length=np.ones(4))
    reward = np.array([1, 0, 0.5, 0])
    np.testing.assert_allclose(score, (reward - reward.mean()) / (reward.std() + 1e-4) / 4, rtol=1e-5)


def test_rlpr_leaves_out_a_group_that_deviates_less_than_its_share_of_the_usual():
    log_w = np.array([[-1.0, -2.0, -3.0], [-2.0, -2.01, -2.02]])
    score, path = by_name("rlpr", log_w, log_w, usual_std=np.full((2, 3), 0.1))
    assert score[0].any() and not score[1].any() and not path.any()
    assert by_name("rlpr", log_w, log_w, {"std_share": 0.0}, usual_std=np.full((2, 3), 0.1))[0][1].any()


@pytest.mark.parametrize("baseline", ["none", "loo"])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pkpo_is_the_mean_over_all_sets_of_k(k, baseline):
    for rewards in ([1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0.3, 0.9, 0.3, 0, 0.5]):
        expected = []
        for i in range(5):
            sets = [s for s in itertools.combinations(range(5), k) if i in s]
            largest = [max(rewards[j] for j in s) for s in sets]
            without = [max((rewards[j] for j in s if j != i), default=0) if baseline == "loo" else 0 for s in sets]
            expected.append(sum(a - b for a, b in zip(largest, without, strict=True)) / math.comb(5, k))
        np.testing.assert_allclose(pkpo(np.array(rewards), k=k, baseline=baseline).score, expected, atol=1e-7)
    np.testing.assert_array_equal(pkpo(np.eye(4), k=1), raft(np.eye(4)))


@pytest.mark.parametrize("m", [4, 32])
def test_the_hard_continuum_amplifies_by_gamma_functions_and_ends_in_rloo_and_maximum_likelihood(m):
    for q in (0.0, 0.3, 1.0):
        for count in (0, 1, 2, 3, m - 1, m):
            rewards = np.arange(m) < count
            score, path = by_name("hard_continuum", np.zeros(m), rewards, {"baseline": "none"}, q=q)
            log_gammas = [math.lgamma(x) for x in (m + q, count or 1, (count or 1) + q, m)]
            beta = math.exp(log_gammas[0] + log_gammas[1] - log_gammas[2] - log_gammas[3])
            np.testing.assert_allclose(score, rewards * beta / m, rtol=2e-5)
            np.testing.assert_array_equal(score, path)
    rewards = np.arange(m) % 2.0
    np.testing.assert_allclose(
        by_name("hard_continuum", np.zeros(m), rewards, q=0.0), by_name("rloo", np.zeros(m), rewards), atol=1e-7
    )
    own = by_name("hard_continuum", np.zeros(m), rewards, q=1.0)[0]
    np.testing.assert_allclose(own, rewards / rewards.sum() - 1 / m, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6), st.floats(0, 1, width=32))
def test_graded_rewards_keep_the_hard_continuum_between_its_ends(rewards, q):
    score, _ = by_name("hard_continuum", np.zeros(6), np.array(rewards), {"baseline": "none"}, q=q)
    assert (score >= 0).all() and (score <= np.array(rewards) * (1 + 1e-5)).all()


def test_curverl_weighs_by_mass_over_cumulative_mass_of_the_last_ten_batches():
    rewards = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    group = {"rewards": rewards, "rank_weight": np.zeros((4, 4))}
    read = HISTORIES["rank_weight"].read
    np.testing.assert_array_equal(read((), group), 1.0)  # the group itself is all there is
    histories = extended({}, group)
    assert histories == {"rank_weight": [[0, 1, 1, 0, 0]]}  # groups that are all wrong or all right do not count
    np.testing.assert_allclose(read(histories["rank_weight"], group)[:2, 0], [2 / 2, 2 / 3])
    for _ in range(12):
        histories = extended(histories, group)
    assert len(histories["rank_weight"]) == WINDOW
    np.testing.assert_allclose(read(histories["rank_weight"], group)[:2, 0], [11 / 11, 11 / 21])
    centred = (rewards[1] - 0.5) * 11 / 21 / 4
    got = by_name("curverl", rewards[1], rewards[1], rank_weight=np.full(4, 11 / 21))[0]
    np.testing.assert_allclose(got, centred, rtol=1e-6)


def test_the_usual_deviation_is_a_moving_average_that_numbers_which_are_not_finite_do_not_enter():
    def batch(spread: float) -> dict[str, np.ndarray]:
        prob = np.array([[0.5 - spread, 0.5 + spread], [np.nan, 0.1]], np.float32)
        return {"gold_prob": prob, "gold_prob_without": np.full((2, 2), 0.1, np.float32), "usual_std": prob}

    read, history = HISTORIES["usual_std"].read, {}
    np.testing.assert_array_equal(read((), batch(0.1)), 0.0)
    history = extended(history, batch(0.1))
    np.testing.assert_allclose(history["usual_std"], [0.1], rtol=1e-6)
    history = extended(history, batch(0.3))
    np.testing.assert_allclose(read(history["usual_std"], batch(0.2)), 0.99 * 0.1 + 0.01 * 0.3, rtol=1e-6)
    nothing = {name: np.full((1, 2), np.nan) for name in batch(0)}
    assert extended(history, nothing) == history


def test_one_token_makes_garl_per_token_garl():
    log_w = RNG.uniform(-9, -1, (2, 5))
    with_length = by_name("garl_per_token", log_w, log_w, q=0.5, gold_length=np.ones((2, 5)))
    np.testing.assert_allclose(with_length, garl(log_w, 0.5), rtol=1e-6)


@pytest.mark.parametrize("m", [3, 7, 24])
@pytest.mark.parametrize("each", [-0.1, -3.3, -57.7])
def test_equal_rollouts_have_exactly_no_score(each, m):
    """A mean of equal numbers may be rounded, and what is left would count as signal."""
    log_w = np.full((2, m), each, np.float32)
    assert not np.any(log_likelihood(log_w).score)
    assert not np.any(latro(log_w, log_w, kl=0.05).score)
    terms = {"kl": 0.3, "entropy": 0.2, "length": 0.1, "min_length": 7.0}
    added, _ = regularize(terms, log_prob=log_w, length=np.full((2, m), 5), log_ratio=log_w, sampled_answers=True)
    assert not np.any(added)
