"""The commitment as a function of the step or of the example (docs/method.md §7).

A schedule is the fraction of the way from q to q_end. All are functions of traced numbers and
return one q per group, so that a program compiled once serves any of them.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.form import require_choice
from tsallis_rl.objectives.log_weights import as_float

# Fractions from t, the share of schedule_steps that is over, in [0, 1], and from h, log P̂ / schedule_nats.
SCHEDULES: dict[str, Callable[[Array, Array], Any]] = {
    "constant": lambda t, h: 0.0,
    "step": lambda t, h: jnp.floor(t),  # q, then q_end: at 1 → 0 the usual SFT-then-RL recipe
    "linear": lambda t, h: t,
    "cosine": lambda t, h: 0.5 * (1.0 - jnp.cos(jnp.pi * t)),
    "per_example": lambda t, h: jnp.clip(1.0 + h, 0.0, 1.0),  # q where log P̂ ≤ −schedule_nats, q_end at P̂ = 1
}


def scheduled_q(
    schedule: str,
    step: ArrayLike,
    log_p_hat: ArrayLike,
    *,
    q: ArrayLike,
    q_end: ArrayLike = 0.0,
    schedule_steps: ArrayLike = 1,
    schedule_nats: ArrayLike = 20.0,
) -> Array:
    """Computes the q of each group: log_p_hat [...] → [...].

    With per_example the q of a group depends on its own rollouts: the leave-one-out baseline is then no longer
    independent of rollout m, and keeps the expectation only approximately.

    Args:
      schedule: constant, step, linear, cosine or per_example.
      step: updates made so far.
      log_p_hat: [...] log w̄ of each group; −inf for a group without weight.
      q: the commitment at the start.
      q_end: the commitment at the end.
      schedule_steps: steps from q to q_end.
      schedule_nats: for per_example, how small −log P̂ must be before q leaves its start.

    Raises:
      UserError: an unknown schedule.
    """
    log_p_hat = as_float(log_p_hat)
    q, q_end, nats = (jnp.asarray(x, log_p_hat.dtype) for x in (q, q_end, schedule_nats))
    t = jnp.clip(jnp.asarray(step, log_p_hat.dtype) / schedule_steps, 0.0, 1.0)
    fraction = SCHEDULES[require_choice("schedule", schedule, tuple(SCHEDULES))](t, log_p_hat / nats)
    return jnp.broadcast_to(q + (q_end - q) * fraction, log_p_hat.shape)
