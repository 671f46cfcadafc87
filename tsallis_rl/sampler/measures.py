"""Measures rationales and sampled answers from the record of rollouts, cheaply enough for every step.

How different a prompt's rationales are, how long they are, and how sure the model was of their tokens.
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
      is_first: whether no earlier rollout of the prompt has the same rationale, token for token as it was sampled, its
        end included.
      rationale_length: tokens up to and including the one that closed the rationale.
      rationale_tokens: sampled tokens of the rationale; forced ones are not counted.
      rationale_nats: the sum of −log p of these, at temperature 1 whatever they were sampled at.
      answer_tokens: sampled tokens of the answer; 0 where the gold answer was scored.
      answer_nats: the sum of −log p of these.
      log_w: log p(gold answer) behind the rationale.
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
    """Counts and sums the tokens of rollouts [P, M, T] → [P, M] each, and tells which rationales repeat."""
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
    """Finds for each of a prompt's rollouts the first with the same fields: [P, M, …] each → its index [P, M]."""
    shape = fields[0].shape[:2]

    def same_as(m: Array) -> Array:
        """Compares each prompt's rollouts with its m-th one: → [P, M]."""
        equal = [x == jax.lax.dynamic_slice_in_dim(x, m, 1, axis=1) for x in fields]
        return functools.reduce(jnp.logical_and, [x.reshape(*shape, -1).all(-1) for x in equal])

    return jax.lax.map(same_as, jnp.arange(shape[1])).argmax(axis=0)


def rationale_figures(measures: Measures) -> dict[str, float]:
    """Computes the figures to log of measures on the host.

    Returns:
      unique_rationales: the share of rollouts whose rationale no earlier one of the prompt has; 1/M where all of a
        prompt's are the same.
      rationale_length, _p10, _median, _p90: tokens, the one that closed it included.
      rationale_token_entropy, answer_token_entropy: the mean of −log p over the sampled tokens, nats a token. It
        estimates, from these tokens alone, the entropy of the model's next token. Of tokens that were sampled at
        another temperature than 1, or by a truncation, it is the cross-entropy of that distribution to the model's.
        NaN where no token was sampled; that of answers is left out where no answer was.
      rationale_spread: the standard deviation of log w over the different rationales of a prompt, nats, the mean over
        prompts that have several with weight; NaN where none has. Near 0 it makes no difference what rationales say.
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
    """Computes the figures to log of lengths in tokens: name, and name_p10, _median, _p90; NaN of none."""
    quantiles = np.quantile(lengths, [0.1, 0.5, 0.9]) if lengths.size else [float("nan")] * 3
    return {
        name: float(lengths.mean()) if lengths.size else float("nan"),
        **{f"{name}_{of}": float(x) for of, x in zip(("p10", "median", "p90"), quantiles, strict=True)},
    }


def _mean(nats: np.ndarray, tokens: np.ndarray) -> float:
    """Computes the mean over all tokens; NaN without any."""
    return float(nats.sum(dtype=np.float64) / tokens.sum()) if tokens.any() else float("nan")


def _spread(log_w: np.ndarray, is_first: np.ndarray) -> float:
    """Computes the mean over prompts of the standard deviation of log_w [P, M] where `is_first` and log_w is finite."""
    counted = is_first & np.isfinite(log_w)
    several = counted.sum(1) > 1
    spreads = [row[these].std() for row, these in zip(log_w[several], counted[several], strict=True)]
    return float(np.mean(spreads)) if spreads else float("nan")
