"""The commitment as a function of the step (docs/method.md §7)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.form import require_choice

# t, the share of schedule_steps that is over, in [0, 1] -> the fraction of the way from q to q_end.
SCHEDULES: dict[str, Callable[[Array], Any]] = {
    "constant": lambda t: 0.0,
    "step": jnp.floor,  # q, then q_end: at 1 → 0 the usual SFT-then-RL recipe
    "linear": lambda t: t,
    "cosine": lambda t: 0.5 * (1.0 - jnp.cos(jnp.pi * t)),
}


def scheduled_q(
    schedule: str, step: ArrayLike, *, q: ArrayLike, q_end: ArrayLike = 0.0, schedule_steps: ArrayLike = 1
) -> Array:
    """Computes the q of a step, a scalar; all numbers may be traced, so that one compiled program serves any step.

    Args:
      schedule: constant, step, linear or cosine.
      step: updates made so far.
      q: the commitment at the start.
      q_end: the commitment at the end.
      schedule_steps: steps from q to q_end.

    Raises:
      UserError: an unknown schedule.
    """
    start, end = jnp.asarray(q, jnp.float32), jnp.asarray(q_end, jnp.float32)
    t = jnp.clip(jnp.asarray(step, jnp.float32) / schedule_steps, 0.0, 1.0)
    return start + (end - start) * SCHEDULES[require_choice("schedule", schedule, tuple(SCHEDULES))](t)
