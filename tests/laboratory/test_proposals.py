"""Proposals that know the answer: enumerated expectations of P̂ and the plug-in, and the study's numbers."""

import itertools

import jax
import numpy as np
import pytest

from tsallis_rl.laboratory import proposals
from tsallis_rl.laboratory.policy import exact_gradient, gold_atoms, success_probability
from tsallis_rl.laboratory.pools import estimates
from tsallis_rl.objectives import ESTIMATORS, log_importance

M = 4


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def groups(p: np.ndarray, r: np.ndarray, name: str) -> list[tuple[list[int], float]]:
    """All groups of M rationales in order, with their probabilities, written out."""
    of = {"prior": [p] * M, "hinted": [r] * M, "mixture": [p] * (M // 2) + [r] * (M // 2)}[name]
    return [
        (list(group), float(np.prod([d[z] for d, z in zip(of, group, strict=True)])))
        for group in itertools.product(range(len(p)), repeat=M)
    ]


@pytest.mark.parametrize("share", [0.3, 1.0, None])
@pytest.mark.parametrize("name", ["prior", "hinted", "mixture"])
def test_p_hat_is_unbiased_and_the_plug_in_at_q_0_and_each_pool_s_gradient_is_written_out(name, share):
    policy = proposals.reasoned(0.07)
    atoms, success = gold_atoms(policy), success_probability(policy)
    np.testing.assert_allclose(success, 0.07, rtol=1e-12)
    p, w, r = atoms.probability, np.exp(atoms.log_w), proposals.proposed(atoms, share)
    density = {"prior": p, "hinted": r, "mixture": p / 2 + r / 2}[name]
    if name != "prior":
        np.testing.assert_allclose(log_importance(np.log(p) - np.log(r), name), np.log(p / density), atol=1e-12)
    weights = w * p / density
    mean, gradient, steep = 0.0, 0.0, 0.0
    for group, chance in groups(p, r, name):
        p_hat = weights[group].mean()
        each = weights[group][:, None] * (atoms.score + atoms.path)[group] / M
        mean += chance * p_hat
        gradient -= chance * each.sum(0)
        steep -= chance * p_hat**-0.75 * each.sum(0)
    np.testing.assert_allclose(mean, success, rtol=1e-12)
    np.testing.assert_allclose(gradient, exact_gradient(policy, 0.0), atol=1e-13)
    weighed, pools = proposals.pools_of(atoms, p if name == "prior" else r, M, mixture=name == "mixture")
    for q, want in ((0.0, gradient), (0.75, steep)):
        found = estimates(weighed, pools, ESTIMATORS["garl"], proposals.PLUG_IN, q)
        np.testing.assert_allclose(pools.probability @ found, want, atol=1e-12)


def test_the_exact_baseline_keeps_the_plug_in_s_expectation():
    atoms = gold_atoms(proposals.reasoned(0.1))
    r = proposals.proposed(atoms, 0.5)
    weighed, pools = proposals.pools_of(atoms, r, M, mixture=False)
    without = estimates(weighed, pools, ESTIMATORS["garl"], proposals.PLUG_IN, 0.75)
    found = proposals.with_baseline(atoms, r, M, 0.75)
    np.testing.assert_allclose(pools.probability @ found, pools.probability @ without, atol=1e-13)
    assert np.abs(found - without).max() > 0.01


def test_on_a_mixture_neither_baseline_nor_jackknife_does_what_it_is_for():
    """Each half has others of another distribution: why both are refused there. Behind one prompt both stand."""
    policy, q = proposals.reasoned(0.07), 0.75
    atoms, truth = gold_atoms(policy), exact_gradient(policy, q)
    p, w, r = atoms.probability, np.exp(atoms.log_w), proposals.proposed(atoms, 1.0)
    added, bias = {}, {}
    for name, density in (("hinted", r), ("mixture", p / 2 + r / 2)):
        rho, total = p / density, {"baseline": 0.0, "plug-in": -truth, "jackknife": -truth}
        for group, chance in groups(p, r, name):
            weights, of_z = (w * rho)[group], atoms.score[group]
            each = -weights[:, None] * (of_z + atoms.path[group])
            others = (weights.sum() - weights) / (M - 1)
            plug_in = each.mean(0) * weights.mean() ** -q
            without = [np.delete(each, j, 0).mean(0) * others[j] ** -q for j in range(M)]
            total["baseline"] += chance * (rho[group] * others ** (1 - q)) @ of_z / M
            total["plug-in"] = total["plug-in"] + chance * plug_in
            total["jackknife"] = total["jackknife"] + chance * (M * plug_in - (M - 1) * np.mean(without, 0))
        added[name], *bias[name] = (np.linalg.norm(x) / np.linalg.norm(truth) for x in total.values())
    assert added["hinted"] < 1e-14 and added["mixture"] > 0.005
    assert max(bias["hinted"]) < 1e-13 and bias["mixture"][1] > 1.5 * bias["mixture"][0] > 0.05


def test_the_deviation_of_p_hat_is_the_closed_form_from_a_half_to_e_to_the_minus_40():
    """Of M independent draws, and of two halves: of a mixture with what restates the answer it stays bounded."""
    for p in (0.5, np.exp(-40)):
        atoms = gold_atoms(proposals.reasoned(p))
        prior, w = atoms.probability, np.exp(atoms.log_w)
        for name, share in proposals.PROPOSALS.items():
            r = proposals.proposed(atoms, share)
            found = proposals.relative_row(p, name, mixture=False)["p_hat_deviation"]
            want = ((r @ (prior * w / r / p) ** 2 - 1) / proposals.M) ** 0.5 if name != "posterior" else 0.0
            np.testing.assert_allclose(found, want, rtol=1e-7, atol=1e-7)
            weight = prior * w / (prior / 2 + r / 2) / p
            halves = sum(d @ weight**2 - (d @ weight) ** 2 for d in (prior, r)) / 2
            found = proposals.relative_row(p, name, mixture=True)["p_hat_deviation"]
            np.testing.assert_allclose(found, (halves / proposals.M) ** 0.5, rtol=1e-7, atol=1e-7)


def test_the_study_shows_where_a_proposal_helps_and_where_it_misleads():
    study = proposals.proposals()
    assert len(study.rows) == 48 and np.abs(study.column("p_hat_mean") - 1).max() < 1e-13
    last = {row["proposal"]: row for row in study.rows[:30] if row["P"] < 1e-17}
    assert last["prior"]["p_hat_deviation"] > 1e8 > 1 > last["share 0.5"]["p_hat_deviation"]
    assert last["share 0.5"]["relative_bias"] < 0.06 < 0.7 < last["restating"]["relative_bias"] < 1 < 1.1
    assert last["prior"]["relative_bias"] > 1.1
    worse = study.column("with_baseline") / study.column("relative_deviation")  # why no baseline is offered
    for name, factor in {"share 0.5": 1.25, "posterior": 2.9, "restating": 5.8}.items():
        assert max(worse[study.column("proposal") == name]) > factor
