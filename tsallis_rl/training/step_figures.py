"""Figures of a step that are computed on the host, from its coefficients, rewards and clocks."""

from collections.abc import Mapping

import numpy as np

from tsallis_rl.objectives import Coefficients
from tsallis_rl.training.refill import idle_groups


def signal_figures(total: Coefficients, rewards: np.ndarray | None) -> dict[str, float]:
    """Counts the groups without signal, from coefficients and rewards [P, M] on the host.

    Returns:
      idle_groups: those whose coefficients are all 0.
      equal_reward_groups: those whose rewards are all the same; left out if the estimator reads no rewards.
    """
    figures = {"idle_groups": float(idle_groups(total).sum())}
    if rewards is not None:
        figures["equal_reward_groups"] = float((rewards == rewards[:, :1]).all(-1).sum())
    return figures


def speeds(metrics: Mapping[str, float], *, seconds_rollouts: float, seconds_update: float) -> dict[str, float]:
    """Returns seconds, and tokens a second, of both phases."""
    return {
        "seconds_rollouts": seconds_rollouts,
        "seconds_update": seconds_update,
        "rollout_tokens_per_second": metrics["rollout_tokens"] / seconds_rollouts,
        "update_tokens_per_second": metrics["update_tokens"] / seconds_update,
    }
