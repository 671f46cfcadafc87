"""Importance weights and figures of proposals, compared with closed forms; and which estimators a proposal refuses."""

import functools

import jax
import numpy as np
import pytest

from tsallis_rl import objectives
from tsallis_rl.config.schema import FIELDS
from tsallis_rl.runs.errors import UserError

RNG = np.random.default_rng(0)
jit = functools.partial(
    jax.jit, static_argnames="proposal", compiler_options={"xla_backend_optimization_level": 0}
)  # op by op each operation would compile by itself
log_importance, proposal_figures = jit(objectives.log_importance), jit(objectives.proposal_figures)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_importance_weights_are_p_over_the_density_in_log_space():
    log_p, log_r = -30 * RNG.random((2, 50))
    np.testing.assert_array_equal(log_importance(log_p - log_r, "hinted"), log_p - log_r)
    want = log_p - np.log((np.exp(log_p) + np.exp(log_r)) / 2)
    np.testing.assert_allclose(log_importance(log_p - log_r, "mixture"), want, rtol=1e-12, atol=1e-13)
    far = np.array([-1e4, 0.0, 1e4, -np.inf], np.float32)
    found = log_importance(far, "mixture")  # where neither density could be held
    np.testing.assert_allclose(found, [-1e4 + np.log(2), 0.0, np.log(2), -np.inf], rtol=1e-6, atol=1e-7)


def test_figures_are_those_of_the_weights_written_out():
    log_w, ratio, at_once = -5 * RNG.random((2, 4)), 8 * RNG.random((2, 4)) - 6, -4 * RNG.random(2)
    w, rho, first = np.exp(log_w), np.exp(ratio), {"hinted": 0, "mixture": 2}
    for name in ("hinted", "mixture"):
        found = proposal_figures(log_w, ratio, at_once, name)
        density = rho if name == "hinted" else 1 / (1 / 2 + 1 / (2 * rho))
        hinted = slice(first[name], None)
        want = {
            "importance_ess": (density.sum(1) ** 2 / (density**2).sum(1)).mean(),
            "hinted_share": ((w * density)[:, hinted].sum(1) / (w * density).sum(1)).mean(),
            "hinted_answer_gain": (np.log(w[:, hinted].mean(1)) - at_once).mean(),
            "hinted_gain": (np.log((w * rho)[:, hinted].mean(1)) - at_once).mean(),
        }
        assert found.keys() == want.keys()
        for figure, value in want.items():
            np.testing.assert_allclose(found[figure], value, rtol=1e-9, err_msg=figure)
    np.testing.assert_allclose(proposal_figures(log_w, ratio, at_once, "hinted")["hinted_share"], 1.0, rtol=1e-12)


def test_groups_without_weight_are_left_out_of_the_figures():
    log_w, ratio, at_once = np.full((2, 4), -3.0), np.zeros((2, 4)), np.array([-5.0, -5.0])
    log_w[1] = -np.inf
    log_w[0, 1], ratio[0, 1] = np.nan, np.nan
    found = proposal_figures(log_w, ratio, at_once, "mixture")
    np.testing.assert_allclose(found["hinted_answer_gain"], 2.0, rtol=1e-6)
    np.testing.assert_allclose(found["hinted_share"], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(found["importance_ess"], 3.5, rtol=1e-6)
    far = proposal_figures(log_w[:1].astype(np.float32), np.full((1, 4), -1e4, np.float32), at_once[:1], "hinted")
    np.testing.assert_allclose(far["importance_ess"], 4.0, rtol=1e-6)
    assert np.isnan(proposal_figures(np.full((2, 4), -np.inf), ratio, at_once, "mixture")["hinted_gain"])


@pytest.mark.parametrize(
    ("log_w", "log_p", "log_r", "restates"),
    [
        # The answer has e^−12 at once. A rationale that is the answer, surely drawn, has as much behind the prompt.
        (-0.0, -12.0, -0.0, True),
        (-0.1, -14.0, -1.0, True),
        # One that leads there by steps that the plain prompt takes too, each with a probability of its own.
        (-0.1, -9.0, -6.0, False),
        # Rationales that do not make the answer likelier restate nothing, however unlikely they are.
        (-11.5, -20.0, -1.0, False),
    ],
)
def test_a_rationale_restates_where_it_loses_what_the_answer_gains(log_w, log_p, log_r, restates):
    group = np.ones((2, 4))
    figures = proposal_figures(log_w * group, (log_p - log_r) * group, np.full(2, -12.0), "hinted")
    found = objectives.restates_answer(float(figures["hinted_answer_gain"]), float(figures["hinted_gain"]))
    assert found == restates
    assert not objectives.restates_answer(float("nan"), float("nan"))


def test_proposals_are_those_of_the_config():
    assert FIELDS["proposal.name"].choices == objectives.PROPOSALS
    assert [objectives.first_hinted(name, 8) for name in objectives.PROPOSALS] == [8, 0, 4]


SETTINGS = {"baseline": "none", "correction": "none"}


@pytest.mark.parametrize("name", objectives.ESTIMATORS)
def test_an_estimator_stands_beside_a_proposal_only_where_its_expectation_does(name):
    settings = SETTINGS | {"name": name}
    objectives.check_proposal(settings | {"baseline": "loo"}, "prior", 3)
    if name in ("garl", "paft", "rb_reinforce", "iwae", "em"):
        for proposal in ("hinted", "mixture"):
            objectives.check_proposal(settings, proposal, 4)
    else:
        sentence = f"name=hinted: the expectation of estimator {name} is right for rationales of the plain prompt"
        with pytest.raises(UserError, match=sentence):
            objectives.check_proposal(settings, "hinted", 4)


def test_what_of_an_estimator_does_not_stand_is_refused_with_what_to_set():
    garl = SETTINGS | {"name": "garl"}
    with pytest.raises(UserError, match=r"leave-one-out baseline needs .* set config\.estimator\.baseline=none$"):
        objectives.check_proposal(garl | {"baseline": "loo"}, "hinted", 4)
    jackknife = garl | {"correction": "jackknife"}
    objectives.check_proposal(jackknife, "hinted", 4)
    with pytest.raises(UserError, match=r"name=mixture: the jackknife needs .* set config\.estimator\.correction=none"):
        objectives.check_proposal(jackknife, "mixture", 4)
    with pytest.raises(UserError, match=r"half of a group from each prompt: config\.rollouts\.num_rollouts=5 must be"):
        objectives.check_proposal(garl, "mixture", 5)
