"""A commitment that follows what is measured: a rule for q from step to step, and for the switch from GARL to PAFT.

The decision for a step rests on the metrics of the step before. So q does not depend on the rollouts that it weighs,
and a run that is resumed decides as one that never stopped: its last record holds all there is to know.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

KEEP = 0.9  # share of the running mean of log P̂ that a step keeps
LEAST_PAFT = 0.75  # PAFT is stable at commitments from here on (METHOD §6)


class Decision(NamedTuple):
    """What a step uses, and what the next decision needs to know of the past.

    Attributes:
      q: the commitment.
      paft: 1 once PAFT has taken over, else 0.
      level: running mean of log P̂; None before the first step.
      best: the highest level so far.
      quiet: the least shadow commitment whose gradients vary little enough; 0 without shadows.
    """

    q: float
    paft: float = 0.0
    level: float | None = None
    best: float | None = None
    quiet: float = 0.0


def decide(
    previous: Decision, metrics: Mapping[str, float | None], *,
    num_rollouts: int, nats: float, max_variance: float, collapse_nats: float,
) -> Decision:  # fmt: skip
    """The decision for the next step.

    q is the least commitment that attenuates no more than e^−nats against maximum likelihood, P^(1−q) ≥ e^−nats, and
    whose shadow gradients vary by at most max_variance. For P stands P̂ · ESS/M: an estimate that rests on one rollout
    is worth less than one on which all agree. Once the running mean of log P̂ is collapse_nats below its best, PAFT
    takes over for good, at q ≥ 0.75. A step in which no rollout had weight measured nothing: what was decided stays.

    Args:
      previous: the last step's decision.
      metrics: the last step's log_p_hat_mean (nats) and effective_sample_size (1 to M), as `diagnostics` gives them;
        shadow/garl@Q/variance if there are shadows.
      num_rollouts: M.
      nats: how much attenuation is granted.
      max_variance: tr Σ/‖ḡ‖² that is tolerated; 0 leaves the shadows out of it.
      collapse_nats: how far log P̂ must fall; 0 never switches.
    """
    log_p_hat = metrics["log_p_hat_mean"]
    if log_p_hat is None or math.isnan(log_p_hat):  # None where it was read from a file
        return previous
    level = log_p_hat if previous.level is None else KEEP * previous.level + (1 - KEEP) * log_p_hat
    best = level if previous.best is None else max(previous.best, level)

    quiet = previous.quiet
    shadows = [(re.fullmatch(r"shadow/garl@(.*)/variance", name), x) for name, x in metrics.items()]
    variances = {float(match[1]): x for match, x in shadows if match}
    if max_variance and variances:
        quiet = min((q for q, x in variances.items() if x is not None and x <= max_variance), default=1.0)

    success = log_p_hat + math.log(max(metrics["effective_sample_size"], 1.0) / num_rollouts)
    reach = 1.0 - nats / -success if success < -nats else 0.0
    paft = previous.paft or float(collapse_nats > 0 and level < best - collapse_nats)
    return Decision(max(reach, quiet, LEAST_PAFT * paft), paft, level, best, quiet)
