"""Computes coefficients from a config's estimator section, for training and replay."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives.diagnostics import diagnostics
from tsallis_rl.objectives.form import Coefficients
from tsallis_rl.objectives.schedules import scheduled_q
from tsallis_rl.objectives.table import ESTIMATORS, coefficients, followed_commitment
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.own_code import is_dotted, reason

_SCHEDULE_OPTIONS = ("q", "q_end", "schedule_steps")
_OF_COMMITMENT = ("max_advantage", "negative_share", "negative_mass", "leading_bias")  # of f(w̄), f(w̄_¬m) and w_m


def weigh(
    settings: Mapping[str, Any], group: Mapping[str, Array], step: Array
) -> tuple[Coefficients, dict[str, Array]]:
    """Computes the coefficients [P, M] of a batch of groups, and scalars to log (`diagnostics`).

    These have no q if the estimator has no commitment, and their loss is then that of q = 0. They have none of
    `_OF_COMMITMENT` unless the estimator follows a commitment to w itself.

    Args:
      settings: name, q, and the options of the estimator and the schedule; its numbers may be traced.
      group: typed keys `key` [P], one per group; log_w [P, M]; and the other quantities that the estimator needs (see
        `table.coefficients`).
      step: updates made so far.

    Raises:
      ValueError: an array is missing or has another shape.
    """
    log_w, keys = group["log_w"], group["key"]
    if jnp.ndim(log_w) != 2 or keys.shape != log_w.shape[:1]:
        raise ValueError(f"log_w and keys have shapes {jnp.shape(log_w)} and {keys.shape}: expected [P, M] and [P]")
    row, followed = ESTIMATORS[settings["name"]], followed_commitment(settings)
    q: ArrayLike
    if row.q is None:
        schedule = {name: settings[name] for name in _SCHEDULE_OPTIONS if name in settings}
        q = scheduled_q(settings.get("schedule", "constant"), step, **schedule)
    else:
        q = row.q
    commitment, tau = followed.get("commitment", "power"), followed.get("tau", 1.0)
    measured = diagnostics(log_w, q if followed else 0.0, commitment=commitment, tau=tau)
    left_out = [] if followed else ["q"]
    if not followed or row.quantities:  # such as rewards, or w^(1/L)
        left_out += _OF_COMMITMENT
    measured = {name: x for name, x in measured.items() if name not in left_out}
    return coefficients(row, settings, {**group, "q": q}), measured


def numbers(settings: Mapping[str, Any]) -> dict[str, Array]:
    """Selects the floats of an estimator section as scalars to trace, so that changing one compiles nothing."""
    return {name: jnp.float32(value) for name, value in settings.items() if isinstance(value, float)}


def compiled_weigh(settings: Mapping[str, Any]) -> Callable[..., tuple[Coefficients, dict[str, Array]]]:
    """Compiles `weigh` into a function of (name, numbers, group, step), once for each estimator.

    Training and replay call this one program, so that equal groups get bit-identical coefficients. The runs of a
    process share the programs of our estimators, not those of a user's own one: what its code reads may change.
    """
    words = tuple((name, value) for name, value in settings.items() if not isinstance(value, float))
    own = jax.jit(functools.partial(_weigh), static_argnums=(0, 1))  # another object, so another program, each time

    def by_name(name: str, numbers: Mapping[str, Array], group: Mapping[str, Array], step: Array) -> tuple:
        program = own if is_dotted(name) else _shared
        return program(name, words, numbers, group, step)

    return by_name


def _weigh(
    name: str,
    words: tuple[tuple[str, Any], ...],
    numbers: Mapping[str, Array],
    group: Mapping[str, Array],
    step: Array,
) -> tuple[Coefficients, dict[str, Array]]:
    """Calls `weigh` with settings that are words, which are static, and numbers, which are traced."""
    return weigh({**dict(words), **numbers, "name": name}, group, step)


_shared = jax.jit(_weigh, static_argnums=(0, 1))


def check(settings: Mapping[str, Any], num_rollouts: int) -> None:
    """Refuses settings at the start of a run that would be refused, or make no sense, in the middle of it.

    The schema has already checked the limits of a config's numbers.

    Raises:
      UserError: an unknown estimator, schedule or option value; q outside [0, 1]; too few rollouts; an own estimator
        that fails.
    """
    name = settings["name"]
    row = ESTIMATORS[name]
    if not 0 <= settings.get("q", 0.0) <= 1:  # --grid, replay and gradient comparison have their own q
        raise UserError(
            f"estimator option q={settings['q']} is outside [0, 1], which runs from the success probability (0) to its "
            "logarithm (1)"
        )
    for option in row.defaults:
        if isinstance(value := settings.get(option), float) and math.isnan(value):
            raise UserError(f"config.estimator.{option}=nan: choose a number, for a saved nan equals no other")
    # The functions refuse the rest themselves, when traced with abstract arrays, which computes nothing.
    # With several groups, since an estimator may mistake the axis of groups for another where it has length 1.
    groups = 2
    array = jax.ShapeDtypeStruct((groups, num_rollouts), jnp.float32)
    group = {"log_w": array} | dict.fromkeys(row.quantities, array)
    group["key"] = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), groups))
    traced = numbers(settings) if is_dotted(name) else {}  # as in a run, where an own function must not branch on them
    try:
        jax.eval_shape(lambda group, traced: weigh({**settings, **traced}, group, jnp.int32(0)), group, traced)
    except (Exception, SystemExit) as error:
        if not is_dotted(name) or isinstance(error, UserError):
            raise
        told = f"estimator {name!r} fails on groups of log_w [{groups}, {num_rollouts}]: {reason(error)}"
        raise UserError(told) from error
