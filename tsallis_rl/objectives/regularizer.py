"""Rewards of a rollout besides its answer's: KL to a reference, entropy, length (docs/method.md §3).

A reward R_m that is known once rollout m is sampled adds (R_m − mean of the other R)/M to its coefficients. In
expectation this is the gradient of E[R], since the others' mean is independent of rollout m. Where R contains log p
itself, R's own derivative would add a multiple of E[∇ log p] = 0, so the gradient is exact although R is a constant.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.form import Coefficients, centred
from tsallis_rl.objectives.log_weights import as_float

TERMS = ("kl", "entropy", "length")


def regularizer_terms(settings: Mapping[str, float]) -> dict[str, Array]:
    """Selects the terms of a config's regularizer section that are on, as scalars to trace; {} if none is on.

    `length` also selects min_length. Changing a number compiles nothing new.
    """
    names = [name for name in TERMS if settings[name]]
    names += ["min_length"] if "length" in names else []
    return {name: jnp.float32(settings[name]) for name in names}


def regularize(
    terms: Mapping[str, Array | float],
    *,
    log_prob: ArrayLike,
    length: ArrayLike,
    log_ratio: ArrayLike | None = None,
    sampled_answers: bool = False,
) -> tuple[Coefficients, dict[str, Array]]:
    """Computes the terms to add to the coefficients [..., M] of any estimator, and their means to log.

    R_m = −kl · log p/p_ref − entropy · log p(z_m) − length · max(0, 1 − |z_m|/min_length). It does not depend on
    weights: a rollout whose log-weight is −inf gets it too, and no factor 1/M^q multiplies it.

    Args:
      terms: the terms that are on; see `regularizer_terms`.
      log_prob: [..., M] log p(z_m | x) of the rationale's sampled tokens.
      length: [..., M] |z_m|, the number of these tokens.
      log_ratio: [..., M] log p − log p_ref of the rationale, and of its answer if `sampled_answers`; needed for `kl`.
      sampled_answers: whether the policy sampled the answers: the KL's coefficient then multiplies their
        log-probability too.

    Returns:
      Coefficients, whose path is 0 except for the KL of sampled answers; and scalars: kl, nats per rollout;
      sequence_entropy, nats per rationale; length_shortfall, the mean of max(0, 1 − |z|/min_length).

    Raises:
      UserError: M = 1.
    """
    log_prob = as_float(log_prob)
    of_rationale, of_both, measured = jnp.zeros_like(log_prob), jnp.zeros_like(log_prob), {}
    if "kl" in terms:
        assert log_ratio is not None, "kl needs it"
        ratio = as_float(log_ratio)
        of_both = -terms["kl"] * ratio
        measured["kl"] = ratio.mean()
    if "entropy" in terms:
        of_rationale -= terms["entropy"] * log_prob
        measured["sequence_entropy"] = -log_prob.mean()
    if "length" in terms:
        shortfall = jnp.maximum(0.0, 1.0 - jnp.asarray(length, log_prob.dtype) / terms["min_length"])
        of_rationale -= terms["length"] * shortfall
        measured["length_shortfall"] = shortfall.mean()
    path = _leave_one_out(of_both) if sampled_answers else jnp.zeros_like(log_prob)
    return Coefficients(_leave_one_out(of_rationale + of_both), path), measured


def _leave_one_out(rewards: Array) -> Array:
    """Computes (R_m − mean of the others)/M from rewards [..., M], a constant to differentiation."""
    return jax.lax.stop_gradient(centred(rewards, "regularizer") / (rewards.shape[-1] - 1))
