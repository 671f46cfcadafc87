"""Diagnostics of a step, from its log-weights alone or from the optimiser's state alone."""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.commitments import make_commitment
from tsallis_rl.objectives.likelihood import scale_by_largest
from tsallis_rl.objectives.log_weights import log_mean, mask_unusable


def diagnostics(log_w: ArrayLike, q: ArrayLike, *, commitment: str = "power", tau: ArrayLike = 1.0) -> dict[str, Array]:
    """Measures a batch of groups: log_w [..., M] → scalars, cheap enough for every step.

    Means are over groups with weight.

    Args:
      log_w: [..., M].
      q: commitment, a scalar or broadcastable to log_w.shape[:-1]; used only by the power.
      commitment: which f, see `commitments`.
      tau: used by floor and mixture.

    Returns:
      q: 1 − d log f/d log P at P̂, mean over all groups: the power's own q, or for floor and mixture the q of the power
        that f resembles near P̂.
      loss: the commitment's loss at P̂, mean over all groups.
      log_p_hat_mean, _p10, _median, _p90: statistics of log P̂ = log w̄, in nats; NaN if no group has weight, since 0
        would say that all are solved. Other means over groups with weight are then 0.
      effective_sample_size: (Σw)²/Σw², from 1 to M.
      unique_draws: expected number of different indices in M independent draws ∝ w, Σ_m 1 − (1 − p_m)^M; rollouts with
        the same text count as different.
      max_advantage: the largest c_m/M^q, with c_m = w_m/w̄^q − w̄_¬m^(1−q); at most 1 where w ≤ 1 (the paper's figure
        3). For floor and mixture, the largest c_m = f(w̄) w_m/w̄ − f(w̄_¬m), at most M f(1/M).
      negative_share, negative_mass: share of the c_m that are negative, and their share of Σ|c_m|.
      leading_bias: first term of the plug-in's bias relative to the loss's gradient (docs/method.md §3 and §8); for the
        power q(q+1)/2 · Var(w)/(M w̄²).
      dead_groups: groups in which no rollout has weight.
      nan_weights: log-weights that were NaN and counted as w = 0.
    """
    nan_weights = jnp.isnan(log_w).sum()
    log_w = mask_unusable(log_w)
    m = log_w.shape[-1]
    q = jnp.broadcast_to(jnp.asarray(q, log_w.dtype), log_w.shape[:-1])
    log_w, q = log_w.reshape(-1, m), q.reshape(-1)

    followed = make_commitment(commitment, q=q, tau=tau)
    log_p_hat = log_mean(log_w)
    alive = log_p_hat > -jnp.inf
    groups = jnp.maximum(alive.sum(), 1)

    def over_groups(x: Array) -> Array:
        return jnp.where(alive, x, 0.0).sum() / groups

    p = jnp.exp(log_w - jnp.where(alive, log_p_hat, 0.0)[:, None]) / m
    ess = 1.0 / jnp.where(alive, (p**2).sum(-1), 1.0)
    measured = jnp.where(alive, log_p_hat, jnp.nan)
    quantiles = jnp.nanquantile(measured, jnp.array([0.1, 0.5, 0.9]))
    group = scale_by_largest(log_w, followed, normalize=True)
    plug_in = group.plug_in()
    expected = group.without_each() if m > 1 else jnp.zeros_like(plug_in)
    # With equal weights only rounding is left, which must not count as positive or negative.
    rounding = 32 * jnp.finfo(log_w.dtype).eps * (plug_in + expected)
    # Each group's c_m in units of f of its largest weight: in absolute units, those of small weights would all be 0.
    centred = jnp.where(jnp.abs(plug_in - expected) > rounding, plug_in - expected, 0.0)
    largest = group.log_factor.max()
    sizes = jnp.abs(centred) * jnp.exp(group.log_factor - jnp.where(largest > -jnp.inf, largest, 0.0))
    return {
        "q": followed.local_q(log_p_hat).mean(),
        "loss": followed.loss(log_p_hat).mean(),
        "log_p_hat_mean": jnp.nanmean(measured),
        **{f"log_p_hat_{name}": x for name, x in zip(("p10", "median", "p90"), quantiles, strict=True)},
        "effective_sample_size": over_groups(ess),
        "unique_draws": over_groups(-jnp.expm1(m * jnp.log1p(-jnp.minimum(p, 1.0))).sum(-1)),
        "max_advantage": (group.factor * centred).max(),
        "negative_share": (centred < 0).mean(),
        "negative_mass": jnp.where(centred < 0, sizes, 0.0).sum() / jnp.where(sizes.sum() > 0, sizes.sum(), 1.0),
        "leading_bias": over_groups(followed.curvature(log_p_hat) * (m / ess - 1) / max(m - 1, 1)),
        "dead_groups": (~alive).sum(),
        "nan_weights": nan_weights,
    }


def below_eps(opt_state: optax.OptState, *, b2: ArrayLike, eps: ArrayLike) -> Array:
    """Computes the share of parameters whose Adam √v̂ is below eps.

    It says whether the commitment's effect on the size of gradients reaches the update. Adam divides by √v̂ + eps. Where
    √v̂ dominates, a gradient's size cancels, and the commitment's effect on it too; where eps does, the size counts.

    Args:
      opt_state: the state of a chain that contains one Adam.
      b2: Adam's decay of v; v̂ = v/(1 − b2^count).
      eps: Adam's eps.
    """

    def is_adam(x: object) -> bool:
        return isinstance(x, optax.ScaleByAdamState)

    (adam,) = filter(is_adam, jax.tree.leaves(opt_state, is_leaf=is_adam))
    correction = 1.0 - jnp.asarray(b2, jnp.float32) ** jnp.maximum(adam.count, 1)  # before the first update v = 0
    leaves = jax.tree.leaves(adam.nu)
    small = sum(jnp.sum(jnp.sqrt(v / correction) < eps, dtype=jnp.float32) for v in leaves)
    return small / sum(v.size for v in leaves)
