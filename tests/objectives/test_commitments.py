"""Commitments f(P): their losses and properties, and GARL and PAFT with them, compared with float64 Python."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsallis_rl import objectives
from tsallis_rl.objectives.commitments import Commitment, make_commitment
from tsallis_rl.runs.errors import UserError

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
garl = jit(objectives.garl, static_argnames=("commitment", "baseline", "correction", "normalize"))
paft = jit(objectives.paft, static_argnames=("commitment", "num_draws", "resampling", "normalize"))
value_and_slope = {
    name: jit(jax.vmap(jax.value_and_grad(loss), (0, None)))
    for name, loss in (("floor", objectives.floor_loss), ("mixture", objectives.mixture_loss))
}
NATS = [0.0, 1.0, 3.0, 5.0, 20.0, 60.0]  # −log τ
LOG_P = [-1e4, -61.0, -30.0, -19.5, -17.5, -12.0, -5.0, -3.0, -2.99, -0.5, -1e-6, 0.0]

Weight = Callable[[float], float]  # log f of log P, in Python


def log_weight(name: str, log_tau: float) -> Weight:
    """log max(P, τ) or log (P + τ), of P > 0."""
    if name == "floor":
        return lambda log_p: max(log_p, log_tau)
    return lambda log_p: max(log_p, log_tau) + math.log1p(math.exp(-abs(log_p - log_tau)))


def log_mean(values: list[float]) -> float:
    top = max(values, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(v - top) for v in values) / len(values))


def reference(log_w: np.ndarray, log_f: Weight, baseline: str) -> tuple[np.ndarray, np.ndarray]:
    """docs/method.md §8 for one group, a rollout at a time; f(0) is 0."""
    values = [float(v) if v == v else -math.inf for v in log_w]
    m = len(values)
    score, path = np.zeros(m), np.zeros(m)
    log_p = log_mean(values)
    if log_p == -math.inf:
        return score, path
    for i, value in enumerate(values):
        path[i] = math.exp(value + log_f(log_p) - log_p) / m
        others = log_mean(values[:i] + values[i + 1 :])
        score[i] = path[i] - (math.exp(log_f(others)) / m if baseline == "loo" and others > -math.inf else 0.0)
    return score, path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["floor", "mixture"])
def test_the_gradient_of_the_loss_is_minus_f(name, dtype):
    with jax.enable_x64(dtype == np.float64):
        for nats in NATS:
            tau = dtype(math.exp(-nats))
            value, slopes = value_and_slope[name](np.array(LOG_P, dtype), tau)
            log_f = log_weight(name, math.log(float(tau)))
            want = [-math.exp(log_f(float(dtype(x)))) for x in LOG_P]
            np.testing.assert_allclose(slopes, want, rtol=40 * np.finfo(dtype).eps)
            assert value.dtype == slopes.dtype == dtype


def test_losses_are_those_of_the_formulas():
    with jax.enable_x64(True):
        for nats in NATS:
            tau = math.exp(-nats)
            for log_p, floor, mixture in zip(
                LOG_P, *(value_and_slope[name](np.array(LOG_P), tau)[0] for name in value_and_slope), strict=True
            ):
                p = math.exp(log_p)
                below = 1 - tau + tau * (math.log(tau) - log_p)
                np.testing.assert_allclose(floor, -math.expm1(log_p) if p >= tau else below, rtol=1e-13, atol=1e-30)
                np.testing.assert_allclose(mixture, -math.expm1(log_p) - tau * log_p, rtol=1e-13, atol=1e-30)


def test_at_tau_1_the_floor_s_loss_is_minus_log_p_and_at_tau_it_joins_its_parts():
    log_p = np.array(LOG_P, np.float32)
    np.testing.assert_allclose(value_and_slope["floor"](log_p, 1.0)[0], -log_p, rtol=1e-6)
    with jax.enable_x64(True):
        tau = 0.05
        at = math.log(tau) + np.array([-1e-7, 0.0, 1e-7])
        value, slopes = value_and_slope["floor"](at, tau)
        np.testing.assert_allclose(value, 1 - tau - tau * np.array([-1e-7, 0.0, 1e-7]), rtol=1e-13)
        np.testing.assert_allclose(slopes, -tau, rtol=2e-7)


@pytest.mark.parametrize("name", ["floor", "mixture"])
def test_an_impossible_answer_has_infinite_loss_and_a_slope_of_tau_and_a_sure_one_no_loss(name):
    value, slopes = value_and_slope[name](np.array([-np.inf, 0.0], np.float32), 0.05)
    np.testing.assert_array_equal(value, [np.inf, 0.0])
    np.testing.assert_allclose(slopes, [-0.05, -1.0 if name == "floor" else -1.05], rtol=1e-6)


COMMITMENTS = {
    "power": [("power", 0.0), ("power", 0.3), ("power", 1.0)],
    "floor": [("floor", math.exp(-3)), ("floor", 1.0)],
    "mixture": [("mixture", math.exp(-3)), ("mixture", 1.0)],
}
CASES = [case for cases in COMMITMENTS.values() for case in cases]


def make(name: str, number: float) -> Commitment:
    return make_commitment(name, **({"q": number} if name == "power" else {"tau": number}))


@pytest.mark.parametrize(("name", "number"), CASES)
def test_local_q_and_curvature_are_derivatives_of_f(name, number):
    with jax.enable_x64(True):
        f = make(name, number)
        for log_p in (-8.0, -3.5, -2.5, -0.7):
            step = 1e-4
            logs = np.asarray(f.log_weight(jnp.array([log_p - step, log_p, log_p + step])))
            np.testing.assert_allclose(f.local_q(jnp.array(log_p)), 1 - (logs[2] - logs[0]) / (2 * step), atol=1e-7)
            p = math.exp(log_p)
            at = p * np.array([1 - step, 1.0, 1 + step])
            h = np.exp(np.asarray(f.log_weight(jnp.log(at)))) / at
            curvature = (h[2] - 2 * h[1] + h[0]) / step**2 / (2 * h[1])
            np.testing.assert_allclose(f.curvature(jnp.array(log_p)), curvature, atol=1e-6)
            slope = jax.grad(lambda x, f=f: f.loss(x))(log_p)
            np.testing.assert_allclose(slope, -np.exp(logs[1]), rtol=1e-12)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_the_ratio_is_f_of_the_product_over_f_of_the_factor_and_keeps_its_digits_far_below(name, number):
    f = make(name, number)
    log_u = jnp.array([0.0, -1e-3, -4.0, -90.0, -jnp.inf])
    for log_s in (0.0, -2.0, -5.0, -1e4):
        if name == "power":
            want = (1 - number) * np.float64(log_u[:-1])
        else:
            log_f = log_weight(name, math.log(number))
            want = [log_f(log_s + float(u)) - log_f(log_s) for u in log_u[:-1]]
        found = f.log_ratio(log_u, jnp.full(5, log_s))
        np.testing.assert_allclose(found[:-1], want, rtol=2e-6, atol=5e-7)
        assert found[-1] == -jnp.inf
    assert f.log_weight(jnp.array([-jnp.inf]))[0] == -jnp.inf


@pytest.mark.parametrize("baseline", ["loo", "none"])
@pytest.mark.parametrize("name", ["floor", "mixture"])
@pytest.mark.parametrize("nats", NATS)
def test_garl_equals_the_reference_in_float64(name, nats, baseline):
    log_w = -20.0 * np.random.default_rng(0).random((5, 6))
    log_w[1, 2], log_w[2, :5], log_w[3], log_w[4] = np.nan, -np.inf, -np.inf, log_w[4] / 20
    with jax.enable_x64(True):
        got = garl(log_w, 0.3, commitment=name, tau=math.exp(-nats), baseline=baseline)
    for i, row in enumerate(log_w):
        score, path = reference(row, log_weight(name, -nats), baseline)
        np.testing.assert_allclose(got.score[i], score, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(got.path[i], path, rtol=1e-12, atol=1e-15)


weights = st.one_of(st.floats(-1e4, 0, width=32), st.floats(-20, 0, width=32), st.just(-math.inf), st.just(math.nan))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([2, 32]), st.sampled_from(["floor", "mixture"]), st.sampled_from(NATS))
def test_float32_coefficients_are_finite_and_keep_five_digits_of_the_group_s_largest(data, m, name, nats):
    log_w = np.array(data.draw(st.lists(weights, min_size=m, max_size=m)), np.float32)
    tau = np.float32(math.exp(-nats))
    got = garl(log_w, 0.0, commitment=name, tau=tau)
    drawn = paft(jax.random.key(0), log_w, 0.0, commitment=name, tau=tau)
    score, path = reference(log_w, log_weight(name, math.log(float(tau))), "loo")
    size = max(np.abs(path).max(), np.abs(path - score).max())
    assert np.isfinite(np.array([*got, *drawn])).all()
    np.testing.assert_allclose(got.score, score, atol=3e-5 * size + 1e-37, rtol=0)
    np.testing.assert_allclose(got.path, path, atol=3e-5 * size + 1e-37, rtol=0)
    np.testing.assert_allclose(drawn.score.sum(), path.sum(), rtol=3e-5, atol=1e-37)


@pytest.mark.parametrize("name", ["floor", "mixture"])
@pytest.mark.parametrize("nats", [3.0, 60.0])
def test_groups_near_minus_10000_keep_five_digits(name, nats):
    log_w = (-30.0 * np.random.default_rng(3).random(32) - 9970).astype(np.float32)
    tau = np.float32(math.exp(-nats))
    got = garl(log_w, 0.0, commitment=name, tau=tau)
    score, path = reference(log_w, log_weight(name, math.log(float(tau))), "loo")
    np.testing.assert_allclose(got.score, score, atol=1e-5 * path.max(), rtol=0)
    np.testing.assert_allclose(got.path, path, atol=1e-5 * path.max(), rtol=0)
    np.testing.assert_allclose(path.sum(), float(tau), rtol=1e-6)  # τ, shared out by weight


@pytest.mark.parametrize("name", ["floor", "mixture"])
def test_paft_shares_f_of_the_mean_out_by_draws(name):
    log_w = np.array([[-0.3, -1.0, -np.inf, -4.0], [-50.0, -51.0, -52.0, np.nan], [-np.inf] * 4], np.float32)
    got = paft(jax.random.key(1), log_w, 0.3, commitment=name, tau=0.05, num_draws=7)
    np.testing.assert_array_equal(got.score, got.path)
    for score, row in zip(np.asarray(got.score), log_w, strict=True):
        total = reference(row, log_weight(name, math.log(0.05)), "none")[1].sum()
        counts = score / total * 7 if total else score
        np.testing.assert_allclose(counts, np.round(counts), atol=1e-4)
        np.testing.assert_allclose(counts.sum(), 7 if total else 0, rtol=1e-5)
        assert not counts[~np.isfinite(row)].any()


def test_jackknife_is_m_times_the_whole_less_m_minus_1_times_the_parts():
    w, m = np.array([0.9, 0.02, 0.004, 0.2, 0.03]), 5
    for name in ("floor", "mixture"):
        log_f = log_weight(name, math.log(0.2))  # between the means without one rollout

        def h(p: float, log_f: Weight = log_f) -> float:
            return math.exp(log_f(math.log(p))) / p

        parts = [sum(h(np.delete(w, j).mean()) for j in range(m) if j != i) for i in range(m)]
        want = w * (m * h(w.mean()) - np.array(parts)) / m
        with jax.enable_x64(True):
            got = garl(np.log(w), 0.0, commitment=name, tau=0.2, baseline="none", correction="jackknife")
        np.testing.assert_allclose(got.path, want, rtol=1e-12)


def test_the_power_is_the_old_formula_and_normalises_alone():
    log_w, q = -3.0 * np.random.default_rng(1).random((2, 8)), 0.7
    w = np.exp(log_w)
    with jax.enable_x64(True):
        got = garl(log_w, q, commitment="power", tau=0.05)
        mean = w.mean(-1, keepdims=True)
        others = (8 * mean - w) / 7
        np.testing.assert_allclose(got.path, w * mean**-q / 8 / 8**q, rtol=1e-12)
        np.testing.assert_allclose(got.score, (w * mean**-q - others ** (1 - q)) / 8 / 8**q, rtol=1e-11, atol=1e-14)
        for name in ("floor", "mixture"):
            one, other = (garl(log_w, q, commitment=name, tau=0.05, normalize=n) for n in (True, False))
            np.testing.assert_array_equal(one.score, other.score)
        np.testing.assert_allclose(
            garl(log_w, q, commitment="floor", tau=1.0).path, garl(log_w, 1.0, normalize=False).path
        )


def test_tau_is_traced_and_an_unknown_commitment_is_a_sentence():
    log_w, traces = -np.ones((2, 4), np.float32), []

    @jax.jit
    def compiled(tau: jax.Array) -> jax.Array:
        traces.append(tau)
        return objectives.garl(log_w, 0.0, commitment="floor", tau=tau).path

    np.testing.assert_allclose(compiled(0.5), 0.5 / 4, rtol=1e-6)
    np.testing.assert_allclose(compiled(0.05), math.exp(-1) / 4, rtol=1e-6)
    assert len(traces) == 1
    with pytest.raises(ValueError, match=r"tau has shape \(3,\): expected a scalar, or .* one tau a group"):
        objectives.garl(log_w, 0.0, commitment="floor", tau=np.full(3, 0.1))
    with pytest.raises(UserError, match=r"commitment.*flor.*power, floor, mixture"):
        objectives.garl(log_w, 0.0, commitment="flor")
