"""Propositions of docs/method.md §8 on the floor and the mixture, compared with references that share no code."""

import jax
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from tsallis_rl.laboratory import commitments, floors, gradients
from tsallis_rl.laboratory.flows import escape_times, minimiser
from tsallis_rl.laboratory.policy import (
    Policy,
    exact_gradient,
    from_probabilities,
    gold_atoms,
    leading_bias,
    rare,
    success_probability,
)
from tsallis_rl.laboratory.pools import make_pools, moments
from tsallis_rl.objectives import ESTIMATORS, floor_loss, mixture_loss, paft, tsallis_loss

LOSSES = {"floor": floor_loss, "mixture": mixture_loss}
MAKE = {"floor": commitments.floor, "mixture": commitments.mixture}
GARL = ESTIMATORS["garl"]
COLD, RATE, C = np.exp(-41), 0.2, 0.0125  # start, wrong share, and a contamination, that of τ = 0.05


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def zero_weight_policy() -> Policy:
    """One rationale that half succeeds, one that rarely does, one after which the gold answer is impossible."""
    with np.errstate(divide="ignore"):
        return from_probabilities([0.1, 0.5, 0.4], [0.6, 0.02, 0.0])


def exact_escape_time(name: str, tau: float, p0: float) -> float:
    """∫_{p0}^{1/2} du/(f(u) u (1−u)²) by partial fractions."""

    def below(u: float) -> float:  # of 1/(u (1−u)²)
        return np.log(u / (1 - u)) + 1 / (1 - u)

    def above(u: float) -> float:  # of 1/(u² (1−u)²)
        return 2 * np.log(u / (1 - u)) - 1 / u + 1 / (1 - u)

    def mixed(u: float) -> float:  # of 1/((u+τ) u (1−u)²)
        square = (1 + tau) ** 2
        return (
            np.log(u) / tau - np.log(u + tau) / (tau * square) - (2 + tau) / square * np.log1p(-u)
            + 1 / ((1 + tau) * (1 - u))
        )  # fmt: skip

    if name == "mixture":
        return mixed(0.5) - mixed(p0)
    if p0 >= tau:
        return above(0.5) - above(p0)
    return (below(tau) - below(p0)) / tau + above(0.5) - above(tau)


@pytest.mark.parametrize("name", LOSSES)
def test_the_flow_of_the_loss_escapes_in_the_time_of_the_sigmoid_integral(name):
    taus, starts = np.exp([-3.0, -5.0]), np.exp(-np.array([41.0, 18.0, 6.0, 2.3]))
    times = escape_times(*np.meshgrid(taus, starts, indexing="ij"), 0.5, loss_of=LOSSES[name], steps=1000)
    exact = [[exact_escape_time(name, tau, p0) for p0 in starts] for tau in taus]
    np.testing.assert_allclose(times, exact, rtol=2e-5)
    found = [[commitments.escape_time(MAKE[name](tau), p0) for p0 in starts] for tau in taus]
    np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_the_escape_time_is_logarithmic_in_the_start_with_a_rest_that_depends_on_tau_alone():
    for tau in np.exp([-2.0, -3.0, -5.0, -8.0]):
        for p0 in np.exp(-np.array([41.0, 18.0, 10.0])):
            if p0 < tau:
                rest = exact_escape_time("floor", tau, p0) - (1 + np.log(tau / p0)) / tau
                assert 2 * np.log(1 / tau) < rest < 2 * np.log(1 / tau) + 1
                rest = exact_escape_time("mixture", tau, p0) - np.log(1 + tau / p0) / tau
                assert 0 < rest < 2 * np.log(1 / tau)
        for name in LOSSES:
            later, sooner = (exact_escape_time(name, tau, np.exp(-nats)) for nats in (40.0, 39.0))
            np.testing.assert_allclose(later - sooner, 1 / tau, rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("rate", "tau"), [(0.01, 0.003), (0.2, 0.05), (0.45, 0.3), (0.2, 0.9), (0.3, 1.0)])
def test_contamination_of_two_labels_has_one_rest_point_and_this_formula(name, rate, tau):
    slope = jax.jit(jax.vmap(jax.grad(lambda p: LOSSES[name](jax.numpy.log(p), tau))))
    c = np.concatenate([np.geomspace(1e-12, 0.5, 3000), 1 - np.geomspace(0.5, 1e-12, 3000)[1:]])
    falls = np.asarray(rate * slope(c) - (1 - rate) * slope(1 - c)) > 0  # the loss's, in c
    assert not falls[0]
    assert falls[-1]
    turns = np.flatnonzero(falls[1:] != falls[:-1])
    assert len(turns) == 1
    if name == "floor":  # τ ε/(1−ε) while τ ≤ 1 − ε, beyond it the data's ε
        want = tau * rate / (1 - rate) if tau <= 1 - rate else rate
        np.testing.assert_allclose(commitments.floor_rest(tau, rate), want, rtol=1e-14)
    else:
        want = commitments.mixture_rest(tau, rate)
        assert tau * rate / (1 - rate + tau) < want < tau * rate / (1 - 2 * rate + tau * rate)
    assert c[turns[0]] <= want * (1 + 1e-12)
    assert want * (1 - 1e-12) <= c[turns[0] + 1]
    (found,) = commitments.rest_points(MAKE[name](tau), rate)
    np.testing.assert_allclose(found, want, rtol=1e-12)


def test_many_wrong_labels_leave_the_floor_s_contamination_and_lower_a_power_s_as_k_to_the_1_minus_1_over_q():
    for labels in (1, 7, 1000):
        found = commitments.rest(commitments.floor(0.05), RATE, labels)
        np.testing.assert_allclose(found, 0.05 * RATE / (1 - RATE), rtol=1e-12)
        found = commitments.rest(commitments.mixture(0.05), RATE, labels)
        np.testing.assert_allclose(found, commitments.mixture_rest(0.05, RATE, labels), rtol=1e-12)
    for q in (0.25, 0.5, 0.75):
        one, many = (commitments.rest(commitments.power(q), RATE, labels) for labels in (1, 100))
        np.testing.assert_allclose(many / (1 - many) / (one / (1 - one)), 100 ** (1 - 1 / q), rtol=1e-10)
        np.testing.assert_allclose(commitments.power_rest(q, RATE, 100), many, rtol=1e-12)
    # So a power with many wrong labels can have the lower contamination, and near τ escapes no later.
    assert commitments.power_rest(0.5, RATE, 10) < commitments.floor_rest(0.05, RATE)
    assert exact_escape_time("floor", 0.05, 0.02) > commitments.escape_time(commitments.power(0.5), 0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_the_minimiser_lies_between_the_data_and_their_mode(name):
    alpha, taus = np.array([0.15, 0.45, 0.1, 0.3]), np.array([0.001, 0.05, 0.4, 0.45, 0.6, 1.0])
    newton = jax.jit(
        jax.vmap(lambda tau: minimiser(jax.numpy.array(alpha), tau, LOSSES[name])),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    for tau, found in zip(taus, np.asarray(newton(taus)), strict=True):
        np.testing.assert_allclose(found, floors.minimum(name, alpha, tau), atol=1e-11)
        pulls = alpha * MAKE[name](tau).amplification(found)  # equal at a minimum of a convex loss on the simplex
        np.testing.assert_allclose(pulls, pulls[0], rtol=1e-8)
        if name == "floor":
            mixed = min(tau / 0.45, 1.0) * alpha + max(1 - tau / 0.45, 0.0) * np.eye(4)[1]
            np.testing.assert_allclose(found, mixed, atol=1e-11)


def test_no_nondecreasing_step_function_escapes_sooner_than_the_bound():
    """The best of all step functions is a linear programme in 1/f: it ends at the formula, which the bound is below."""
    bound = commitments.least_escape_time(C, RATE, COLD)
    half = np.concatenate([np.geomspace(COLD, C, 20), np.geomspace(C, 0.5, 120)[1:]])
    n = len(half) - 1
    slowness = np.diff(np.log(half / (1 - half)) + 1 / (1 - half))
    falls = np.zeros((n, n + n))  # 1/f(1−c) ≤ (1−ε)/ε c/(1−c) 1/f(c) at the left end of every step above c
    for i in np.flatnonzero(half[:-1] > C * (1 - 1e-12)):
        falls[i, 2 * n - 1 - i], falls[i, i] = 1.0, -(1 - RATE) / RATE * half[i] / (1 - half[i])
    rises = np.eye(2 * n)[1:] - np.eye(2 * n)[:-1]  # 1/f does not rise
    found = scipy.optimize.linprog(
        np.concatenate([slowness, np.zeros(n)]),
        A_ub=np.concatenate([falls, rises]),
        b_ub=np.zeros(3 * n - 1),
        bounds=(1, None),
    )
    fastest = commitments.escape_time(commitments.fastest(C, RATE), COLD)
    np.testing.assert_allclose(found.fun, fastest, rtol=3e-3)
    assert bound < found.fun
    np.testing.assert_allclose(commitments.rest(commitments.fastest(C, RATE), RATE), C, rtol=2e-3)
    # The floor is level with it but for ln((1−ε)/ε) + c ln(c/p0), and a power of the same contamination by no factor
    # near 1.
    floor = exact_escape_time("floor", 0.05, COLD)
    assert bound < fastest < floor < fastest + (np.log(4) + C * np.log(C / COLD)) / 0.05 + 2 * np.log(20) + 1
    q = floors.power_at(C, RATE)
    np.testing.assert_allclose(commitments.rest(commitments.power(q), RATE), C, rtol=1e-10)
    assert commitments.escape_time(commitments.power(q), COLD) > 1e9 * floor


def test_the_bound_holds_for_random_nondecreasing_f_and_for_the_named_ones():
    rng, edges = np.random.default_rng(0), np.geomspace(COLD, 1.0, 41)
    tried = [commitments.power(q) for q in (0.2, 0.5, 0.8)]
    tried += [make(tau) for make in MAKE.values() for tau in (0.001, 0.05, 0.5)]
    for _ in range(40):
        logs = np.sort(-rng.exponential(rng.choice([0.3, 2.0, 8.0]), 40))
        tried.append(commitments.steps(edges, np.exp(logs - logs[-1])))
    for f in tried:
        for labels in (1, 1000):
            c = commitments.rest(f, RATE, labels)
            if c > np.e * labels * COLD:
                bound = commitments.least_escape_time(c, RATE, COLD, labels)
                assert f.of(1.0) * commitments.escape_time(f, COLD) > bound


def test_the_bound_needs_an_undecided_start_and_an_f_of_p_alone():
    """A step that wrong labels start below and right ones above, and a switch from q = 1 to q = 0, are both faster."""
    step = commitments.steps(np.array([1e-30, 1e-19, 1.0]), np.array([1e-19, 1.0]))
    low, _, high = commitments.rest_points(step, RATE)
    np.testing.assert_allclose([low, high], [1e-19 * RATE / (1 - RATE), RATE], rtol=1e-6)
    assert commitments.escape_time(step, COLD) < 0.1 * commitments.least_escape_time(C, RATE, COLD)
    found = scipy.integrate.solve_ivp(
        lambda _, c: c**2 * (1 - c) ** 2 * (2 * RATE - 1), (0, 1e4), [RATE], rtol=1e-10, atol=1e-14,
        events=lambda _, c: c[0] - C,
    )  # fmt: skip
    time = found.t_events[0][0] + exact_escape_time("mixture", 1e12, COLD) * 1e12
    np.testing.assert_allclose(commitments.schedule_time(C, RATE, COLD), time, rtol=1e-6)
    assert time < 0.3 * commitments.least_escape_time(C, RATE, COLD)


def test_wrong_labels_are_learnt_in_the_time_of_an_escape_over_their_share_whatever_f():
    """dc/dt = ε c f(c) and dP/dt = P f(P) while both are small."""
    for f in (commitments.floor(0.05), commitments.mixture(0.05), commitments.power(0.3)):
        c = 1e-9
        rising = c**2 * (1 - c) ** 2 * commitments.pull(f, c, RATE)
        np.testing.assert_allclose(rising, RATE * c * f.of(c), rtol=0.01)


def test_an_f_that_may_fall_beats_the_bound_for_one_wrong_label_and_learns_a_hundred_whole():
    rising = commitments.fastest(C, RATE)
    f = rising._replace(function=lambda p: np.where(p < C, 1.0, rising.of(p)))
    bound = commitments.least_escape_time(C, RATE, COLD)
    np.testing.assert_allclose(commitments.rest(f, RATE), C, rtol=1e-6)
    assert commitments.escape_time(f, COLD) < 0.1 * bound
    np.testing.assert_allclose(commitments.rest(f, RATE, 100), RATE, rtol=2e-3)
    # A search finds the like, and without leave to fall nothing below the bound.
    found = {rises: floors.search(C, RATE, COLD, monotone=rises, proposals=4000) for rises in (True, False)}
    assert all(commitments.rest(g, RATE) <= C * (1 + 1e-9) for g in found.values())
    assert (
        commitments.escape_time(found[False], COLD) < 0.5 * bound < bound < commitments.escape_time(found[True], COLD)
    )


def test_whatever_the_number_of_wrong_labels_no_f_escapes_sooner_than_the_bound():
    """The largest f that keeps contamination at c for every number K of wrong labels, rising or not."""
    start = 1e-4

    def largest(p: np.ndarray) -> np.ndarray:
        labels = np.ceil(C / p * (1 - 1e-12))
        together = np.minimum(labels * p, 0.999999)
        return np.where(p < 0.5, np.minimum(1.0, 0.999 * (1 - RATE) / RATE * together / (1 - together)), 1.0)

    f = commitments.Commitment(largest, (*(C / np.arange(1, int(C / start) + 1)), RATE))
    assert (np.diff(largest(np.geomspace(start, C, 10000))) < 0).any()
    for labels in (1, 2, 3, 10, 100, 124):
        assert commitments.rest(f, RATE, labels) < C * (1 + 1e-9)
    time = commitments.escape_time(f, start)
    tau = C * (1 - RATE) / RATE
    assert (1 - 2 * C) * np.log(C / start) / tau < time < commitments.escape_time(commitments.fastest(C, RATE), start)


def test_the_fastest_f_knows_the_share_of_wrong_labels_and_the_floor_need_not():
    f = commitments.fastest(C, RATE)
    for rate, learnt in ((0.19, C), (0.21, 0.21), (0.25, 0.25)):
        np.testing.assert_allclose(commitments.rest(f, rate), learnt, rtol=0.07)
        np.testing.assert_allclose(
            commitments.rest(commitments.floor(0.05), rate), 0.05 * rate / (1 - rate), rtol=1e-10
        )


def followed(name: str, tau: float, **options: str) -> dict[str, object]:
    return {"commitment": name, "tau": tau, "baseline": "none", **options}


@pytest.mark.parametrize(("name", "tau"), [("floor", 0.6), ("floor", 0.02), ("mixture", 0.1)])
def test_m_times_the_plug_in_bias_tends_to_the_leading_term_of_f(name, tau):
    policy = rare(0.4)  # P = 0.37: below a floor of 0.6, above one of 0.02
    f = MAKE[name](tau)
    near, far = (
        m * (moments(policy, GARL, followed(name, tau), q=0.0, m=m, target=f).mean - exact_gradient(policy, f))
        for m in (16, 32)
    )
    want = leading_bias(policy, f)
    below = tau if name == "mixture" or tau > success_probability(policy) else 0.0
    np.testing.assert_allclose(want, below * leading_bias(policy, 1.0), atol=1e-6)
    np.testing.assert_allclose(2 * far - near, want, atol=0.08 * np.linalg.norm(leading_bias(policy, 1.0)))


@pytest.mark.parametrize("m", [2, 6])
def test_the_mixture_s_bias_is_tau_times_that_of_q_1_at_every_m(zero_weight_policy, m):
    policy, tau = zero_weight_policy, 0.03
    f = commitments.mixture(tau)
    np.testing.assert_allclose(
        exact_gradient(policy, f), exact_gradient(policy, 0.0) + tau * exact_gradient(policy, 1.0), rtol=1e-12
    )
    bias = moments(policy, GARL, followed("mixture", tau), q=0.0, m=m, target=f).mean - exact_gradient(policy, f)
    iwae = moments(policy, GARL, gradients.PLUG_IN, q=1.0, m=m, target=1.0).mean - exact_gradient(policy, 1.0)
    np.testing.assert_allclose(bias, tau * iwae, atol=1e-15)


def test_at_tau_the_floor_s_bias_is_of_order_1_over_root_m_and_the_jackknife_leaves_that_order():
    policy = gradients.two_rationales(0.3)
    tau = success_probability(policy)
    f, truth = commitments.floor(tau), exact_gradient(policy, commitments.floor(tau))
    bias = {m: gradients.plug_in_bias(policy, f, m) @ truth / (truth @ truth) for m in range(1000, 1100)}
    atoms = gold_atoms(policy)
    deviation = (atoms.probability @ (np.exp(atoms.log_w) - tau) ** 2) ** 0.5
    want = deviation / tau * scipy.stats.norm.pdf(0)
    np.testing.assert_allclose(bias[1024] * 1024**0.5, want, rtol=0.01)
    corrected = [(m * bias[m] - (m - 1) * bias[m - 1]) * m**0.5 for m in range(1001, 1100)]
    np.testing.assert_allclose(np.mean(corrected), want / 2, rtol=0.05)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("correction", ["none", "jackknife"])
def test_leave_one_out_has_the_plug_in_s_expectation_where_weights_are_0_too(zero_weight_policy, name, correction):
    tau = 0.07  # pools of five have P̂ on both sides of it
    f = MAKE[name](tau)
    plug, loo = (
        moments(zero_weight_policy, GARL, followed(name, tau, baseline=b, correction=correction), q=0.0, m=5, target=f)
        for b in ("none", "loo")
    )
    assert plug.exact
    np.testing.assert_allclose(loo.mean, plug.mean, atol=1e-12 * np.linalg.norm(plug.mean))


@pytest.mark.parametrize("name", ["floor", "mixture"])
def test_given_the_pool_paft_averages_to_the_plug_in(zero_weight_policy, name):
    atoms = gold_atoms(zero_weight_policy)
    log_w = atoms.log_w[make_pools(atoms, 4, draws=1, rng=np.random.default_rng(0)).index]
    w = np.exp(log_w)
    mean = np.maximum(w.mean(-1, keepdims=True), 1e-300)
    draw = jax.jit(
        lambda groups: paft(jax.random.key(0), groups, 0.0, commitment=name, tau=0.05, num_draws=3).score,
        compiler_options={"xla_backend_optimization_level": 0},
    )
    drawn = np.asarray(draw(np.repeat(log_w[None], 4000, 0)))
    want = MAKE[name](0.05).amplification(mean) * w / 4
    np.testing.assert_allclose(drawn.sum(-1), np.broadcast_to(want.sum(-1), drawn.shape[:2]), rtol=1e-12)
    error = drawn.std(0) / 4000**0.5
    assert (abs(drawn.mean(0) - want) <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize(("b2", "expected"), [(0.95, [408, 408, 408, 365]), (0.999, [401, 392, 415, 203])])
def test_under_adam_an_example_alone_escapes_at_about_the_same_step_whatever_f_while_f_is_above_eps(b2, expected):
    """From P = e^−41 by steps of 0.1, the loss of each commitment on a parameter of its own."""
    losses = [(floor_loss, 0.05), (mixture_loss, 0.05), (tsallis_loss, 1.0), (tsallis_loss, 0.75), (tsallis_loss, 0.3)]
    adam = optax.adam(0.1, b2=b2, eps=1e-8)

    def total(theta: jax.Array) -> jax.Array:
        return sum(loss(jax.nn.log_sigmoid(x), number) for x, (loss, number) in zip(theta, losses, strict=True))

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        theta, state = carry
        updates, state = adam.update(jax.grad(total)(theta), state)
        return (theta + updates, state), theta

    start = jax.numpy.full(len(losses), -41.0)
    run = jax.jit(
        lambda: jax.lax.scan(step, (start, adam.init(start)), length=1000)[1],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    below = (np.asarray(run()) < 0).sum(0)
    np.testing.assert_allclose(below[:4], expected, rtol=0.01)  # 41 nats in steps of 0.1 are 410
    assert below[4] == 1000  # P^0.7 = 3e-13
