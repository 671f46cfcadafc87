"""The latent policy in numpy and float64; shares no code with the estimators, so that it can check them."""

from typing import NamedTuple

import numpy as np

from tsallis_rl.laboratory.commitments import Commitment, power


class Policy(NamedTuple):
    """A categorical rationale, then one of two answers, the gold one first; both distributions are given by logits.

    The parameters are these logits, flattened: F = Z + 2 Z.

    Attributes:
      rationale: [Z] logits.
      answer: [Z, 2] logits.
    """

    rationale: np.ndarray
    answer: np.ndarray


class Atoms(NamedTuple):
    """The U distinct rollouts of a policy.

    Attributes:
      probability: [U].
      log_w: [U] log-likelihood of the gold answer after the atom's rationale.
      reward: [U] 1 where the atom's answer is the gold one.
      score: [U, F] gradient of the rationale's log-probability.
      path: [U, F] gradient of the log-probability of an answer: the gold one, or the atom's own.
    """

    probability: np.ndarray
    log_w: np.ndarray
    reward: np.ndarray
    score: np.ndarray
    path: np.ndarray


def from_probabilities(rationale: np.ndarray, gold: np.ndarray) -> Policy:
    """Makes the policy with p(z) = rationale [Z] and p(y*|z) = gold [Z]."""
    rationale, gold = np.asarray(rationale, np.float64), np.asarray(gold, np.float64)
    return Policy(np.log(rationale), np.log(np.stack([gold, 1.0 - gold], axis=-1)))


def rare(p: float) -> Policy:
    """Makes a policy that succeeds by one rare rationale: Var(w) and Cov(g, w) are of order P, the largest possible."""
    return from_probabilities([p, 0.6 * (1 - p), 0.4 * (1 - p)], [0.8, 0.3 * p, 0.05 * p])


def unlikely(p: float) -> Policy:
    """Makes a policy whose gold answer is unlikely after every rationale (a cold start): Var(w) is of order P²."""
    return from_probabilities([0.2, 0.5, 0.3], [2.5 * p, 0.8 * p, p / 3])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Computes log-softmax along the last axis."""
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def success_probability(policy: Policy) -> float:
    """Computes P = Σ_z p(z) p(y*|z)."""
    return float(np.exp(log_softmax(policy.rationale)) @ np.exp(log_softmax(policy.answer)[:, 0]))


def gold_atoms(policy: Policy) -> Atoms:
    """Makes one atom per rationale, with the gold answer."""
    return _atoms(policy, answers=None)


def sampled_atoms(policy: Policy) -> Atoms:
    """Makes one atom per rationale and answer."""
    return _atoms(policy, answers=(0, 1))


def exact_gradient(policy: Policy, f: float | Commitment) -> np.ndarray:
    """Computes ∇ℓ = −h(P) Σ_z p(z) w_z (∇ log p(z) + ∇ log p(y*|z)) → [F], h(P) = f(P)/P; a number f is a power's q."""
    atoms = gold_atoms(policy)
    mass = atoms.probability * np.exp(atoms.log_w)
    return -_commitment(f).amplification(mass.sum()) * mass @ (atoms.score + atoms.path)


def leading_bias(policy: Policy, f: float | Commitment) -> np.ndarray:
    """Computes the limit of M times the plug-in's bias, h'(P) Cov(g, w) + h''(P)/2 Var(w) ∇ℓ_0 → [F].

    See docs/method.md §3, §8. Derivatives are central differences, accurate to seven digits. A number f is a power's q.
    """
    atoms = gold_atoms(policy)
    w = np.exp(atoms.log_w)
    g = -w[:, None] * (atoms.score + atoms.path)
    p = atoms.probability @ w
    variance = atoms.probability @ (w - p) ** 2
    covariance = (atoms.probability * (w - p)) @ g
    left, middle, right = _commitment(f).amplification(p * np.array([1 - 1e-4, 1.0, 1 + 1e-4]))
    first, second = (right - left) / (2e-4 * p), (right - 2 * middle + left) / (1e-4 * p) ** 2
    return first * covariance + second / 2 * variance * exact_gradient(policy, 0.0)


def _commitment(f: float | Commitment) -> Commitment:
    return f if isinstance(f, Commitment) else power(f)


def _atoms(policy: Policy, answers: tuple[int, ...] | None) -> Atoms:
    log_p, log_y = log_softmax(policy.rationale), log_softmax(policy.answer)
    z = len(log_p)
    sampled = answers is not None
    rationale, answer = (x.ravel() for x in np.meshgrid(np.arange(z), answers or (0,), indexing="ij"))
    n = len(rationale)
    score, path = np.zeros((n, 3 * z)), np.zeros((n, 3 * z))
    score[:, :z] = np.eye(z)[rationale] - np.exp(log_p)
    own = z + 2 * rationale[:, None] + np.arange(2)  # indices of the answer's logits after each atom's rationale
    np.put_along_axis(path, own, np.eye(2)[answer] - np.exp(log_y[rationale]), axis=1)
    return Atoms(
        probability=np.exp(log_p[rationale] + (log_y[rationale, answer] if sampled else 0.0)),
        log_w=log_y[rationale, 0],
        reward=(answer == 0).astype(np.float64),
        score=score,
        path=path,
    )
