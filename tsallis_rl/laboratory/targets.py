"""The objective of every estimator of the table: the scalar whose gradient the estimator is compared with.

Objectives are functions of the policy in jax and float64, written without the estimators' code; jax differentiates
them. Where an estimator follows the gradient of no closed-form objective, the objective here only approximates it.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl.laboratory.policy import Policy
from tsallis_rl.laboratory.pools import EARLIER, LENGTH, WITHOUT

KL, EPSILON, K = 0.05, 1e-4, 4  # defaults of latro, grpo and pkpo


class Target(NamedTuple):
    """The objective that an estimator increases.

    Attributes:
      name: of the objective.
      objective: policy, M and q → the scalar.
      unbiased: whether the estimator's expectation is this gradient exactly; if not, the gradient approximates it.
    """

    name: str
    objective: Callable[[Policy, int, float], Array]
    unbiased: bool

    def gradient(self, policy: Policy, m: int, q: float) -> np.ndarray:
        """Computes the gradient of minus the objective → [F]."""
        with jax.enable_x64(True):
            found = jax.grad(lambda policy: -self.objective(policy, m, q))(Policy(*map(jnp.asarray, policy)))
            return np.concatenate([np.asarray(found.rationale), np.asarray(found.answer).ravel()])


def _rationales(policy: Policy) -> tuple[Array, Array]:
    """Computes p(z) [Z] and w_z [Z]."""
    return jax.nn.softmax(policy.rationale), jax.nn.softmax(policy.answer, axis=-1)[:, 0]


def _success(policy: Policy) -> Array:
    p, w = _rationales(policy)
    return p @ w


def _log_q(u: Array, q: float) -> Array:
    return jnp.log(u) if q == 1 else (u ** (1 - q) - 1) / (1 - q)


def _member(policy: Policy, m: int, q: float) -> Array:
    del m
    return _log_q(_success(policy), q)


def _member_at(q: float) -> Callable[[Policy, int, float], Array]:
    return lambda policy, m, _: _member(policy, m, q)


def _per_token(policy: Policy, m: int, q: float) -> Array:
    del m
    p, w = _rationales(policy)
    return _log_q(p @ w ** (1 / LENGTH), q)


def _mean_log(policy: Policy, m: int, q: float) -> Array:
    del m, q
    p, w = _rationales(policy)
    return p @ jnp.log(w)


def _log_mean(policy: Policy, m: int, q: float) -> Array:
    """Computes E log w̄ over all pools of M rationales."""
    del q
    p, w = _rationales(policy)
    pools = np.array(list(itertools.combinations_with_replacement(range(len(p)), m)))
    counts = (pools[:, :, None] == np.arange(len(p))).sum(1)
    log_ways = [math.lgamma(m + 1) - sum(math.lgamma(n + 1) for n in row) for row in counts.tolist()]
    return jnp.exp(jnp.array(log_ways) + counts @ jnp.log(p)) @ jnp.log(counts @ w / m)


def _less_kl(policy: Policy, m: int, q: float) -> Array:
    """Computes E log w − KL · KL(p(z) ‖ uniform)."""
    p, _ = _rationales(policy)
    return _mean_log(policy, m, q) - KL * p @ jnp.log(p * len(p))


def _gain(policy: Policy, m: int, q: float) -> Array:
    """Computes E max(0, mean token probability − that without a rationale), a reward held constant in the gradient."""
    del m, q
    p, w = _rationales(policy)
    return p @ jax.lax.stop_gradient(jnp.maximum(w ** (1 / LENGTH) - WITHOUT, 0.0))


def _rank(policy: Policy, m: int, q: float) -> Array:
    """Computes the expected share of rationales that are no better, a reward held constant in the gradient."""
    del m, q
    p, w = _rationales(policy)
    return p @ jax.lax.stop_gradient((w[:, None] >= w[None, :]) @ p)


def _by_slope(slope: Callable[[Array, int, float], Array]) -> Callable[[Policy, int, float], Array]:
    """Makes an objective F(P) from its derivative at P."""

    def objective(policy: Policy, m: int, q: float) -> Array:
        p = _success(policy)
        return jax.lax.stop_gradient(slope(p, m, q)) * p

    return objective


def _cut_series(p: Array, terms: int, q: float) -> Array:
    """Sums the first terms of p^(−q) = Σ_j (q)_j/j! (1 − p)^j."""
    rising = [math.prod((q + i) / (i + 1) for i in range(j)) for j in range(terms)]
    return sum(c * (1 - p) ** j for j, c in enumerate(rising))


def _centred(weight: Callable[[Array, int], Array]) -> Callable[[Policy, int, float], Array]:
    """Makes the objective of advantages g(K) (r − K/M): its slope is E g(K) K (M − K)/M² / (P (1 − P)), K binomial."""

    def slope(p: Array, m: int, q: float) -> Array:
        del q
        k = np.arange(1, m)
        mass = jnp.array([math.comb(m, n) for n in k.tolist()]) * p**k * (1 - p) ** (m - k)
        return mass @ (weight(k, m) * k * (m - k) / m**2) / (p * (1 - p))

    return _by_slope(slope)


def _rank_weights(k: np.ndarray, m: int) -> np.ndarray:
    """Computes mass over cumulative mass of the pass rates in EARLIER, with the group itself counted."""
    seen = np.array([sum(batch[n] for batch in EARLIER[m]) for n in range(m + 1)])
    return np.array([(seen[n] + 1) / (seen[: n + 1].sum() + 1) for n in k])


_P = _member_at(0.0)
TARGETS = {
    "garl": Target("log_q P", _member, False),
    "paft": Target("log_q P", _member, False),
    "rb_reinforce": Target("P", _P, True),
    "rb_rloo": Target("P", _P, True),
    "iwae": Target("log P", _member_at(1.0), False),
    "em": Target("log P", _member_at(1.0), False),
    "garl_per_token": Target("log_q E w^(1/L)", _per_token, False),
    "log_likelihood": Target("E log w", _mean_log, True),
    "jepo": Target("E log w̄", _log_mean, True),
    "latro": Target("E log w − β KL", _less_kl, True),
    "rlpr": Target("E max(0, gain)", _gain, False),
    "nover": Target("E rank", _rank, False),
    "grpo": Target("F(P) of the std", _centred(lambda k, m: 1 / (np.sqrt(k * (m - k)) / m + EPSILON)), True),
    "dr_grpo": Target("(1 − 1/M) P", _by_slope(lambda p, m, q: 1 - 1 / m), True),
    "rloo": Target("P", _P, True),
    "maxrl": Target("log P, M − 1 terms", _by_slope(lambda p, m, q: _cut_series(p, m - 1, 1.0)), True),
    "raft": Target("P", _P, True),
    "hard_continuum": Target("log_q P, M terms", _by_slope(lambda p, m, q: _cut_series(p, m, q)), True),
    "pkpo": Target("pass@4", _by_slope(lambda p, m, q: K * (1 - p) ** (K - 1)), True),
    "curverl": Target("F(P) of the ranks", _centred(_rank_weights), True),
}
