"""Commitments: functions f(P) of an example's success probability, which scale its ∇ log P.

    power     f(P) = P^(1−q), the continuum of arXiv 2604.25907 (docs/method.md §2)
    floor     f(P) = max(P, τ): q = 0 where P ≥ τ, τ times maximum likelihood below (docs/method.md §8)
    mixture   f(P) = P + τ: the sum of both (docs/method.md §8)

Each belongs to a loss with ∇ℓ = −f(P) ∇ log P. All are computed from log P.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.form import require_choice
from tsallis_rl.objectives.log_weights import as_float
from tsallis_rl.objectives.tsallis import tsallis_loss

COMMITMENTS = ("power", "floor", "mixture")


class Power(NamedTuple):
    """f(P) = P^(1−q).

    Attributes:
      q: from 0 to 1; a scalar or broadcastable to P.
    """

    q: Array

    def log_weight(self, log_p: Array) -> Array:
        """Computes log f(P) from log P [...] → [...]; f(0) = 0, also at q = 1."""
        return _times(1.0 - self.q, log_p)

    def log_ratio(self, log_u: Array, log_s: Array) -> Array:
        """Computes log f(s u) − log f(s) for log u, log s [...], accurately even if |log u| ≪ |log s|."""
        del log_s
        return _times(1.0 - self.q, log_u)

    def local_q(self, log_p: Array) -> Array:
        """Computes 1 − d log f/d log P from log P [...] → [...]: the q of the power that f resembles near P."""
        return jnp.broadcast_to(self.q, log_p.shape)

    def curvature(self, log_p: Array) -> Array:
        """Computes P² h''/(2 h) of h = f/P → [...]; times Var(w)/(M P²), the plug-in's relative bias to O(1/M)."""
        q = self.local_q(log_p)
        return q * (q + 1.0) / 2.0

    def loss(self, log_p: Array) -> Array:
        """Computes the loss −log_q P from log P [...] → [...]."""
        return tsallis_loss(log_p, self.q)


class Floor(NamedTuple):
    """f(P) = max(P, τ).

    Attributes:
      log_tau: log τ, at most 0.
    """

    log_tau: Array

    def log_weight(self, log_p: Array) -> Array:
        """Computes log f(P) from log P [...] → [...]; f(0) = 0, as the direction of ∇ log P is then unknown."""
        return jnp.where(log_p > -jnp.inf, jnp.maximum(log_p, self.log_tau), -jnp.inf)

    def log_ratio(self, log_u: Array, log_s: Array) -> Array:
        """Computes log f(s u) − log f(s) for log u, log s [...], accurately even if |log u| ≪ |log s|."""
        start = self.log_tau - log_s
        found = jnp.maximum(log_u, start) - jnp.maximum(0.0, start)
        return jnp.where(log_u > -jnp.inf, found, -jnp.inf)

    def local_q(self, log_p: Array) -> Array:
        """Computes 1 − d log f/d log P from log P [...] → [...]: 1 below τ, else 0."""
        return jnp.where(log_p < self.log_tau, 1.0, 0.0).astype(log_p.dtype)

    def curvature(self, log_p: Array) -> Array:
        """Computes P² h''/(2 h) of h = f/P → [...], ignoring the kink of f at τ."""
        return self.local_q(log_p)

    def loss(self, log_p: Array) -> Array:
        """Computes the loss from log P [...] → [...]; see `floor_loss`."""
        return floor_loss(log_p, jnp.exp(self.log_tau))


class Mixture(NamedTuple):
    """f(P) = P + τ.

    Attributes:
      log_tau: log τ, at most 0.
    """

    log_tau: Array

    def log_weight(self, log_p: Array) -> Array:
        """Computes log f(P) from log P [...] → [...]; f(0) = 0, as the direction of ∇ log P is then unknown."""
        return jnp.where(log_p > -jnp.inf, jnp.logaddexp(log_p, self.log_tau), -jnp.inf)

    def log_ratio(self, log_u: Array, log_s: Array) -> Array:
        """Computes log f(s u) − log f(s) for log u, log s [...], accurately even if |log u| ≪ |log s|."""
        start = self.log_tau - log_s
        return jnp.where(log_u > -jnp.inf, jnp.logaddexp(log_u, start) - jnp.logaddexp(0.0, start), -jnp.inf)

    def local_q(self, log_p: Array) -> Array:
        """Computes 1 − d log f/d log P from log P [...] → [...], which is τ/(P + τ)."""
        return jax.nn.sigmoid(self.log_tau - log_p)

    def curvature(self, log_p: Array) -> Array:
        """Computes P² h''/(2 h) of h = f/P → [...], which is also τ/(P + τ)."""
        return self.local_q(log_p)

    def loss(self, log_p: Array) -> Array:
        """Computes the loss from log P [...] → [...]; see `mixture_loss`."""
        return mixture_loss(log_p, jnp.exp(self.log_tau))


Commitment = Power | Floor | Mixture


def make_commitment(name: str, *, q: ArrayLike = 0.0, tau: ArrayLike = 1.0) -> Commitment:
    """Makes a commitment by name; power uses q, floor and mixture use tau in (0, 1]. Both may be traced.

    Raises:
      UserError: there is no commitment of that name.
    """
    if require_choice("commitment", name, COMMITMENTS) == "power":
        return Power(as_float(q))
    log_tau = jnp.log(as_float(tau))
    return Floor(log_tau) if name == "floor" else Mixture(log_tau)


def floor_loss(log_p: ArrayLike, tau: ArrayLike) -> Array:
    """Computes 1 − P where P ≥ τ and 1 − τ + τ ln(τ/P) below, whose gradient is −max(P, τ) ∇ log P.

    This is Huber's idea in P: the derivative is continuous at τ.

    Args:
      log_p: any shape; log P. −inf gives infinity.
      tau: in (0, 1], broadcastable to log_p; may be traced. At 1 this is −ln P.
    """
    log_p, tau = as_float(log_p), as_float(tau)
    log_tau = jnp.log(tau)
    above = tsallis_loss(jnp.maximum(log_p, log_tau), 0.0)  # not expm1, for its derivative: see `tsallis_loss`
    return above + tau * jnp.maximum(log_tau - log_p, 0.0)


def mixture_loss(log_p: ArrayLike, tau: ArrayLike) -> Array:
    """Computes 1 − P − τ ln P, whose gradient is −(P + τ) ∇ log P.

    Args:
      log_p: any shape; log P. −inf gives infinity.
      tau: above 0, broadcastable to log_p; may be traced.
    """
    log_p = as_float(log_p)
    return tsallis_loss(log_p, 0.0) - as_float(tau) * log_p


def _times(a: Array, log_x: Array) -> Array:
    """Computes a log x for a ≥ 0, with log 0 = −∞ kept where a = 0."""
    finite = log_x > -jnp.inf
    return jnp.where(finite, a * jnp.where(finite, log_x, 0.0), -jnp.inf)
