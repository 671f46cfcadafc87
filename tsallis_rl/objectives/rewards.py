"""Estimators from the reward of the answer that the rollout sampled.

All take rewards [..., M], 1 for a correct answer and 0 otherwise, and return Coefficients [..., M] in which the
rationale and the sampled answer share one number. Only GRPO uses lengths, and only on request. All raise ValueError for
rewards without an axis of rollouts.
"""

import math

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.form import Coefficients, centred, constant, require_choice, require_two_rollouts
from tsallis_rl.objectives.log_weights import as_float
from tsallis_rl.runs.errors import UserError


def grpo(
    rewards: ArrayLike,
    lengths: ArrayLike | None = None,
    *,
    epsilon: ArrayLike = 1e-4,
    scale_rewards: str = "std",
    length_norm: str = "none",
) -> Coefficients:
    """Computes group-relative advantages (r − mean)/(std + ε), std over the M rollouts (arXiv 2402.03300).

    Args:
      rewards: [..., M].
      lengths: [..., M] tokens of rationale and answer that the coefficients multiply; needed for length_norm.
      epsilon: added to the standard deviation.
      scale_rewards: "std" divides by the standard deviation; with "none" advantages are r − mean, as in dr_grpo.
      length_norm: "rollout" divides a rollout's advantage by its own length, as in the GRPO paper; "group" by the mean
        length of the group, as in DAPO's token-level loss (arXiv 2503.14476); "none" does not divide.

    Raises:
      UserError: an unknown scale_rewards or length_norm; M = 1.
      ValueError: length_norm needs lengths, and there are none of the rewards' shape.
    """
    require_choice("scale_rewards", scale_rewards, ("std", "none"))
    require_choice("length_norm", length_norm, ("none", "rollout", "group"))
    rewards = _as_rewards(rewards)
    advantage = standardised(rewards, epsilon) if scale_rewards == "std" else centred(rewards)
    if length_norm != "none":
        if lengths is None or jnp.shape(lengths) != rewards.shape:
            found = None if lengths is None else jnp.shape(lengths)
            raise ValueError(f"lengths have shape {found}: length_norm={length_norm!r} needs {rewards.shape}")
        lengths = jnp.maximum(jnp.asarray(lengths, rewards.dtype), 1.0)
        advantage /= lengths.mean(-1, keepdims=True) if length_norm == "group" else lengths
    return _coefficients(advantage)


def dr_grpo(rewards: ArrayLike) -> Coefficients:
    """Computes GRPO without the division by the standard deviation (Dr. GRPO, arXiv 2503.20783).

    Raises:
      UserError: M = 1.
    """
    return _coefficients(centred(_as_rewards(rewards)))


def rloo(rewards: ArrayLike) -> Coefficients:
    """Computes REINFORCE with the mean of the other rewards as baseline (arXiv 2402.14740); M/(M−1) times dr_grpo.

    Raises:
      UserError: M = 1.
    """
    rewards = _as_rewards(rewards)
    m = rewards.shape[-1]
    require_two_rollouts("baseline='loo' (rloo has no other)", m)
    return _coefficients(centred(rewards) * m / (m - 1))


def maxrl(rewards: ArrayLike) -> Coefficients:
    """Computes maximum likelihood RL (arXiv 2602.02710): advantages (r − mean)/mean, 0 where no answer was correct.

    In expectation this is the gradient of log P's series in powers of 1 − P, cut after M − 1 terms.

    Raises:
      UserError: M = 1.
    """
    rewards = _as_rewards(rewards)
    mean = rewards.mean(-1, keepdims=True)
    return _coefficients(centred(rewards) / jnp.where(mean > 0, mean, 1.0))


def raft(rewards: ArrayLike) -> Coefficients:
    """Computes fine-tuning on the correct rollouts alone (RAFT, arXiv 2304.06767; STaR's filter, arXiv 2203.14465)."""
    return _coefficients(_as_rewards(rewards))


def hard_continuum(rewards: ArrayLike, q: ArrayLike, *, baseline: str = "loo") -> Coefficients:
    """Computes the hard-reward continuum from RL (q = 0) to maximum likelihood (q = 1): rewards [..., M] → [..., M].

    The coefficient is r_m β_K / M with K = Σ r and β_K = Π_{j=K}^{M−1} (1 + q/j) = Γ(M+q) Γ(K) / (Γ(K+q) Γ(M)). The
    gradient's expectation is exactly ∇p Σ_{j<M} (q)_j/j! (1−p)^j, the series of p^(−q) ∇p in powers of 1 − p cut after
    M terms (docs/method.md §10).

    Args:
      rewards: [..., M]; for rewards between 0 and 1, log β is interpolated between whole K.
      q: commitment, a scalar or broadcastable to rewards.shape[:-1].
      baseline: "loo" subtracts the others' own estimate, K_¬m β_(K_¬m)/(M−1) with M − 1 for M; "none" does not.

    Raises:
      UserError: M = 1 with baseline "loo"; an unknown baseline.
    """
    require_choice("baseline", baseline, ("loo", "none"))
    rewards = _as_rewards(rewards)
    m = rewards.shape[-1]
    q = as_float(q)[..., None]
    count = rewards.sum(-1, keepdims=True)
    score = rewards * _amplification(count, m, q)
    if baseline == "loo":
        require_two_rollouts("baseline='loo'", m)
        others = count - rewards
        score -= others / (m - 1) * _amplification(others, m - 1, q)
    return _coefficients(score)


def _amplification(count: Array, m: int, q: Array) -> Array:
    """Computes β_K = Π_{j=K}^{M−1} (1 + q/j) for counts K [..., N]; below K = 1 returns β_1."""
    j = jnp.arange(1, m, dtype=count.dtype)
    included = jnp.clip(j - count[..., None] + 1.0, 0.0, 1.0)
    return jnp.exp((included * jnp.log1p(q[..., None] / j)).sum(-1))


def pkpo(rewards: ArrayLike, *, k: int = 4, baseline: str = "loo") -> Coefficients:
    """Computes the gradient of pass@k, the expected largest reward of k rollouts: rewards [..., M] → [..., M].

    PKPO, arXiv 2505.15201. All sets of k of the M rollouts count alike. A rollout's coefficient is k/M times the mean,
    over the sets of k that contain it, of their largest reward.

    Args:
      rewards: [..., M].
      k: from 1 to M; at 1 this is `raft`.
      baseline: "loo" subtracts a set's largest reward without the rollout, so that a rollout counts for what it adds to
        the set (the paper's loo−1); "none" does not.

    Raises:
      UserError: k is not from 1 to M; an unknown baseline.
    """
    require_choice("baseline", baseline, ("loo", "none"))
    rewards = _as_rewards(rewards)
    m = rewards.shape[-1]
    if not 1 <= k <= m:
        raise UserError(f"estimator option k={k}: choose from 1 to the {m} rollouts a prompt, or raise num_rollouts")
    if k == 1:
        return _coefficients(rewards)
    own, other = rewards[..., :, None], rewards[..., None, :]
    rank = jnp.argsort(jnp.argsort(rewards, axis=-1), axis=-1)
    # How many of the others are ranked below b. C(below, k − 2)/C(M − 1, k − 1) is the share of sets in which b is the
    # largest of the k − 1 others.
    below = rank[..., None, :] - (rank[..., :, None] < rank[..., None, :])
    sets = math.comb(m - 1, k - 1)
    share = jnp.array([math.comb(n, k - 2) / sets for n in range(m)], rewards.dtype)[below]
    share = jnp.where(jnp.eye(m, dtype=bool), 0.0, share)
    largest = jnp.maximum(own, other) if baseline == "none" else jnp.maximum(own - other, 0.0)
    return _coefficients(k * (share * largest).sum(-1))


def curverl(rewards: ArrayLike, rank_weight: ArrayLike) -> Coefficients:
    """Computes CurveRL: centred rewards times a weight by the rank of the pass rate (arXiv 2605.24331) → [..., M].

    Args:
      rewards: [..., M].
      rank_weight: [..., M] one number per group, repeated; see `histories.rank_weight`.

    Raises:
      UserError: M = 1.
    """
    return _coefficients(as_float(rank_weight) * centred(_as_rewards(rewards)))


def _as_rewards(rewards: ArrayLike) -> Array:
    """Converts rewards [..., M], booleans and integers included, to float32.

    Raises:
      ValueError: they have no axis of rollouts, or are not real numbers.
    """
    rewards = jnp.asarray(rewards)
    if rewards.ndim == 0 or jnp.issubdtype(rewards.dtype, jnp.complexfloating):
        raise ValueError(
            f"rewards have shape {rewards.shape} and dtype {rewards.dtype}: expected numbers [..., M], one for each "
            "rollout"
        )
    return as_float(rewards)


def standardised(rewards: Array, epsilon: ArrayLike) -> Array:
    """Divides centred rewards [..., M] by the group's standard deviation + `epsilon`; raises like `centred`."""
    return centred(rewards) / (rewards.std(-1, keepdims=True) + epsilon)


def _coefficients(advantage: Array) -> Coefficients:
    """Makes coefficients of an advantage [..., M], the same for rationale and answer, with 1/M included."""
    both = advantage / advantage.shape[-1]
    return constant(both, both)
