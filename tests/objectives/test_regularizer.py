"""What a regulariser adds to the coefficients, compared with the gradients that it estimates: all groups in float64."""

import jax
import numpy as np
import pytest

from tsallis_rl.laboratory.policy import Policy, from_probabilities, gold_atoms, log_softmax, sampled_atoms
from tsallis_rl.laboratory.pools import make_pools
from tsallis_rl.objectives import regularize, regularizer_terms
from tsallis_rl.runs.errors import UserError

POLICY = from_probabilities([0.1, 0.6, 0.3], [0.7, 0.2, 0.05])
START = from_probabilities([0.3, 0.3, 0.4], [0.5, 0.4, 0.6])
LENGTHS = np.array([1.0, 3.0, 7.0])  # of the three rationales
MIN_LENGTH = 5.0


def log_p(policy: Policy, *, answers: bool) -> np.ndarray:
    """log p of every rationale [Z], or of every rationale and answer [2 Z]."""
    of_rationale = log_softmax(policy.rationale)
    return (of_rationale[:, None] + log_softmax(policy.answer)).ravel() if answers else of_rationale


def penalty(policy: Policy, term: str, *, answers: bool) -> float:
    """What is minimised: KL(p‖p_start), −H(z) or the expected shortfall, summed over all that can be sampled."""
    if term == "kl":
        log = log_p(policy, answers=answers)
        return float(np.exp(log) @ (log - log_p(START, answers=answers)))
    log = log_p(policy, answers=False)
    return float(np.exp(log) @ (log if term == "entropy" else np.maximum(0, 1 - LENGTHS / MIN_LENGTH)))


def gradient(term: str, *, answers: bool, step: float = 1e-6) -> np.ndarray:
    """Central differences of the penalty by every logit [F]."""
    flat = np.concatenate([POLICY.rationale, POLICY.answer.ravel()])

    def at(x: np.ndarray) -> float:
        return penalty(Policy(x[:3], x[3:].reshape(3, 2)), term, answers=answers)

    return np.array([(at(flat + step * unit) - at(flat - step * unit)) / (2 * step) for unit in np.eye(len(flat))])


@pytest.mark.parametrize("answers", [False, True], ids=["gold", "sampled"])
@pytest.mark.parametrize("term", ["kl", "entropy", "length"])
@pytest.mark.parametrize("m", [2, 3])
def test_in_expectation_over_all_groups_it_is_the_exact_gradient(term, answers, m):
    atoms = (sampled_atoms if answers else gold_atoms)(POLICY)
    rationale = np.repeat(np.arange(3), 2) if answers else np.arange(3)
    ratio = log_p(POLICY, answers=answers) - log_p(START, answers=answers)
    pools = make_pools(atoms, m, draws=0, rng=np.random.default_rng(0))
    assert pools.exact
    with jax.enable_x64(True):
        (score, path), measured = regularize(
            {term: 0.7, "min_length": MIN_LENGTH},
            log_prob=log_p(POLICY, answers=False)[rationale][pools.index],
            length=LENGTHS[rationale][pools.index],
            log_ratio=ratio[pools.index],
            sampled_answers=answers,
        )
        score, path = np.asarray(score), np.asarray(path)
    assert len(measured) == 1
    assert (path != 0).any() == (answers and term == "kl")
    each = -np.einsum("wm,wmf->wf", score, atoms.score[pools.index])
    each -= np.einsum("wm,wmf->wf", path, atoms.path[pools.index])
    found = pools.probability @ each
    np.testing.assert_allclose(found, 0.7 * gradient(term, answers=answers), atol=1e-9)
    assert np.abs(found).max() > 0.01


def test_terms_add_up_and_what_is_measured_is_their_mean():
    given = {
        "log_prob": np.array([[-1.0, -3.0, -2.0]]),
        "length": np.array([[1, 10, 4]]),
        "log_ratio": np.array([[0.5, -0.1, 0.2]]),
    }
    terms = regularizer_terms({"kl": 0.1, "entropy": 0.02, "length": 2.0, "min_length": 5})
    (score, path), measured = regularize(terms, **given)
    rewards = -0.1 * np.array([0.5, -0.1, 0.2]) + 0.02 * np.array([1, 3, 2]) - 2 * np.array([0.8, 0.0, 0.2])
    by_hand = [(rewards[m] - np.delete(rewards, m).mean()) / 3 for m in range(3)]
    np.testing.assert_allclose(score, [by_hand], rtol=1e-6)
    assert not path.any()
    np.testing.assert_allclose(measured["kl"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(measured["sequence_entropy"], 2.0)
    np.testing.assert_allclose(measured["length_shortfall"], 1 / 3, rtol=1e-6)
    parts = [regularize({k: terms[k], "min_length": 5.0}, **given)[0].score for k in ("kl", "entropy", "length")]
    np.testing.assert_allclose(score, sum(parts), atol=1e-6)


def test_what_is_off_is_no_term_and_one_rollout_has_no_others():
    assert regularizer_terms({"kl": 0.0, "entropy": 0.0, "length": 0.0, "min_length": 9}) == {}
    with pytest.raises(UserError, match="regularizer needs at least 2 rollouts a prompt, found 1"):
        regularize({"entropy": 1.0}, log_prob=np.zeros((2, 1)), length=np.zeros((2, 1)))


def test_another_factor_compiles_nothing_new():
    compiled, programs = jax.jit(regularize), []
    for factor in (0.1, 0.2):
        terms = regularizer_terms({"kl": 0.0, "entropy": factor, "length": 2 * factor, "min_length": 5})
        compiled(terms, log_prob=np.zeros((1, 2), np.float32), length=np.array([[1, 9]]))
        programs.append(compiled._cache_size())
    assert programs[0] == programs[1]
