"""Dynamic sampling: groups without signal are replaced by groups of further prompts (DAPO, arXiv 2503.14476).

A group has no signal if all of its coefficients are 0, so it adds nothing to a step's gradient. The coefficients alone
decide which groups replace which, so every process decides the same.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding

from tsallis_rl.models.sharding import to_host
from tsallis_rl.objectives import Coefficients
from tsallis_rl.training.weighed import WeighedRollouts


def idle_groups(total: Coefficients) -> np.ndarray:
    """Returns which groups have no coefficient but 0: [P, M] on the host → [P]."""
    return ~np.any(total, axis=0).any(-1)


def replacements(idle: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Assigns usable further groups to idle ones, both [P], in order: → [P] which one, −1 for none."""
    source = np.full(len(idle), -1)
    rows, found = np.flatnonzero(idle), np.flatnonzero(usable)
    count = min(len(rows), len(found))
    source[rows[:count]] = found[:count]
    return source


def refilled(
    sample: Callable[[int], WeighedRollouts], batches: np.ndarray, pad: int, sharding: Sharding
) -> tuple[WeighedRollouts, dict[str, float]]:
    """Samples a step's batch, then further ones as long as a group is without signal, and replaces such groups.

    An example that the step has already sampled is not used again, and a batch with no new example is not sampled.
    Groups for which there is no replacement stay as they are.

    Args:
      sample: samples and weighs the r-th of the batches.
      batches: [1 + n, P] training examples, the step's batch first.
      pad: id after a prompt's end.
      sharding: of arrays with leading P.

    Returns:
      the groups to train on, with measurements `_pooled` over all sampled rollouts; what is computed from weights or
      coefficients must then be measured again. Also metrics: refill_batches, refill_idle and refill_replaced, see
      docs/metrics.md.
    """
    weighed = sample(0)
    sampled, found = [_counted(weighed)], [idle_groups(to_host(weighed.coefficients))]
    idle, seen = found[0], batches[0]
    for r, indices in enumerate(batches[1:], 1):
        is_new = ~np.isin(indices, seen)
        is_new &= np.isin(np.arange(len(indices)), np.unique(indices, return_index=True)[1])
        if not idle.any():
            break
        if not is_new.any():
            continue
        further = sample(r)
        sampled.append(_counted(further))
        found.append(idle_groups(to_host(further.coefficients)))
        seen = np.append(seen, indices)
        source = replacements(idle, is_new & ~found[-1])
        weighed = replaced(weighed, further, source, pad, sharding)
        idle = idle & (source < 0)
    return weighed._replace(measured=_pooled(sampled)), {
        "refill_batches": float(len(sampled) - 1),
        "refill_idle": float(np.mean(found)),
        "refill_replaced": float((found[0] & ~idle).mean()),
    }


def replaced(
    weighed: WeighedRollouts, further: WeighedRollouts, source: np.ndarray, pad: int, sharding: Sharding
) -> WeighedRollouts:
    """Replaces the i-th group by group `source[i]` of another batch, source [P]; keeps it if that is −1.

    The narrower prompts are padded to the width of the others. Both have neither regularizer nor log_rho.
    """
    kept, other = ((x.rollouts, x.coefficients, x.group) for x in (weighed, further))
    rollouts, coefficients, group = _gather(kept, other, source, pad, sharding=sharding)
    return weighed._replace(
        rollouts=rollouts,
        coefficients=coefficients,
        group=group,
        positions=np.where(source >= 0, further.positions[source], weighed.positions),
    )


@functools.partial(jax.jit, static_argnames="sharding")
def _gather(kept: tuple, further: tuple, source: Array, pad: Array, *, sharding: Sharding) -> tuple:
    """Replaces groups of `kept` by groups `source` [P] of `further`, arrays with leading P; −1 keeps the group."""

    def choose(x: Array, y: Array) -> Array:
        if x.ndim == 2:  # of prompts, or [P, M]
            width = max(x.shape[1], y.shape[1])
            x, y = (jnp.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=pad) for a in (x, y))
        is_taken = (source >= 0).reshape(-1, *(1,) * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(jnp.where(is_taken, y[source], x), sharding)

    return jax.tree.map(choose, kept, further)


def _counted(part: WeighedRollouts) -> dict[str, Array]:
    """Returns what was measured of a batch, and the number of its answers."""
    return {**(part.measured or {}), "answers": (part.rollouts.answer_length > 0).sum()}


def _pooled(parts: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Pools the measurements of several batches, `_counted` each, as if they were one batch."""
    if len(parts) == 1:
        return {name: x for name, x in parts[0].items() if name != "answers"}
    tokens = sum(part["rollout_tokens"] for part in parts)
    return {
        "rollout_tokens": tokens,
        "rollout_occupancy": tokens / sum(part["rollout_tokens"] / part["rollout_occupancy"] for part in parts),
        "grader_errors": sum(part["grader_errors"] for part in parts),
        "answer_truncated": sum(part["answers"] * part["answer_truncated"] for part in parts)
        / jnp.maximum(sum(part["answers"] for part in parts), 1),
        **{name: sum(part[name] for part in parts) / len(parts) for name in ("reward", "prompt_padding")},
    }
