"""Rationales from a proposal that knows the answer: their importance weights, and which estimators may use them.

    prior     z ~ p(z|x), the model after the plain prompt
    hinted    z ~ r(z|x, y*), the same model after a prompt that shows the answer
    mixture   half of a group from each; all of it has the density p/2 + r/2 (the balance heuristic)

With ρ = p(z|x)/density(z), the weight w̃ = w ρ has mean P under its proposal, as w has under the prior. So estimators
that depend on the group's weights alone take log w̃ instead of log w (docs/method.md §9).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.nn import logsumexp, softmax
from jax.typing import ArrayLike

from tsallis_rl.objectives.log_weights import as_float, log_mean, mask_unusable
from tsallis_rl.objectives.table import ESTIMATORS
from tsallis_rl.runs.errors import UserError

PROPOSALS = ("prior", "hinted", "mixture")


def log_importance(log_ratio: ArrayLike, proposal: str) -> Array:
    """Computes log ρ of rationales from log p(z|x) − log r(z|x, y*) [..., M] → [..., M].

    Under the mixture, ρ is at most 2, whichever prompt the rationale is from.
    """
    log_ratio = as_float(log_ratio)
    return log_ratio if proposal == "hinted" else jnp.log(2.0) - jnp.logaddexp(0.0, -log_ratio)


def first_hinted(proposal: str, num_rollouts: int) -> int:
    """Returns the index from which on a group's M rollouts were drawn after the hinted prompt."""
    return {"prior": num_rollouts, "hinted": 0, "mixture": num_rollouts // 2}[proposal]


def proposal_figures(
    log_w: ArrayLike, log_ratio: ArrayLike, log_p_answer: ArrayLike, proposal: str
) -> dict[str, Array]:
    """Measures the rationales of a proposal: log_w and log_ratio [P, M] → scalars.

    Args:
      log_w: [P, M] log p(y*|x, z) after the plain prompt.
      log_ratio: [P, M] log p(z|x) − log r(z|x, y*).
      log_p_answer: [P] log p(y*|x, no rationale).
      proposal: hinted or mixture.

    Returns:
      importance_ess: (Σρ)²/Σρ², from 1 to M, mean over groups.
      hinted_share: hinted rationales' share of Σ w̃, mean over groups with weight; NaN if no group has any.
      hinted_answer_gain: log of the mean w of hinted rationales − log_p_answer, in nats, mean over groups with weight.
        It says how much likelier the answer is after the rationale than without one.
      hinted_gain: log of the mean w p/r of hinted rationales − log_p_answer, likewise. It says how much likelier, after
        the plain prompt, rationale and answer together are than the answer without a rationale.
    """
    log_w, log_ratio = mask_unusable(log_w), mask_unusable(log_ratio)
    log_rho = log_importance(log_ratio, proposal)
    first = first_hinted(proposal, log_w.shape[-1])
    log_total = logsumexp(log_w + log_rho, axis=-1)
    of_hinted = logsumexp((log_w + log_rho)[..., first:], axis=-1)

    def mean_where_finite(x: Array) -> Array:
        return jnp.nanmean(jnp.where(jnp.isfinite(x), x, jnp.nan))

    share = softmax(log_rho, axis=-1)
    return {
        "importance_ess": mean_where_finite(1.0 / (share**2).sum(-1)),
        "hinted_share": jnp.nanmean(jnp.where(log_total > -jnp.inf, jnp.exp(of_hinted - log_total), jnp.nan)),
        "hinted_answer_gain": mean_where_finite(log_mean(log_w[..., first:]) - log_p_answer),
        "hinted_gain": mean_where_finite(log_mean((log_w + log_ratio)[..., first:]) - log_p_answer),
    }


def restates_answer(answer_gain: float, gain: float) -> bool:
    """Returns whether hinted rationales merely restate the answer, from `proposal_figures` (docs/method.md §9).

    A rationale that is the answer makes the answer certain, but after the plain prompt is as unlikely as the answer
    without a rationale. So the gain on the answer (at least a nat, to rule out rounding) is lost on the rationale.
    """
    return answer_gain >= 1.0 and gain <= 0.0


def check_proposal(settings: Mapping[str, Any], proposal: str, num_rollouts: int) -> None:
    """Refuses estimators and options whose expectation would be wrong on rationales of a proposal.

    Args:
      settings: config.estimator.
      proposal: one of PROPOSALS.
      num_rollouts: M.

    Raises:
      UserError: the message says what to set instead.
    """
    if proposal == "prior":
        return
    name, field = settings["name"], f"config.proposal.name={proposal}"
    if not (row := ESTIMATORS[name]).any_proposal:
        names = ", ".join(other.name for other in ESTIMATORS.values() if other.any_proposal)
        raise UserError(
            f"{field}: the expectation of estimator {name} is right for rationales of the plain prompt only; choose "
            f"config.estimator.name from {names}, or config.proposal.name=prior"
        )
    if "baseline" in row.options and settings["baseline"] == "loo":
        raise UserError(
            f"{field}: the leave-one-out baseline needs rationales of the plain prompt; set "
            "config.estimator.baseline=none"
        )
    if proposal == "mixture" and "correction" in row.options and settings["correction"] == "jackknife":
        raise UserError(
            f"{field}: the jackknife needs rollouts of one distribution, and half of a group is from each prompt; set "
            "config.estimator.correction=none, or config.proposal.name=hinted"
        )
    if proposal == "mixture" and num_rollouts % 2:
        raise UserError(
            f"{field} draws half of a group from each prompt: config.rollouts.num_rollouts={num_rollouts} must be even"
        )
