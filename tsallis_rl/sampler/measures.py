"""Measures rationales and sampled answers from the record of rollouts, cheaply enough for every step.

They show how different a prompt's rationales are, how long they are, and how sure the model was of their tokens.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl.sampler.record import Rollouts


class Measures(NamedTuple):
    """The measures of rollouts, [P, M] each.

    Attributes:
      is_first: whether no earlier rollout of the prompt has the same rationale, compared target by target, its end
        included.
      rationale_length: tokens up to and including the one that closed the rationale.
      rationale_tokens: sampled tokens of the rationale; forced ones are not counted.
      rationale_nats: −log p summed over these, at temperature 1 whatever the sampling temperature.
      answer_tokens: sampled tokens of the answer; 0 where the gold answer was scored.
      answer_nats: −log p summed over these.
      log_w: log p(gold answer) after the rationale.
    """

    is_first: Array
    rationale_length: Array
    rationale_tokens: Array
    rationale_nats: Array
    answer_tokens: Array
    answer_nats: Array
    log_w: Array


@jax.jit
def measures_of(rollouts: Rollouts) -> Measures:
    """Counts and sums the tokens of rollouts [P, M, T] → [P, M] each, and marks rationales that do not repeat."""
    length, tokens = rollouts.rationale_length, jnp.arange(rollouts.targets.shape[-1])
    rationale = jnp.where(tokens < length[..., None], rollouts.targets, -1)
    first = first_identical((rationale, length))
    of_rationale, of_answer = rollouts.score_mask, rollouts.path_mask & rollouts.sampled
    return Measures(
        is_first=first == jnp.arange(first.shape[1]),
        rationale_length=length,
        rationale_tokens=of_rationale.sum(-1),
        rationale_nats=-jnp.where(of_rationale, rollouts.log_prob, 0.0).sum(-1),
        answer_tokens=of_answer.sum(-1),
        answer_nats=-jnp.where(of_answer, rollouts.log_prob, 0.0).sum(-1),
        log_w=rollouts.log_w,
    )


def first_identical(fields: Sequence[Array]) -> Array:
    """Finds for each rollout the first of its prompt with the same fields: [P, M, …] each → its index [P, M]."""
    shape = fields[0].shape[:2]

    def same_as(m: Array) -> Array:
        """Compares each prompt's rollouts with its m-th one: → [P, M]."""
        equal = [x == jax.lax.dynamic_slice_in_dim(x, m, 1, axis=1) for x in fields]
        return functools.reduce(jnp.logical_and, [x.reshape(*shape, -1).all(-1) for x in equal])

    return jax.lax.map(same_as, jnp.arange(shape[1])).argmax(axis=0)


def rationale_figures(measures: Measures) -> dict[str, float]:
    """Computes the figures to log from measures on the host.

    Returns:
      unique_rationales: the share of rollouts whose rationale no earlier rollout of the prompt has; 1/M where all of a
        prompt's are the same.
      rationale_length, _p10, _median, _p90: tokens, including the one that closed the rationale.
      rationale_token_entropy, answer_token_entropy: the mean of −log p over the sampled tokens, nats a token. It
        estimates, from these tokens alone, the entropy of the model's next token. If they were sampled at another
        temperature than 1, or with truncation, it estimates the cross-entropy from that distribution to the model's.
        NaN where no token was sampled; answer_token_entropy is left out where no answer was.
      rationale_spread: the standard deviation of log w over a prompt's different rationales, in nats, averaged over
        prompts that have several with weight; NaN where none has. Near 0, what rationales say makes no difference.
    """
    figures = {
        "unique_rationales": float(measures.is_first.mean()),
        **length_figures("rationale_length", measures.rationale_length),
        "rationale_token_entropy": _mean(measures.rationale_nats, measures.rationale_tokens),
        "rationale_spread": _spread(measures.log_w, measures.is_first),
    }
    if measures.answer_tokens.any():
        figures["answer_token_entropy"] = _mean(measures.answer_nats, measures.answer_tokens)
    return figures


def length_figures(name: str, lengths: np.ndarray) -> dict[str, float]:
    """Computes the figures to log from lengths in tokens: name (mean), name_p10, _median, _p90; NaN for no lengths."""
    quantiles = np.quantile(lengths, [0.1, 0.5, 0.9]) if lengths.size else [float("nan")] * 3
    return {
        name: float(lengths.mean()) if lengths.size else float("nan"),
        **{f"{name}_{of}": float(x) for of, x in zip(("p10", "median", "p90"), quantiles, strict=True)},
    }


def _mean(nats: np.ndarray, tokens: np.ndarray) -> float:
    """Computes the mean over all tokens; NaN if there are none."""
    return float(nats.sum(dtype=np.float64) / tokens.sum()) if tokens.any() else float("nan")


def _spread(log_w: np.ndarray, is_first: np.ndarray) -> float:
    """Computes the mean over prompts of the standard deviation of log_w [P, M] where `is_first` and log_w is finite."""
    counted = is_first & np.isfinite(log_w)
    several = counted.sum(1) > 1
    spreads = [row[these].std() for row, these in zip(log_w[several], counted[several], strict=True)]
    return float(np.mean(spreads)) if spreads else float("nan")
