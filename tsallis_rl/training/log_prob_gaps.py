"""Measures how far the learner's log-probabilities are from those that the sampler recorded, token by token.

Each device counts its own prompts' tokens above fixed edges, so that nothing is sent between devices inside an update.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Nats, from 1e-7 to 28, each 5% above the one before: quantiles are known to 5%.
EDGES = (1e-7 * 1.05 ** np.arange(400)).astype(np.float32)
EDGES_AT_ONCE = 20


class Gaps(NamedTuple):
    """The gaps of P prompts' tokens, in nats.

    Attributes:
      largest: [P].
      total: [P] their sum.
      tokens: [P] how many there are.
      above: [P, edges] how many are at or above each of EDGES.
    """

    largest: Array
    total: Array
    tokens: Array
    above: Array

    def plus(self, other: "Gaps") -> "Gaps":
        """Adds the gaps of other tokens, prompt by prompt."""
        return Gaps(
            largest=jnp.maximum(self.largest, other.largest),
            total=self.total + other.total,
            tokens=self.tokens + other.tokens,
            above=self.above + other.above,
        )


def no_gaps(prompts: int) -> Gaps:
    """Returns the gaps of P prompts without a token."""
    zeros, none = jnp.zeros(prompts, jnp.float32), jnp.zeros(prompts, jnp.int32)
    return Gaps(largest=zeros, total=zeros, tokens=none, above=jnp.zeros((prompts, len(EDGES)), jnp.int32))


def count_gaps(gaps: Array, counted: Array) -> Gaps:
    """Counts the gaps [P, T] of the tokens that are counted [P, T]."""
    gaps = jnp.where(counted, gaps, 0.0)

    def above(edges: Array) -> Array:
        return (gaps[:, None] >= edges[:, None]).sum(2, dtype=jnp.int32)

    # A few edges at a time, since a CPU materialises what is summed.
    parts = jax.lax.map(above, jnp.reshape(EDGES, (-1, EDGES_AT_ONCE)))
    return Gaps(
        largest=gaps.max(1),
        total=gaps.sum(1),
        tokens=counted.sum(1, dtype=jnp.int32),
        above=parts.swapaxes(0, 1).reshape(len(gaps), len(EDGES)),
    )


def gap_figures(gaps: Gaps) -> dict[str, float]:
    """Computes the figures to log of gaps on the host: mean, 99th percentile (at most 5% too high) and largest.

    A NaN shows in the mean and the largest; without tokens all are 0.
    """
    tokens = max(int(gaps.tokens.sum()), 1)
    most = float(gaps.largest.max(initial=0.0))
    fewer = gaps.above.sum(0) <= 0.01 * tokens
    edge = float(EDGES[fewer.argmax()]) if fewer.any() else most
    return {
        "log_prob_gap_mean": float(gaps.total.sum()) / tokens,
        "log_prob_gap_p99": min(edge, most),
        "log_prob_gap": most,
    }
