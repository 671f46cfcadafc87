"""Estimators from the likelihood of the gold answer after a rationale (docs/method.md §3).

All take log-weights [..., M] and return Coefficients [..., M], constants to differentiation. A rollout whose log-weight
is −inf or NaN has w = 0 and stays in the means; a group without any weight gets zeros.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.form import Coefficients, require_choice, require_two_rollouts
from tsallis_rl.objectives.log_weights import log_loo_mean, log_mean, mask_unusable, power, scale_by_largest
from tsallis_rl.objectives.resampling import RESAMPLING
from tsallis_rl.runs.errors import UserError


def garl(
    log_w: ArrayLike,
    q: ArrayLike,
    *,
    baseline: str = "loo",
    correction: str = "none",
    path_weight: ArrayLike = 1.0,
    normalize: bool = True,
) -> Coefficients:
    """Computes gradient-amplified RL: log_w [..., M] → [..., M].

    The RL gradient times P̂^(−q). Algorithm 1 of arXiv 2604.25907; docs/method.md §3.

    Args:
      log_w: [..., M].
      q: commitment, a scalar or broadcastable to log_w.shape[:-1].
      baseline: "loo" subtracts w̄_¬m^(1−q) from the score; "none" is the plug-in estimator.
      correction: "jackknife" removes the plug-in's O(1/M) bias; "none" leaves it.
      path_weight: multiplies the path coefficients; 0 is the ablation that trains the rationale alone. A
        user's name: it is a factor, not a weight w.
      normalize: multiply by 1/M^q, as Algorithm 1 does.

    Raises:
      UserError: M = 1 with a leave-one-out quantity; an unknown baseline or correction.
      ValueError: log_w has no axis of rollouts, or q more axes than groups have.
    """
    require_choice("baseline", baseline, ("loo", "none"))
    require_choice("correction", correction, ("none", "jackknife"))
    scaled = scale_by_largest(log_w, q, normalize=normalize)
    log_w, q, factor = scaled.log_w, scaled.q, scaled.factor
    m = log_w.shape[-1]
    plug_in = jnp.exp(log_w - q * log_mean(log_w)[..., None])
    if correction == "jackknife":
        require_two_rollouts("correction='jackknife'", m)
        plug_in = _jackknife(log_w, plug_in, q)
    expected = 0.0
    if baseline == "loo":
        require_two_rollouts("baseline='loo'", m)
        expected = power(log_loo_mean(log_w), 1.0 - q)
    return _constant(factor / m * (plug_in - expected), path_weight * factor / m * plug_in)


def paft(
    key: Array,
    log_w: ArrayLike,
    q: ArrayLike,
    *,
    num_draws: int | None = None,
    resampling: str = "categorical",
    normalize: bool = True,
) -> Coefficients:
    """Computes posterior-attenuated fine-tuning: log_w [..., M] → [..., M].

    SFT on rationales resampled ∝ w, times P̂^(1−q). Algorithm 2 of arXiv 2604.25907; docs/method.md §3.

    Args:
      key: typed keys of shape log_w.shape[:-1], one per group; or one key, which groups split by their index.
      log_w: [..., M].
      q: commitment, a scalar or broadcastable to log_w.shape[:-1].
      num_draws: rollouts drawn; None or 0 means M.
      resampling: categorical, systematic or residual.
      normalize: multiply by 1/M^q, as Algorithm 2 does.

    Raises:
      UserError: an unknown resampling; a negative num_draws.
      ValueError: log_w has no axis of rollouts, q more axes than groups have, or keys are not one per group.
    """
    draw = RESAMPLING[require_choice("resampling", resampling, tuple(RESAMPLING))]
    scaled = scale_by_largest(log_w, q, normalize=normalize)
    log_w, q, factor = scaled.log_w, scaled.q, scaled.factor
    *groups, m = log_w.shape
    if key.shape not in ((), tuple(groups)):
        raise ValueError(f"keys have shape {key.shape}: expected one key, or one per group, {tuple(groups)}")
    if (num_draws := num_draws or m) < 0:
        raise UserError(f"estimator option num_draws={num_draws}: choose 0 for as many as rollouts, or more")
    if key.ndim == 0 and groups:
        count = jnp.arange(log_w.size // m).reshape(groups)
        key = jnp.vectorize(lambda i: jax.random.fold_in(key, i))(count)
    draw_groups = jnp.vectorize(lambda k, p: draw(k, p, num_draws), signature="(),(m)->(m)")
    counts = draw_groups(key, jax.nn.softmax(log_w, axis=-1))
    share = factor * power(log_mean(log_w)[..., None], 1.0 - q) * counts / num_draws
    return _constant(share, share)


def _constant(score: Array, path: Array) -> Coefficients:
    return Coefficients(jax.lax.stop_gradient(score), jax.lax.stop_gradient(path))


def _jackknife(log_w: Array, plug_in: Array, q: Array) -> Array:
    """Computes M times the coefficient of ∇ log p(z_m, y* | x) in the jackknifed plug-in, whose bias is O(1/M²).

    The plug-in Ĝ is a smooth function of two means, so M Ĝ − (M−1) (mean of Ĝ without rollout j) loses the 1/M term.
    Collected by rollout, that is w_m (M w̄^(−q) − Σ_{j≠m} w̄_¬j^(−q)): negative where one other rollout outweighs
    all the rest, so that leaving it out leaves little.
    """
    m = log_w.shape[-1]
    without = log_loo_mean(log_w)
    without = jnp.where(without > -jnp.inf, without, 0.0)  # where w̄_¬j = 0, so is every w_m with m ≠ j
    terms = jnp.exp(log_w[..., :, None] - q[..., None] * without[..., None, :])
    return m * plug_in - jnp.where(jnp.eye(m, dtype=bool), 0.0, terms).sum(-1)


def rb_reinforce(log_w: ArrayLike, *, path_weight: ArrayLike = 1.0) -> Coefficients:
    """Computes REINFORCE with the answer summed out (Rao-Blackwell): GARL plug-in at q = 0."""
    return garl(log_w, 0.0, baseline="none", path_weight=path_weight)


def rb_rloo(log_w: ArrayLike, *, path_weight: ArrayLike = 1.0) -> Coefficients:
    """Computes RLOO with the answer summed out, as in VeriFree (arXiv 2505.21493): GARL at q = 0."""
    return garl(log_w, 0.0, path_weight=path_weight)


def iwae(log_w: ArrayLike, *, path_weight: ArrayLike = 1.0, normalize: bool = True) -> Coefficients:
    """Computes the importance-weighted bound's gradient (arXiv 1509.00519): GARL plug-in at q = 1."""
    return garl(log_w, 1.0, baseline="none", path_weight=path_weight, normalize=normalize)


def em(
    key: Array,
    log_w: ArrayLike,
    *,
    num_draws: int | None = None,
    resampling: str = "categorical",
    normalize: bool = True,
) -> Coefficients:
    """Computes Monte Carlo EM, as TRICE's E-step without control variate (arXiv 2312.02179): PAFT at q = 1."""
    return paft(key, log_w, 1.0, num_draws=num_draws, resampling=resampling, normalize=normalize)


def log_likelihood(log_w: ArrayLike, *, path_weight: ArrayLike = 1.0) -> Coefficients:
    """Computes the gradient of E_z log p(y*|x,z), Jensen's lower bound of log P (JEPO, arXiv 2503.19618).

    The reward of a rationale is log w_m, its baseline the mean over the others. A rollout with w = 0, whose reward
    would be −∞, gets the group's lowest usable one, so that it is discouraged without drowning the others.

    Raises:
      UserError: M = 1.
    """
    log_w = mask_unusable(log_w)
    m = log_w.shape[-1]
    require_two_rollouts("baseline='loo' (log_likelihood has no other)", m)
    has_weight = log_w > -jnp.inf
    lowest = jnp.where(has_weight, log_w, jnp.inf).min(-1, keepdims=True)
    reward = jnp.where(has_weight, log_w, jnp.where(lowest < jnp.inf, lowest, 0.0))
    score = (reward - reward.mean(-1, keepdims=True)) / (m - 1)
    return _constant(score, path_weight * has_weight / m)


def sft(log_w: ArrayLike) -> Coefficients:
    """Computes supervised fine-tuning on (x*, y*) without rationale; all rollouts are the same, each is 1/M."""
    log_w = mask_unusable(log_w)
    return _constant(jnp.zeros_like(log_w), jnp.full_like(log_w, 1.0 / log_w.shape[-1]))
