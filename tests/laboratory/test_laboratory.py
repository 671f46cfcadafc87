"""Facts of docs/method.md §2 and §3, checked on a policy that can be enumerated."""

import csv
import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special

from tests.support.command_line import refused
from tsallis_rl.laboratory import commitments, flows, gradients
from tsallis_rl.laboratory.__main__ import main as laboratory
from tsallis_rl.laboratory.policy import (
    Policy,
    exact_gradient,
    gold_atoms,
    leading_bias,
    rare,
    sampled_atoms,
    success_probability,
    unlikely,
)
from tsallis_rl.laboratory.pools import make_pools, moments
from tsallis_rl.laboratory.targets import TARGETS
from tsallis_rl.objectives import ESTIMATORS, RESAMPLING, tsallis_loss

GARL, PAFT = ESTIMATORS["garl"], ESTIMATORS["paft"]
PLUG_IN, LOO, JACKKNIFE = gradients.PLUG_IN, gradients.LOO, gradients.JACKKNIFE
QS = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("q", QS)
def test_the_exact_gradient_is_the_derivative_of_the_loss(q):
    policy = rare(0.1)
    start = np.concatenate([policy.rationale, policy.answer.ravel()])

    def loss(logits: np.ndarray) -> float:
        p = success_probability(Policy(logits[:3], logits[3:].reshape(3, 2)))
        return -np.log(p) if q == 1 else (1 - p ** (1 - q)) / (1 - q)

    numeric = [(loss(start + 1e-6 * d) - loss(start - 1e-6 * d)) / 2e-6 for d in np.eye(9)]
    np.testing.assert_allclose(exact_gradient(policy, q), numeric, atol=1e-8)


@pytest.mark.parametrize("q", QS)
def test_every_member_has_the_same_direction_amplified_by_p_to_the_minus_q(q):
    policy = rare(0.02)
    p = success_probability(policy)
    np.testing.assert_allclose(exact_gradient(policy, q), p**-q * exact_gradient(policy, 0.0), rtol=1e-12)
    np.testing.assert_allclose(exact_gradient(policy, q), p ** (1 - q) * exact_gradient(policy, 1.0), rtol=1e-12)


def test_pools_are_all_ordered_draws_counted_by_multiset():
    atoms = gold_atoms(rare(0.3))
    pools = make_pools(atoms, 4, draws=1, rng=np.random.default_rng(0))
    want: dict[tuple, float] = {}
    for draw in itertools.product(range(3), repeat=4):
        want[tuple(sorted(draw))] = want.get(tuple(sorted(draw)), 0.0) + np.prod(atoms.probability[list(draw)])
    assert pools.exact
    for index, p in zip(pools.index, pools.probability, strict=True):
        np.testing.assert_allclose(p, want.pop(tuple(index)), rtol=1e-12)
    assert not want


def test_sampled_answers_succeed_with_probability_p():
    atoms = sampled_atoms(rare(0.2))
    np.testing.assert_allclose(atoms.probability.sum(), 1.0, rtol=1e-14)
    np.testing.assert_allclose(atoms.probability @ atoms.reward, success_probability(rare(0.2)), rtol=1e-14)


@pytest.mark.parametrize(("name", "target"), TARGETS.items())
def test_an_estimator_is_unbiased_for_its_own_objective_by_enumeration_where_it_claims_to_be(name, target):
    policy, row = rare(0.1), ESTIMATORS[name]
    q = 0.3 if row.q is None else row.q
    truth = target.gradient(policy, 4, q)
    if "key" not in row.needs:
        got = moments(policy, row, {"normalize": False}, q=q, m=4, target=truth)
        assert got.exact
        assert (got.bias < 1e-12 * np.linalg.norm(truth)) == target.unbiased


@pytest.mark.parametrize("q", [0.0, 0.4, 1.0])
def test_the_hard_reward_continuum_is_the_series_of_p_to_the_minus_q_cut_after_m_terms(q):
    policy, m = rare(0.3), 5
    p = success_probability(policy)
    series = sum(scipy.special.poch(q, j) / scipy.special.factorial(j) * (1 - p) ** j for j in range(m))
    for baseline in ("loo", "none"):
        options = {"baseline": baseline}
        got = moments(
            policy, ESTIMATORS["hard_continuum"], options, q=q, m=m, target=series * exact_gradient(policy, 0.0)
        )
        assert got.exact and got.bias < 1e-14


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pkpo_is_unbiased_for_pass_at_k_and_its_baseline_lowers_the_variance(k):
    policy = rare(0.3)
    target = k * (1 - success_probability(policy)) ** (k - 1) * exact_gradient(policy, 0.0)
    with_, without = (
        moments(policy, ESTIMATORS["pkpo"], {"k": k, "baseline": baseline}, q=0.0, m=5, target=target)
        for baseline in ("loo", "none")
    )
    assert with_.exact and max(with_.bias, without.bias) < 1e-14
    assert with_.variance <= without.variance


def test_every_estimator_with_a_rationale_has_an_objective_and_the_family_s_are_its_losses():
    assert list(TARGETS) == [name for name, row in ESTIMATORS.items() if row.rationale]
    for name in ("garl", "paft"):
        np.testing.assert_allclose(
            TARGETS[name].gradient(rare(0.1), 4, 0.6), exact_gradient(rare(0.1), 0.6), rtol=1e-12
        )
    for name in ("iwae", "em", "rloo"):
        member = 0.0 if name == "rloo" else 1.0
        np.testing.assert_allclose(
            TARGETS[name].gradient(rare(0.1), 4, 0.6), exact_gradient(rare(0.1), member), rtol=1e-12
        )


def test_the_bound_of_m_samples_is_the_expected_log_mean_of_all_ordered_draws():
    policy, draws = rare(0.3), list(itertools.product(range(3), repeat=4))
    atoms = gold_atoms(policy)
    mean = [atoms.probability[list(d)].prod() * np.log(np.exp(atoms.log_w[list(d)]).mean()) for d in draws]
    np.testing.assert_allclose(TARGETS["jepo"].objective(policy, 4, 0.0), sum(mean), rtol=1e-12)


@pytest.mark.parametrize("q", QS)
def test_the_leave_one_out_baseline_keeps_the_expectation(q):
    for options, other in ((PLUG_IN, LOO), (JACKKNIFE, JACKKNIFE | {"baseline": "loo"})):
        first, second = (moments(rare(0.1), GARL, o, q=q, m=6, target=q) for o in (options, other))
        np.testing.assert_allclose(first.mean, second.mean, atol=1e-14)


@pytest.mark.parametrize("scheme", RESAMPLING)
def test_paft_has_the_plug_in_s_expectation_and_at_least_its_variance(scheme):
    policy, q = rare(0.2), 0.5
    plug = moments(policy, GARL, PLUG_IN, q=q, m=6, target=q)
    drawn = moments(policy, PAFT, {"normalize": False, "resampling": scheme}, q=q, m=6, target=q, draws=40000)
    assert np.linalg.norm(drawn.mean - plug.mean) < 3 * drawn.bias_error
    assert drawn.variance > plug.variance - 3 * drawn.variance_error
    if scheme == "categorical":
        want = plug.variance + gradients._added_by_draws(policy, q, 6)
        assert abs(drawn.variance - want) < 4 * drawn.variance_error
        assert want > 1.05 * plug.variance


@pytest.mark.parametrize("q", QS[1:])
def test_m_times_the_plug_in_bias_tends_to_the_leading_coefficient(q):
    for policy in (rare(0.4), unlikely(0.01)):
        near, far = (
            m * (moments(policy, GARL, PLUG_IN, q=q, m=m, target=q).mean - exact_gradient(policy, q)) for m in (16, 32)
        )
        want = leading_bias(policy, q)
        first, second = (np.linalg.norm(x - want) for x in (near, far))
        assert second < 0.62 * first  # the rest is O(1/M)
        np.testing.assert_allclose(2 * far - near, want, atol=0.06 * np.linalg.norm(want))


def test_the_written_out_plug_in_bias_equals_the_estimator_s():
    policy = gradients.two_rationales(0.2)
    for q in (0.25, 0.75):
        got = moments(policy, GARL, PLUG_IN, q=q, m=64, target=q)
        np.testing.assert_allclose(
            gradients.plug_in_bias(policy, commitments.power(q), 64), got.mean - exact_gradient(policy, q), atol=1e-12
        )


@pytest.mark.parametrize("q", QS[1:])
def test_the_bias_goes_as_p_to_the_minus_q_where_success_is_rare_and_as_p_to_the_1_minus_q_where_it_is_unlikely(q):
    """So v2's O(q/(M P^q)) is tight, and v1's O(q/(M P^(q+1))) is a factor 1/P above what can occur."""
    ps = np.logspace(-6, -3, 4)
    worst = [
        np.linalg.norm(gradients.plug_in_bias(gradients.two_rationales(p), commitments.power(q), round(1000 / p)))
        * 1000
        / p
        for p in ps
    ]
    np.testing.assert_allclose(np.polyfit(np.log(ps), np.log(worst), 1)[0], -q, atol=0.002)
    cold = [np.linalg.norm(leading_bias(unlikely(p), q)) for p in ps]
    np.testing.assert_allclose(np.polyfit(np.log(ps), np.log(cold), 1)[0], 1 - q, atol=0.002)


def test_the_jackknife_lowers_the_order_of_the_bias_from_1_to_2():
    policy, q = gradients.two_rationales(0.3), 0.75
    for options, power in ((PLUG_IN, -1), (JACKKNIFE, -2)):
        bias = [moments(policy, GARL, options, q=q, m=m, target=q).bias for m in (64, 128)]
        np.testing.assert_allclose(np.log2(bias[1] / bias[0]), power, atol=0.2)


def test_the_minimiser_is_the_escort_distribution():
    alpha, qs = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 1.0])
    newton = jax.jit(jax.vmap(flows.minimiser, (None, 0)), compiler_options={"xla_backend_optimization_level": 0})
    for q, ours in zip(qs, newton(alpha, qs), strict=True):
        want = alpha ** (1 / q) / (alpha ** (1 / q)).sum()
        np.testing.assert_allclose(ours, want, atol=1e-12)

        def loss(theta: np.ndarray, q: float = q) -> float:
            return -np.sum(alpha * (np.log(theta) if q == 1 else theta ** (1 - q) / (1 - q)))

        constraint = {"type": "eq", "fun": lambda theta: theta.sum() - 1}
        found = scipy.optimize.minimize(
            loss, np.full(3, 1 / 3), bounds=[(1e-9, 1)] * 3, constraints=constraint, tol=1e-12
        )
        np.testing.assert_allclose(found.x, want, atol=2e-5)


@pytest.mark.parametrize("q", QS)
def test_dispersion_costs_loss_to_second_order_half_q_times_the_variance(q):
    p = 0.3 * (1 + 0.01 * np.linspace(-1, 1, 7))
    excess = float(np.mean(tsallis_loss(np.log(p), q)) - tsallis_loss(np.log(p.mean()), q))
    np.testing.assert_allclose(excess, q / 2 * p.mean() ** (-q - 1) * p.var(), rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("q", QS)
def test_escape_times_are_the_sigmoid_integral(q):
    starts = np.array([1e-6, 1e-3, 0.1])
    got = flows.escape_times(np.full(3, q), starts, 0.5)
    for start, time in zip(starts, got, strict=True):
        # In log u, where the integrand is smooth over all the decades.
        want = scipy.integrate.quad(
            lambda x: np.exp(x * (q - 1)) / (1 - np.exp(x)) ** 2,
            np.log(start),
            np.log(0.5),
            epsabs=0,
            epsrel=1e-11,
            limit=500,
        )[0]
        np.testing.assert_allclose(time, want, rtol=1e-7)
        np.testing.assert_allclose(commitments.escape_time(commitments.power(q), start, 0.5), want, rtol=1e-10)


def test_escape_takes_p0_to_the_minus_1_minus_q_and_at_q_1_its_logarithm():
    starts = np.array([1e-8, 1e-6, 1e-4])
    for q in QS[:-1]:
        far, near, _ = flows.escape_times(np.full(3, q), starts, 0.5)
        np.testing.assert_allclose(np.log(far / near) / np.log(100), 1 - q, atol=0.01)
        np.testing.assert_allclose(far * (1 - q) * 1e-8 ** (1 - q), 1.0, atol=0.02)
    far, near, _ = flows.escape_times(np.ones(3), starts, 0.5)
    np.testing.assert_allclose(far - near, np.log(100), rtol=1e-4)


PARAMETRISATIONS = {  # log P of the parameters, where they start, and between what the rate ends
    "sigmoid": (lambda x: jax.nn.log_sigmoid(x[0]), [-1.0], (1.0, 1.0)),
    "softmax, equal": (lambda x: jax.nn.log_softmax(x)[0], [-1.0, 0.0, 0.0, 0.0, 0.0], (1.25, 1.25)),
    "softmax, unequal": (lambda x: jax.nn.log_softmax(x)[0], [0.0, 1.0, 0.5, -1.0, -3.0], (1.26, 2.0)),
    "finite": (lambda x: -(x[0] ** 2) / 2, [2.0], (2.0, 2.0)),
}


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_near_the_optimum_the_rate_does_not_depend_on_q(name):
    """The flow of our own loss on the parameters, integrated until 1 − P is 0.02 and then 0.002."""
    log_p, start, (low, high) = PARAMETRISATIONS[name]
    misses = np.array([0.02, 0.002])
    velocity = jax.jit(jax.grad(lambda theta, q: -tsallis_loss(log_p(theta), q)))
    probability = jax.jit(lambda theta: -jax.numpy.expm1(log_p(theta)))
    events = [lambda _, x, miss=miss: float(probability(x)) - miss for miss in misses]
    events[-1].terminal = True
    took = {}
    for q in (0.0, 0.5, 1.0):
        found = scipy.integrate.solve_ivp(
            lambda _, x, q=q: np.asarray(velocity(x, q)), (0, 1e4), np.array(start),
            method="LSODA", rtol=1e-9, atol=1e-12, events=events,
        )  # fmt: skip
        took[q] = found.t_events[1][0] - found.t_events[0][0]
    for q in (0.0, 0.5):  # P^(−(1−q)) times as long where P is what it is
        assert 1 < took[q] / took[1.0] < (1 - misses[0]) ** -(1 - q)
    grown = np.diff(np.log(1 / misses) if name == "finite" else 1 / misses)[0]
    for time in took.values():
        assert low * (1 - misses[0]) ** 2 < grown / time < high * (1 + misses[0])


@pytest.mark.parametrize("q", QS)
def test_times_to_the_optimum_are_those_of_the_simulated_flow(q):
    """The sigmoid's against the flow of our loss, the Gaussian's against quadrature in θ."""
    misses = np.array([0.5, 1e-2, 1e-4])
    times = {name: flows.times_to_optimum(q, way.score, 0.01, misses) for name, way in flows.APPROACHES.items()}
    simulated = [float(flows.escape_times(q, 0.01, 1 - miss)) for miss in misses]
    np.testing.assert_allclose(times["sigmoid"], simulated, rtol=1e-6)
    np.testing.assert_allclose(
        times["sigmoid"][0], commitments.escape_time(commitments.power(q), 0.01, 0.5), rtol=1e-10
    )
    # θ from √(−2 ln P0), dθ/dt = −P^(1−q) θ.
    ends = [np.sqrt(-2 * np.log(p)) for p in (0.01, 0.99)]
    expected = scipy.integrate.quad(lambda x: np.exp(x * x * (1 - q) / 2) / x, ends[1], ends[0], epsrel=1e-10)[0]
    np.testing.assert_allclose(times["exp(−θ²/2)"][1], expected, rtol=1e-8)


@pytest.mark.parametrize("q", QS[1:])
def test_contamination_rests_at_the_flip_odds_to_the_1_over_q(q):
    for rate in (0.001, 0.2):
        odds = (rate / (1 - rate)) ** (1 / q)
        np.testing.assert_allclose(flows.resting_point(q, rate), odds / (1 + odds), rtol=1e-12)


@pytest.mark.parametrize("q", QS[1:])
def test_fitting_noise_takes_eta_to_the_q_plus_1_over_q_plus_1_times_the_flip_rate(q):
    rate = 0.1
    rest = flows.resting_point(q, rate)
    etas = rest * np.array([1e-8, 0.5])
    early, late = flows.fitting_times(q, rate, etas)
    order = etas ** (q + 1) / ((q + 1) * rate)
    np.testing.assert_allclose(early / order[0], 1.0, atol=0.02)
    want = scipy.integrate.quad(lambda p: 1 / (rate * p**-q - (1 - rate) * (1 - p) ** -q), 0, etas[1], epsrel=1e-10)[0]
    np.testing.assert_allclose(late, want, rtol=1e-6)
    assert late > 1.2 * order[1]


def test_at_q_0_wrong_labels_are_never_fitted():
    for p in (1e-6, 0.1, 0.9):
        assert flows.contamination_rate(p, 0.0, 0.2) == pytest.approx(-0.6)


@pytest.mark.parametrize("q", QS[1:])
def test_a_softmax_fits_noise_in_the_time_of_an_escape(q):
    """Against the flow of our own loss on the logit, whose velocity is its derivative by jax."""
    rate = 0.1
    eta = 0.1 * flows.resting_point(q, rate)

    def loss(theta):
        wrong, right = (tsallis_loss(jax.nn.log_sigmoid(x), q) for x in (theta, -theta))
        return rate * wrong + (1 - rate) * right

    velocity = jax.jit(lambda theta: -jax.grad(loss)(theta))
    for start in (eta / 10, eta / 1e4):
        ends = (np.log(p / (1 - p)) for p in (start, eta))
        expected = scipy.integrate.quad(lambda theta: 1 / float(velocity(theta)), *ends, epsrel=1e-9, limit=200)[0]
        np.testing.assert_allclose(flows.softmax_fitting_time(q, rate, start, eta), expected, rtol=1e-6)
    far, near = (flows.softmax_fitting_time(q, rate, start, eta) for start in (1e-12 * eta, 1e-10 * eta))
    order = [flows.softmax_order(q, rate, start, eta) for start in (1e-12 * eta, 1e-10 * eta)]
    # What the order leaves out is the share (p̃/rest)^q of the velocity.
    np.testing.assert_allclose((far - near) / (order[0] - order[1]), 1.0, atol=1e-6 + 2 * 1e-11**q)


@pytest.mark.processes
def test_the_entry_point_writes_a_page_that_finds_its_figures_and_tables(tmp_path, capfd):
    command = [sys.executable, "-m", "tsallis_rl.laboratory", f"--out={tmp_path}"]
    done = subprocess.run([*command, "--studies=noise,dispersion"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for name in ("noise", "dispersion"):
        assert f'src="{name}.png"' in page
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        with open(tmp_path / f"{name}.csv", encoding="utf-8") as file:
            assert len(list(csv.DictReader(file))) > 20
    told = refused(capfd, laboratory, f"--out={tmp_path}", "--studies=nose")
    assert "no study nose; choose from bias_variance" in told


@pytest.mark.slow
def test_the_whole_laboratory_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tsallis_rl.laboratory", f"--out={tmp_path}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.csv"))) == 19
