"""Commitments f(P) in numpy and float64, sharing no code with the estimators, and what follows from f alone.

The gradient flow of P = σ(θ) is dP/dt = f(P) P (1−P)². With wrong labels it comes to rest where ε h(c) = (1−ε) h(1−c);
h(P) = f(P)/P is the factor on ∇P (docs/method.md §2, §8).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Commitment(NamedTuple):
    """A commitment f(P), the factor on ∇ log P.

    Attributes:
      function: f, elementwise on an array.
      kinks: where f or its slope jumps; quadrature splits its interval there.
    """

    function: Callable[[np.ndarray], np.ndarray]
    kinks: tuple[float, ...] = ()

    def of(self, p: float | np.ndarray) -> np.ndarray:
        """Computes f(P)."""
        return self.function(np.asarray(p, np.float64))

    def amplification(self, p: float | np.ndarray) -> np.ndarray:
        """Computes h(P) = f(P)/P."""
        return self.of(p) / p


def power(q: float) -> Commitment:
    """Makes f(P) = P^(1−q)."""
    return Commitment(lambda p: p ** (1 - q))


def floor(tau: float) -> Commitment:
    """Makes f(P) = max(P, τ)."""
    return Commitment(lambda p: np.maximum(p, tau), (tau,))


def mixture(tau: float) -> Commitment:
    """Makes f(P) = P + τ."""
    return Commitment(lambda p: p + tau)


def steps(edges: np.ndarray, values: np.ndarray) -> Commitment:
    """Makes the step function f with values [N] between edges [N + 1], constant beyond them."""

    def function(p: np.ndarray) -> np.ndarray:
        return values[np.clip(np.searchsorted(edges, p, side="right") - 1, 0, len(values) - 1)]

    return Commitment(function, tuple(edges))


def fastest(contamination: float, rate: float) -> Commitment:
    """Makes the largest nondecreasing f ≤ 1 with this contamination c at a wrong share ε of two labels.

    Above c it is min(1, (1−ε)/ε · P/(1−P)), the most that does not let contamination rise there; below c it keeps its
    value at c. Where it is below 1 it is a thousandth less, so that contamination does fall.
    """
    odds = 0.999 * (1 - rate) / rate

    def function(p: np.ndarray) -> np.ndarray:
        p = np.maximum(p, contamination)
        return np.minimum(1.0, odds * p / np.maximum(1 - p, 1e-300))

    return Commitment(function, (contamination, rate))


def escape_time(f: Commitment, p0: float, target: float = 0.5) -> float:
    """Integrates ∫_{p0}^{target} du / (f(u) u (1−u)²), by Gauss–Legendre quadrature in log u between kinks."""
    nodes, node_weights = np.polynomial.legendre.leggauss(40)
    inside = [kink for kink in f.kinks if p0 < kink < target]
    edges = np.unique(np.concatenate([np.linspace(np.log(p0), np.log(target), 41), np.log(inside)]))
    half = np.diff(edges)[:, None] / 2
    u = np.exp(edges[:-1, None] + half * (nodes + 1))
    return float((half * node_weights / (f.of(u) * (1 - u) ** 2)).sum())


def floor_escape_time(tau: float, p0: float) -> float:
    """Computes the leading order of the floor's escape from p0 to 1/2: (1 + ln(τ/p0))/τ below τ, 1/p0 above."""
    return float((1 + np.log(tau / p0)) / tau if p0 < tau else 1 / p0)


def mixture_escape_time(tau: float, p0: float) -> float:
    """Computes the leading order of the mixture's escape from p0 to 1/2: ln(1 + τ/p0)/τ."""
    return float(np.log1p(tau / p0) / tau)


def pull(f: Commitment, c: np.ndarray, rate: float, labels: int = 1) -> np.ndarray:
    """Computes (ε/K) h(c/K) − (1−ε) h(1−c), whose sign is that of dc/dt: K wrong labels share ε and c equally."""
    return rate / labels * f.amplification(c / labels) - (1 - rate) * f.amplification(1 - c)


def rest_points(f: Commitment, rate: float, labels: int = 1) -> np.ndarray:
    """Finds every contamination c in (0, 1) at which the flow changes sign, in rising order → [rest points]."""
    ends = np.concatenate([np.geomspace(1e-25, 0.5, 6000), 1 - np.geomspace(0.5, 1e-12, 2000)[1:]])
    sign = pull(f, ends, rate, labels) > 0
    found = []
    for i in np.flatnonzero(sign[1:] != sign[:-1]):
        low, high = ends[i], ends[i + 1]
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if (pull(f, middle, rate, labels) > 0) == sign[i] else (low, middle)
        found.append(high)
    return np.array(found)


def rest(f: Commitment, rate: float, labels: int = 1) -> float:
    """Finds where contamination comes to rest if all labels start equally likely; 0 if it vanishes."""
    points = rest_points(f, rate, labels)
    below = points[points < labels / (labels + 1)]
    return float(below[-1]) if len(below) else 0.0


def power_rest(q: float, rate: float, labels: int = 1) -> float:
    """Computes the power's contamination r/(1+r), r = K (ε/(K (1−ε)))^(1/q)."""
    odds = labels * (rate / (labels * (1 - rate))) ** (1 / q)
    return odds / (1 + odds)


def floor_rest(tau: float, rate: float) -> float:
    """Computes the floor's contamination, for any number of wrong labels: τ ε/(1−ε), at most ε."""
    return min(tau / (1 - rate), 1.0) * rate


def mixture_rest(tau: float, rate: float, labels: int = 1) -> float:
    """Computes the mixture's contamination: the smaller root of b c² − (b + τ) c + τ ε, b = 1 − ε − ε/K."""
    b = 1 - rate - rate / labels
    return 2 * tau * rate / (b + tau + ((b + tau) ** 2 - 4 * b * tau * rate) ** 0.5)


def least_escape_time(contamination: float, rate: float, p0: float, labels: int = 1) -> float:
    """Bounds from below the escape time of every nondecreasing f ≤ f(1) = 1 with at most this contamination.

    The bound is (1−c) ln(c/(K p0))/τ(c), τ(c) = c (1−ε)/ε, for K wrong labels that share ε (docs/method.md §8).
    """
    tau = contamination * (1 - rate) / rate
    return float(np.log(contamination / (labels * p0)) * (1 - contamination) / tau)


def schedule_time(contamination: float, rate: float, p0: float) -> float:
    """Computes the time of q = 1 until P is 1/2, then of q = 0 until contamination falls from ε to the given value."""

    def antiderivative(u: float) -> float:  # of 1/(u² (1−u)²)
        return 2 * np.log(u / (1 - u)) - 1 / u + 1 / (1 - u)

    falling = (antiderivative(rate) - antiderivative(contamination)) / (1 - 2 * rate)
    return escape_time(power(1.0), p0) + float(falling)
