"""Estimators from the likelihood of the gold answer after a rationale (docs/method.md §3).

All take log-weights [..., M] and return Coefficients [..., M], constants to differentiation. A rollout whose log-weight
is −inf or NaN has w = 0 and still counts in the means; a group without any weight gets zeros, except from `sft`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.commitments import Commitment, Power, make_commitment
from tsallis_rl.objectives.form import Coefficients, centred, constant, require_choice, require_two_rollouts
from tsallis_rl.objectives.log_weights import log_loo_mean, log_mean, lowest_for_unusable, mask_unusable
from tsallis_rl.objectives.resampling import RESAMPLING
from tsallis_rl.runs.errors import UserError


def garl(
    log_w: ArrayLike,
    q: ArrayLike,
    *,
    commitment: str = "power",
    tau: ArrayLike = 1.0,
    baseline: str = "loo",
    correction: str = "none",
    path_weight: ArrayLike = 1.0,
    normalize: bool = True,
) -> Coefficients:
    """Computes gradient-amplified RL: log_w [..., M] → [..., M].

    This is the RL gradient times f(P̂)/P̂, which for the power f(P) = P^(1−q) is P̂^(−q): Algorithm 1 of arXiv
    2604.25907; docs/method.md §3 and §8.

    Args:
      log_w: [..., M].
      q: commitment, a scalar or broadcastable to log_w.shape[:-1]; used only by the power.
      commitment: which f, see `commitments`.
      tau: in (0, 1]; used by floor and mixture.
      baseline: "loo" subtracts f(w̄_¬m) from the score, 0 where the others have no weight; "none" is the plug-in
        estimator.
      correction: "jackknife" removes the plug-in's O(1/M) bias; "none" leaves it.
      path_weight: multiplies the path coefficients; 0 is the ablation that trains the rationale alone. The name is
        that of the user's option: it is a factor, not a weight w.
      normalize: multiply by 1/M^q, as Algorithm 1 does; only for the power.

    Raises:
      UserError: M = 1 with baseline "loo" or the jackknife; an unknown commitment, baseline or correction.
      ValueError: log_w has no axis of rollouts, or q or tau does not broadcast to log_w.shape[:-1].
    """
    require_choice("baseline", baseline, ("loo", "none"))
    require_choice("correction", correction, ("none", "jackknife"))
    group = scale_by_largest(log_w, make_commitment(commitment, q=q, tau=tau), normalize=normalize)
    m = group.log_w.shape[-1]
    plug_in = group.plug_in()
    if correction == "jackknife":
        require_two_rollouts("correction='jackknife'", m)
        plug_in = _jackknife(group, plug_in)
    expected: Array | float = 0.0
    if baseline == "loo":
        require_two_rollouts("baseline='loo'", m)
        expected = group.without_each()
    return constant(group.factor / m * (plug_in - expected), path_weight * group.factor / m * plug_in)


def paft(
    key: Array,
    log_w: ArrayLike,
    q: ArrayLike,
    *,
    commitment: str = "power",
    tau: ArrayLike = 1.0,
    num_draws: int | None = None,
    resampling: str = "categorical",
    normalize: bool = True,
) -> Coefficients:
    """Computes posterior-attenuated fine-tuning: log_w [..., M] → [..., M].

    This is SFT on rationales resampled ∝ w, times f(P̂), which for the power is P̂^(1−q): Algorithm 2 of arXiv
    2604.25907; docs/method.md §3 and §8.

    Args:
      key: typed keys of shape log_w.shape[:-1], one per group; or one key, into which each group's index is folded.
      log_w: [..., M].
      q: commitment, a scalar or broadcastable to log_w.shape[:-1]; used only by the power.
      commitment: which f, see `commitments`.
      tau: in (0, 1]; used by floor and mixture.
      num_draws: rollouts drawn; None or 0 means M.
      resampling: categorical, systematic or residual.
      normalize: multiply by 1/M^q, as Algorithm 2 does; only for the power.

    Raises:
      UserError: an unknown commitment or resampling; a negative num_draws.
      ValueError: log_w has no axis of rollouts, q or tau does not broadcast to log_w.shape[:-1], or there is neither
        one key nor one per group.
    """
    draw = RESAMPLING[require_choice("resampling", resampling, tuple(RESAMPLING))]
    group = scale_by_largest(log_w, make_commitment(commitment, q=q, tau=tau), normalize=normalize)
    log_w = group.log_w
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
    share = group.factor * jnp.exp(group.log_weight(log_mean(log_w)[..., None])) * counts / num_draws
    return constant(share, share)


class ScaledGroups(NamedTuple):
    """Log-weights of groups relative to the group's largest, and f of that largest.

    Near −10⁴, the difference of two log-weights is exact in float32, while sums of such numbers are not. A group
    without weight becomes one of equal weights with factor 0, so that nothing divides by zero.

    Attributes:
      log_w: [..., M], at most 0, and 0 for the largest weight.
      log_largest: [..., 1].
      commitment: its numbers are [..., 1].
      log_factor: [..., 1] log of f of the largest weight, times 1/M^q if normalised; −inf for a group without weight.
    """

    log_w: Array
    log_largest: Array
    commitment: Commitment
    log_factor: Array

    @property
    def factor(self) -> Array:
        """The factor itself, which may be too small for the dtype."""
        return jnp.exp(self.log_factor)

    def log_weight(self, log_p: Array) -> Array:
        """Computes log f(P)/f(largest weight) of means P, given as log(P/largest weight) [..., N]."""
        return self.commitment.log_ratio(log_p, self.log_largest)

    def log_amplification(self, log_p: Array) -> Array:
        """Computes log f(P)/P, likewise relative to that of the largest weight, for means that are not 0."""
        return self.log_weight(log_p) - log_p

    def plug_in(self) -> Array:
        """Computes w_m f(w̄)/w̄ [..., M], divided by f of the largest weight."""
        return jnp.exp(self.log_w + self.log_amplification(log_mean(self.log_w)[..., None]))

    def without_each(self) -> Array:
        """Computes f(w̄_¬m) [..., M], divided by f of the largest weight; 0 where the others have no weight."""
        return jnp.exp(self.log_weight(log_loo_mean(self.log_w)))


def scale_by_largest(log_w: ArrayLike, commitment: Commitment, *, normalize: bool) -> ScaledGroups:
    """Divides weights by their group's largest: log_w [..., M].

    Raises:
      ValueError: q or τ does not broadcast to the groups' shape; its numbers would be taken for further groups.
    """
    log_w = mask_unusable(log_w)
    groups = log_w.shape[:-1]
    for field, number in zip(commitment._fields, commitment, strict=True):
        if number.ndim > len(groups) or any(
            a not in (1, b) for a, b in zip(number.shape[::-1], groups[::-1], strict=False)
        ):
            name = field.removeprefix("log_")
            raise ValueError(
                f"{name} has shape {number.shape}: expected a scalar, or a shape broadcastable to {groups}, one {name} "
                "a group"
            )
    commitment = jax.tree.map(lambda x: x.astype(log_w.dtype)[..., None], commitment)
    top = log_w.max(-1, keepdims=True)
    alive = top > -jnp.inf
    top = jnp.where(alive, top, 0.0)
    log_factor = commitment.log_weight(top)
    if normalize and isinstance(commitment, Power):
        log_factor -= commitment.q * jnp.log(jnp.asarray(log_w.shape[-1], log_w.dtype))
    return ScaledGroups(jnp.where(alive, log_w - top, 0.0), top, commitment, jnp.where(alive, log_factor, -jnp.inf))


def _jackknife(group: ScaledGroups, plug_in: Array) -> Array:
    """Computes M times the coefficient of ∇ log p(z_m, y* | x) in the jackknifed plug-in, whose bias is O(1/M²).

    The plug-in Ĝ is a function of two means, so M Ĝ − (M−1) (mean over j of Ĝ without rollout j) loses the 1/M term
    where that function is smooth. Collected by rollout, this is w_m (M h(w̄) − Σ_{j≠m} h(w̄_¬j)) with h(P) = f(P)/P. It
    is negative where one other rollout outweighs all the rest, so that w̄ without it is small.
    """
    m = group.log_w.shape[-1]
    without = log_loo_mean(group.log_w)
    without = jnp.where(without > -jnp.inf, without, 0.0)  # where w̄_¬j = 0, so is every w_m with m ≠ j
    terms = jnp.exp(group.log_w[..., :, None] + group.log_amplification(without)[..., None, :])
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

    A rationale's reward is log w_m, and its baseline the mean over the others. A rollout with w = 0, whose reward would
    be −∞, gets the group's lowest usable reward, so that it is discouraged without drowning the others.

    Raises:
      UserError: M = 1.
    """
    log_w = mask_unusable(log_w)
    m, has_weight = log_w.shape[-1], log_w > -jnp.inf
    score = centred(lowest_for_unusable(log_w), "baseline='loo' (log_likelihood has no other)") / (m - 1)
    return constant(score, path_weight * has_weight / m)


def sft(log_w: ArrayLike) -> Coefficients:
    """Computes supervised fine-tuning on (x*, y*) without a rationale; rollouts are identical, and each counts 1/M."""
    log_w = mask_unusable(log_w)
    return constant(jnp.zeros_like(log_w), jnp.full_like(log_w, 1.0 / log_w.shape[-1]))
