"""Computes what sampled rationales are worth: log P̂ compared with answering at once, prompt by prompt.

Both are of the same model. The gain does not say how good a model trained without rationales would be.
"""

import numpy as np


def gains(log_p_hat: np.ndarray, log_p_without: np.ndarray) -> np.ndarray:
    """Computes log P̂ − log p(y* | x*, thinking closed at once) of each prompt: [P], [P] → nats [P].

    log P̂ of n samples is below log P on average, so the gain is underestimated. It is −∞ where no sampled rationale
    had any weight, +∞ where the answer has none without a rationale, 0 where it has none either way; NaN stays NaN.
    """
    same = log_p_hat == log_p_without  # −∞ − −∞ would be NaN
    return np.where(same, 0.0, log_p_hat - np.where(same, 0.0, log_p_without))


def gain_scores(log_p_hat: np.ndarray, log_p_without: np.ndarray) -> dict[str, float]:
    """Summarises the gains of prompts: log P̂ [P], log p without a rationale [P] → figures.

    Returns:
      rationale_gain: the mean of `gains`, nats; not finite if a gain is not.
      rationale_gain_se: its standard error over prompts; NaN with one prompt, or if a gain is not finite.
      rationale_helps: the share of prompts whose gain is above 0; a NaN gain is not.
      log_p_without: the mean of log p(y* | x*, thinking closed at once), nats.
    """
    found = gains(log_p_hat, log_p_without)
    several = len(found) > 1 and bool(np.isfinite(found).all())
    with np.errstate(invalid="ignore"):  # +∞ and −∞ have no mean
        mean = float(found.mean())
    return {
        "rationale_gain": mean,
        "rationale_gain_se": float(found.std(ddof=1) / len(found) ** 0.5) if several else float("nan"),
        "rationale_helps": float((found > 0).mean()),
        "log_p_without": float(log_p_without.mean()),
    }
