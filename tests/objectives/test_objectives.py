"""The estimators, compared with float64 references written out rollout by rollout, and the identities between them."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.groups import group_of
from tsallis_rl import objectives

# Compiled, as in training (op by op each operation would compile by itself), without optimisations that take time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
garl = jit(objectives.garl, static_argnames=("baseline", "correction", "normalize"))
paft = jit(objectives.paft, static_argnames=("num_draws", "resampling", "normalize"))
diagnostics = jit(objectives.diagnostics)
em = jit(objectives.em, static_argnames=("num_draws", "normalize"))
loss_and_slopes = jit(jax.vmap(jax.value_and_grad(objectives.tsallis_loss, (0, 1)), (0, None)))
QS = [0.0, 0.25, 0.5, 0.75, 1.0, 1 - 1e-7, 1e-7]


def mean_weight(log_w: list[float]) -> tuple[float, float]:
    """(top, x) with mean weight e^top · x, in float64 without underflow."""
    top = max(log_w, default=-math.inf)
    if top == -math.inf:
        return 0.0, 0.0
    return top, math.fsum(math.exp(v - top) for v in log_w) / len(log_w)


def reference_garl(log_w: np.ndarray, q: float, baseline: str, normalize: bool) -> tuple[np.ndarray, np.ndarray]:
    """docs/method.md §3's table for one group, a rollout at a time."""
    values = [float(v) if v == v else -math.inf for v in log_w]
    m = len(values)
    top, mean = mean_weight(values)
    score, path = np.zeros(m), np.zeros(m)
    if mean == 0.0:
        return score, path
    scale = (m**-q if normalize else 1.0) / m
    for i, value in enumerate(values):
        path[i] = scale * math.exp(value - q * (top + math.log(mean)))
        score[i] = path[i]
        if baseline == "loo":
            other_top, other = mean_weight(values[:i] + values[i + 1 :])
            if other > 0:
                score[i] -= scale * math.exp((1 - q) * (other_top + math.log(other)))
    return score, path


def random_log_w(seed: int, shape: tuple[int, ...], spread: float = 3.0) -> np.ndarray:
    return -spread * np.random.default_rng(seed).random(shape)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.99, 1.0])
def test_log_q_of_a_half_is_its_textbook_value(q):
    want = math.log(0.5) if q == 1 else (0.5 ** (1 - q) - 1) / (1 - q)
    with jax.enable_x64(True):
        np.testing.assert_allclose(objectives.log_q(np.float64(0.5), q), want, rtol=1e-14)


def test_the_loss_and_its_derivatives_are_continuous_through_q_1():
    log_p = np.array([-1e4, -80.0, -3.0, -0.5, -1e-6, 0.0])
    with jax.enable_x64(True):
        value, (in_log_p, in_q) = loss_and_slopes(log_p, 1.0)
        np.testing.assert_allclose(value, -log_p, rtol=1e-15)
        np.testing.assert_allclose(in_log_p, -1.0, rtol=1e-15)
        np.testing.assert_allclose(in_q, log_p**2 / 2, rtol=1e-13)
        for q in (1 - 1e-9, 1 + 1e-9):
            value, (in_log_p, in_q) = loss_and_slopes(log_p, q)
            np.testing.assert_allclose(value, -log_p, rtol=1e-4, atol=1e-15)
            np.testing.assert_allclose(in_log_p, -1.0, rtol=2e-5)
            np.testing.assert_allclose(in_q, log_p**2 / 2, rtol=1e-4, atol=1e-15)


@pytest.mark.parametrize("q", [0.0, 0.5, 0.999999, 1.0])
def test_the_gradient_of_the_loss_is_the_attenuated_log_likelihood_gradient(q):
    log_p = jnp.array([-1e4, -100.0, -1.0, -1e-3, 0.0])
    _, (got, _) = loss_and_slopes(log_p, q)
    want = -np.exp((1 - np.float64(np.float32(q))) * np.float64(log_p))
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=float(jnp.finfo(jnp.float32).tiny))


def test_an_impossible_answer_has_the_loss_s_bound_and_a_finite_gradient():
    for q, bound in ((0.0, 1.0), (0.5, 2.0), (1.0, np.inf)):
        value, slopes = loss_and_slopes(jnp.full(5, -jnp.inf), q)
        assert (value == bound).all()
        assert np.isfinite(slopes).all()


@pytest.mark.parametrize("baseline", ["loo", "none"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("q", QS)
def test_garl_equals_the_reference_in_float64(q, normalize, baseline):
    log_w = random_log_w(0, (4, 6), 20.0)
    log_w[1, 2], log_w[2, :5], log_w[3] = np.nan, -np.inf, -np.inf
    with jax.enable_x64(True):
        got = garl(log_w, q, baseline=baseline, normalize=normalize)
        for i, row in enumerate(log_w):
            score, path = reference_garl(row, q, baseline, normalize)
            np.testing.assert_allclose(got.score[i], score, rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(got.path[i], path, rtol=1e-12, atol=1e-15)


weights = st.one_of(st.floats(-1e4, 0, width=32), st.floats(-20, 0, width=32), st.just(-math.inf), st.just(math.nan))


@settings(max_examples=150, deadline=None)
@given(
    st.data(), st.sampled_from([1, 2, 5, 32]), st.floats(0, 1, width=32) | st.sampled_from([np.float32(q) for q in QS])
)
def test_float32_coefficients_keep_five_digits_of_the_group_s_largest(data, m, q):
    log_w = np.array(data.draw(st.lists(weights, min_size=m, max_size=m)), np.float32)
    baseline = "loo" if m > 1 else "none"
    got = garl(log_w, q, baseline=baseline)
    score, path = reference_garl(log_w, float(q), baseline, True)
    size = max(np.abs(path).max(), np.abs(path - score).max())
    assert np.isfinite(np.array(got)).all()
    # Beyond five digits: what float32 leaves of an exponent of (1 − q) log w, at most about 90 before underflow.
    np.testing.assert_allclose(got.score, score, atol=3e-5 * size + 1e-37, rtol=0)
    np.testing.assert_allclose(got.path, path, atol=3e-5 * size + 1e-37, rtol=0)


jitted_family = {
    name: jit(
        lambda key, log_w, rewards, q, row=row: objectives.coefficients(row, {}, group_of(log_w, rewards, key=key, q=q))
    )
    for name, row in objectives.ESTIMATORS.items()
}


@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    st.sampled_from(list(objectives.ESTIMATORS)),
    st.sampled_from(QS),
    st.sampled_from(["float32", "bfloat16"]),
)
def test_every_estimator_is_finite_whatever_the_weights(data, name, q, dtype):
    log_w = jnp.array(data.draw(st.lists(weights, min_size=8, max_size=8)), dtype)
    rewards = jnp.array(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=8, max_size=8)), dtype)
    got = jitted_family[name](jax.random.key(0), log_w, rewards, q)
    assert got.score.dtype == got.path.dtype == jnp.float32
    assert got.score.shape == got.path.shape == (8,)
    assert np.isfinite(np.array(got)).all()
    if objectives.ESTIMATORS[name].answer == "gold" and name != "sft" and not np.isfinite(np.float32(log_w)).any():
        assert not np.array(got).any()


@pytest.mark.parametrize("m", [1, 2, 512])
@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
def test_groups_of_1_to_512_rollouts_near_minus_10000_keep_five_digits(m, q):
    log_w = (random_log_w(3, (m,), 30.0) - 9970).astype(np.float32)
    baseline = "loo" if m > 1 else "none"
    got = garl(log_w, q, baseline=baseline, normalize=False)
    score, path = reference_garl(log_w, q, baseline, False)
    np.testing.assert_allclose(got.score, score, atol=1e-5 * np.abs(path).max() + 1e-37, rtol=0)
    np.testing.assert_allclose(got.path, path, atol=1e-5 * np.abs(path).max() + 1e-37, rtol=0)


def test_coefficients_are_constants_to_differentiation():
    def total(log_w: jax.Array, q: jax.Array) -> jax.Array:
        likelihood = objectives.coefficients(
            objectives.ESTIMATORS["paft"], {}, {"key": jax.random.key(0), "log_w": log_w, "q": q}
        )
        return sum(c.sum() for c in (*objectives.garl(log_w, q), *likelihood))

    slopes = jit(jax.grad(total, (0, 1)))(jnp.array([-1.0, -2.0, -jnp.inf]), 0.5)
    assert all(not np.any(s) for s in slopes)


def test_q_may_differ_from_group_to_group():
    log_w, q = random_log_w(1, (2, 3, 5)), np.array([[0.0, 0.5, 1.0]])
    got = garl(log_w, q)
    for j in range(3):
        np.testing.assert_allclose(got.score[:, j], garl(log_w[:, j], q[0, j]).score, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("alias", "q", "options"),
    [
        ("rb_reinforce", 0.0, {"baseline": "none"}),
        ("rb_rloo", 0.0, {"baseline": "loo"}),
        ("iwae", 1.0, {"baseline": "none"}),
    ],
)
def test_the_endpoints_by_name_are_garl_at_their_q(alias, q, options):
    log_w = random_log_w(2, (3, 8))
    np.testing.assert_array_equal(getattr(objectives, alias)(log_w), objectives.garl(log_w, q, **options))


def test_em_is_paft_at_q_1_and_its_coefficients_are_shares_of_draws():
    log_w = random_log_w(2, (3, 8))
    key = jax.random.key(5)
    np.testing.assert_array_equal(em(key, log_w), paft(key, log_w, 1.0))
    draws = np.asarray(em(key, log_w, num_draws=7, normalize=False).score) * 7
    np.testing.assert_allclose(draws, np.round(draws), atol=1e-5)
    np.testing.assert_allclose(draws.sum(-1), 7, rtol=1e-6)


def test_plug_in_at_q_0_is_the_weight_and_at_q_1_the_self_normalised_weight():
    log_w = random_log_w(4, (8,))
    w = np.exp(log_w)
    np.testing.assert_allclose(objectives.rb_reinforce(log_w).score, w / 8, rtol=1e-6)
    np.testing.assert_allclose(objectives.iwae(log_w, normalize=False).path, w / w.sum(), rtol=1e-6)


def test_normalize_multiplies_by_m_to_the_minus_q():
    log_w = random_log_w(4, (16,))
    for q in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(
            garl(log_w, q).score, garl(log_w, q, normalize=False).score * 16**-q, rtol=1e-6, atol=1e-9
        )


def test_path_weight_0_leaves_the_score_alone():
    log_w = random_log_w(4, (16,))
    ablated, full = garl(log_w, 0.5, path_weight=0.0), garl(log_w, 0.5)
    np.testing.assert_array_equal(ablated.score, full.score)
    assert not np.any(ablated.path)


@pytest.mark.parametrize("scheme", objectives.RESAMPLING)
def test_resampling_keeps_the_expectation_and_never_draws_what_has_no_weight(scheme):
    log_w = np.array([-0.3, -1.0, -np.inf, -4.0, np.nan, -9.0])
    keys = jax.random.split(jax.random.key(1), 20000)
    with jax.enable_x64(True):
        draw = jit(
            lambda k: objectives.paft(k, np.broadcast_to(log_w, (20000, 6)), 0.3, num_draws=5, resampling=scheme).score
        )
        got = np.asarray(draw(keys))
        want = np.asarray(garl(log_w, 0.3, baseline="none").path)
    assert not got[:, [2, 4]].any()
    error = got.std(0) / 20000**0.5
    seen = error > 0
    assert (np.abs(got.mean(0) - want)[seen] < 4 * error[seen]).all()
    counts = got * 5 / want.sum()
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
    np.testing.assert_allclose(counts.sum(-1), 5, rtol=1e-9)
    expected = 5 * want / want.sum()
    if scheme == "systematic":
        assert (np.abs(counts - expected) < 1 + 1e-9).all()
    if scheme == "residual":
        assert (counts > np.floor(expected) - 1e-9).all()


@pytest.mark.parametrize("scheme", objectives.RESAMPLING)
@pytest.mark.parametrize("short", [0.0, 0.1])
def test_many_draws_are_as_many_as_asked_for(scheme, short):
    """Of 20,000 draws, 255 rollouts expect nearly whole numbers, and the last one expects the rest."""
    expected = np.full(256, 78 - short)
    expected[-1] = 20_000 - expected[:-1].sum()
    log_w, keys = np.log(expected / 20_000).astype(np.float32), jax.random.split(jax.random.key(0), 5)
    found = paft(keys, np.broadcast_to(log_w, (5, 256)), 1.0, num_draws=20_000, resampling=scheme, normalize=False)
    counts = 20_000 * np.asarray(found.score, np.float64)
    np.testing.assert_allclose(counts.sum(-1), 20_000, atol=0.5)


@pytest.mark.parametrize("scheme", ["systematic", "residual"])
def test_equal_weights_leave_no_randomness_to_low_variance_resampling(scheme):
    for m in (3, 32, 49):
        got = paft(jax.random.key(m), np.full(m, -7.3, np.float32), 1.0, resampling=scheme, normalize=False).score
        np.testing.assert_allclose(got, 1 / m, rtol=1e-5)


def test_paft_s_draws_depend_on_the_group_s_key_alone():
    log_w, keys = random_log_w(6, (3, 8)), jax.random.split(jax.random.key(2), 3)
    together = paft(keys, log_w, 0.5)
    for i in range(3):
        np.testing.assert_allclose(together.score[i], paft(keys[i], log_w[i], 0.5).score, rtol=1e-6)
    one_key = paft(jax.random.key(2), np.broadcast_to(log_w[0], (50, 8)), 0.5).score
    assert len(np.unique(np.asarray(one_key), axis=0)) > 10


def test_jackknife_is_m_times_the_whole_less_m_minus_1_times_the_parts():
    log_w, q, m = random_log_w(8, (6,)), 0.7, 6
    w = np.exp(log_w)
    want = np.zeros(m)
    for rollout in range(m):
        direction = np.eye(m)[rollout]  # each rollout's gradient its own dimension
        whole = np.mean(w * direction) / w.mean() ** q
        parts = [np.mean(np.delete(w * direction, j)) / np.delete(w, j).mean() ** q for j in range(m)]
        want[rollout] = m * whole - (m - 1) * np.mean(parts)
    with jax.enable_x64(True):
        got = garl(log_w, q, baseline="none", correction="jackknife", normalize=False)
    np.testing.assert_allclose(got.path, want, rtol=1e-12)


def test_jackknife_with_all_weight_on_one_rollout_is_finite():
    got = garl(np.array([-1.0, -np.inf, -np.inf]), 0.5, correction="jackknife", normalize=False)
    w = math.exp(-1)  # the parts: nothing without rollout 0, twice the mean of (w, 0) without another
    np.testing.assert_allclose(got.path, [3 * (w / 3) ** 0.5 - 2 / 3 * 2 * (w / 2) ** 0.5, 0, 0], rtol=1e-6)


def test_reward_estimators_on_one_correct_answer_of_four():
    rewards = np.array([1.0, 0.0, 0.0, 0.0])
    std = math.sqrt(3) / 4
    for name, want in (
        ("grpo", [0.75 / (std + 1e-4), -0.25 / (std + 1e-4)]),
        ("dr_grpo", [0.75, -0.25]),
        ("rloo", [1.0, -1 / 3]),
        ("maxrl", [3.0, -1.0]),
        ("raft", [1.0, 0.0]),
    ):
        score, path = getattr(objectives, name)(rewards)
        np.testing.assert_allclose(score, np.array([want[0], want[1], want[1], want[1]]) / 4, rtol=1e-6)
        np.testing.assert_array_equal(score, path)
        assert not np.any(getattr(objectives, name)(np.zeros(4)).score)


def test_maxrl_averages_to_the_log_likelihood_gradient_cut_after_m_minus_1_terms():
    m, p = 5, 0.3
    expected = 0.0  # coefficient of ∇p, with ∇ log p(success) = 1/p and ∇ log p(failure) = −1/(1−p)
    for outcome in itertools.product([0, 1], repeat=m):
        r = np.array(outcome, float)
        score = np.asarray(objectives.maxrl(r).score, np.float64)
        expected += p ** r.sum() * (1 - p) ** (m - r.sum()) * (score @ np.where(r, 1 / p, -1 / (1 - p)))
    np.testing.assert_allclose(expected, sum((1 - p) ** (k - 1) for k in range(1, m)), rtol=1e-6)


def test_log_likelihood_reward_is_the_log_weight_less_the_mean_of_the_others():
    log_w = np.array([-1.0, -4.0, -np.inf])
    got = objectives.log_likelihood(log_w)
    np.testing.assert_allclose(got.score, [(-1 + 4) / 3, (-4 + 2.5) / 3, (-4 + 2.5) / 3], rtol=1e-6)
    np.testing.assert_allclose(got.path, [1 / 3, 1 / 3, 0], rtol=1e-6)


def test_diagnostics_of_a_hand_made_batch():
    with np.errstate(divide="ignore"):
        log_w = np.log([[0.8, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    log_w[0, 3] = np.nan
    got = diagnostics(log_w, 1.0)
    assert got["dead_groups"] == 1
    assert got["nan_weights"] == 1
    np.testing.assert_allclose(got["log_p_hat_mean"], (math.log(0.25) + math.log(0.5)) / 2, rtol=1e-6)
    np.testing.assert_allclose(got["effective_sample_size"], (1 / 0.68 + 4) / 2, rtol=1e-6)
    unique = [2 - 0.2**4 - 0.8**4, 4 * (1 - 0.75**4)]
    np.testing.assert_allclose(got["unique_draws"], np.mean(unique), rtol=1e-6)
    # c/M = (w/w̄ − 1)/4: 0.55, −0.05, −0.25, −0.25 in the first group, zero in the others.
    np.testing.assert_allclose(got["max_advantage"], 0.55, rtol=1e-5)
    np.testing.assert_allclose(got["negative_share"], 3 / 12, rtol=1e-6)
    np.testing.assert_allclose(got["negative_mass"], 0.5, rtol=1e-5)
    variance = np.var([0.8, 0.2, 0, 0], ddof=1)
    np.testing.assert_allclose(got["leading_bias"], variance / (4 * 0.25**2) / 2, rtol=1e-5)


@pytest.mark.parametrize("q", [0.0, 0.25, 1.0])
def test_the_part_of_negative_coefficients_does_not_depend_on_how_small_all_weights_are(q):
    log_w = np.random.default_rng(0).normal(0, 2, (6, 8))
    near, far = diagnostics(log_w, q), diagnostics(log_w - 300, q)
    w = np.exp(log_w)
    mean, without = w.mean(1, keepdims=True), (w.sum(1, keepdims=True) - w) / 7
    centred = w / mean**q - without ** (1 - q)
    mass = -centred[centred < 0].sum() / np.abs(centred).sum()
    for found in (near, far):
        np.testing.assert_allclose(found["negative_share"], (centred < 0).mean(), rtol=1e-6)
        np.testing.assert_allclose(found["negative_mass"], mass, rtol=1e-4)


@pytest.mark.parametrize(("commitment", "bound"), [("floor", 16.0), ("mixture", 17.0)])
def test_the_largest_advantage_of_floor_and_mixture_is_that_of_one_right_rollout(commitment, bound):
    """M f(1/M) for M = 32 and τ = 0.5: where one rollout has w = 1 and the others have none."""
    log_w = np.full((1, 32), -np.inf)
    log_w[0, 0] = 0.0
    found = objectives.diagnostics(log_w, 0.0, commitment=commitment, tau=0.5)
    np.testing.assert_allclose(found["max_advantage"], bound, rtol=1e-6)


def test_a_batch_without_weight_has_no_log_p_hat_and_else_finite_diagnostics():
    got = diagnostics(np.full((3, 4), -np.inf), 0.5)
    assert got["dead_groups"] == 3
    assert {name for name, value in got.items() if not np.isfinite(value)} == {
        f"log_p_hat_{name}" for name in ("mean", "p10", "median", "p90")
    }


def test_below_eps_counts_the_parameters_that_adam_sees_as_without_gradient():
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3), b2=0.9, eps=1e-8)
    )
    params = {"a": jnp.ones(3), "b": jnp.ones((1, 1))}
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update({"a": jnp.array([1e-9, 1e-7, 0.0]), "b": jnp.full((1, 1), 2e-8)}, state, params)
    assert objectives.below_eps(state, b2=0.9, eps=1e-8) == 0.5
    assert objectives.below_eps(state, b2=0.9, eps=1e-10) == 0.25
