"""Estimators whose reward is computed from the gold answer's likelihood, but not as in GARL (docs/method.md §10).

All return Coefficients [..., M], constants to differentiation. A rollout whose log-weight is −inf or NaN has w = 0 and
still counts in the means; a group without any weight gets zeros (`rlpr` reads probabilities instead).
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.form import Coefficients, centred, constant, require_two_rollouts
from tsallis_rl.objectives.likelihood import garl
from tsallis_rl.objectives.log_weights import as_float, log_loo_mean, log_mean, lowest_for_unusable, mask_unusable
from tsallis_rl.objectives.rewards import standardised


def garl_per_token(
    log_w: ArrayLike,
    gold_length: ArrayLike,
    q: ArrayLike,
    *,
    baseline: str = "loo",
    correction: str = "none",
    path_weight: ArrayLike = 1.0,
    normalize: bool = True,
) -> Coefficients:
    """Computes GARL on u = w^(1/L), the geometric mean of the gold tokens' probabilities: log_w [..., M] → [..., M].

    This is the gradient of −log_q E u. ∇u is u/L ∇ log w, so the path coefficients are those of GARL divided by L.

    Args:
      log_w: [..., M].
      gold_length: [..., M] L, tokens of the gold answer, its end included.
      q: commitment, a scalar or broadcastable to log_w.shape[:-1].
      baseline: "loo" or "none"; for this and the options below, see `likelihood.garl`.
      correction: "jackknife" or "none".
      path_weight: multiplies the path coefficients.
      normalize: multiply by 1/M^q.

    Raises:
      UserError: M = 1 with baseline "loo" or the jackknife; an unknown baseline or correction.
    """
    length = jnp.maximum(as_float(gold_length), 1.0)
    scaled = mask_unusable(log_w) / length
    score, path = garl(
        scaled, q, baseline=baseline, correction=correction, path_weight=path_weight, normalize=normalize
    )
    return Coefficients(score, path / length)


def jepo(log_w: ArrayLike, *, path_weight: ArrayLike = 1.0) -> Coefficients:
    """Computes the gradient of the M-sample bound E log w̄ of log P: log_w [..., M] → [..., M] (arXiv 2503.19618).

    A rationale's score is what it adds: log w̄ minus log w̄ of the others. Where the others have no weight, there is
    nothing to compare with, and the score is 0.

    Raises:
      UserError: M = 1.
    """
    log_w = mask_unusable(log_w)
    require_two_rollouts("baseline='loo' (jepo has no other)", log_w.shape[-1])
    top = log_w.max(-1, keepdims=True)
    relative = jnp.where(top > -jnp.inf, log_w - jnp.where(top > -jnp.inf, top, 0.0), 0.0)  # exact where log w is −10⁴
    others = log_loo_mean(relative)
    has_others = others > -jnp.inf
    score = jnp.where(has_others, log_mean(relative)[..., None] - jnp.where(has_others, others, 0.0), 0.0)
    return _zero_without_weight(log_w, score, path_weight * jax.nn.softmax(relative, axis=-1))


def latro(
    log_w: ArrayLike, log_ratio: ArrayLike, *, kl: ArrayLike = 0.05, path_weight: ArrayLike = 1.0
) -> Coefficients:
    """Computes the gradient of E log p(y*|x,z) − kl · KL(p(z|x) ‖ p_ref(z|x)): log_w [..., M] → [..., M].

    LaTRO, arXiv 2411.04282: the reward log w_m − kl · log(p(z_m)/p_ref(z_m)) minus its mean over the others. A rollout
    with w = 0 gets the group's lowest usable log w, as in `likelihood.log_likelihood`.

    Args:
      log_w: [..., M].
      log_ratio: [..., M] log p(z|x) − log p_ref(z|x), of a fixed reference.
      kl: factor of the KL; at 0 this is `likelihood.log_likelihood`.
      path_weight: multiplies the path coefficients.

    Raises:
      UserError: M = 1.
    """
    log_w, log_ratio = mask_unusable(log_w), as_float(log_ratio)
    m, has_weight = log_w.shape[-1], log_w > -jnp.inf
    reward = lowest_for_unusable(log_w) - kl * jnp.where(jnp.isfinite(log_ratio), log_ratio, 0.0)
    score = centred(reward, "baseline='loo' (latro has no other)") / (m - 1)
    return _zero_without_weight(log_w, score, path_weight * has_weight / m)


def rlpr_rewards(gold_prob: ArrayLike, gold_prob_without: ArrayLike) -> Array:
    """Computes RLPR's rewards max(0, mean_t p_t with the rationale − without one): [..., M], [..., M] → [..., M]."""
    gain = as_float(gold_prob) - as_float(gold_prob_without)
    return jnp.where(gain > 0, gain, 0.0)


def rlpr(
    gold_prob: ArrayLike,
    gold_prob_without: ArrayLike,
    usual_std: ArrayLike,
    *,
    epsilon: ArrayLike = 1e-4,
    std_share: ArrayLike = 0.5,
) -> Coefficients:
    """Computes RLPR: the gold tokens' mean probability as GRPO's reward (arXiv 2506.18254) → [..., M].

    The reward does not depend on the sampled answer, so its tokens have no expected gradient. They get coefficient 0,
    and so does the path of the gold answer.

    Args:
      gold_prob: [..., M] mean probability of the gold answer's tokens after the rationale.
      gold_prob_without: [..., M] their mean probability without a rationale.
      usual_std: [..., M] moving average of the groups' standard deviations; 0 if there is none yet.
      epsilon: added to the standard deviation.
      std_share: a group whose standard deviation is below this share of the usual one is left out.

    Raises:
      UserError: M = 1.
    """
    reward = rlpr_rewards(gold_prob, gold_prob_without)
    std = reward.std(-1, keepdims=True)
    kept = (std > 0) & (std >= std_share * as_float(usual_std))
    score = jnp.where(kept, standardised(reward, epsilon), 0.0) / reward.shape[-1]
    return constant(score, jnp.zeros_like(score))


def nover(
    log_w: ArrayLike, gold_length: ArrayLike, rationale_length: ArrayLike, *, epsilon: ArrayLike = 1e-4
) -> Coefficients:
    """Computes NOVER: ranks of the gold answer's perplexity as GRPO's rewards (arXiv 2505.16022) → [..., M].

    The perplexity is exp(−log w/(L max(1, 1 + log |z|))). Of n rollouts with weight, the best has reward 1, the next
    (n − 1)/n, the last 1/n. Equal ones share the better rank, and rollouts without weight have 0. The path coefficients
    are 0, as in `rlpr`.

    Args:
      log_w: [..., M].
      gold_length: [..., M] L, tokens of the gold answer, its end included.
      rationale_length: [..., M] |z|, tokens of the rationale.
      epsilon: added to the rewards' standard deviation.

    Raises:
      UserError: M = 1.
    """
    log_w = mask_unusable(log_w)
    length = jnp.maximum(as_float(rationale_length), 1.0)
    level = log_w / (jnp.maximum(as_float(gold_length), 1.0) * (1.0 + jnp.log(length)))  # −log of the perplexity
    has_weight = level > -jnp.inf
    better = (level[..., None, :] > level[..., :, None]).sum(-1)
    count = has_weight.sum(-1, keepdims=True)
    reward = jnp.where(has_weight, (count - better) / jnp.maximum(count, 1), 0.0).astype(log_w.dtype)
    score = standardised(reward, epsilon) / log_w.shape[-1]
    return _zero_without_weight(log_w, score, jnp.zeros_like(score))


def _zero_without_weight(log_w: Array, score: Array, path: ArrayLike) -> Coefficients:
    """Makes coefficients [..., M] that are 0 in a group without weight."""
    alive = log_w.max(-1, keepdims=True) > -jnp.inf
    return constant(*(jnp.where(alive, x, 0.0) for x in (score, path)))
