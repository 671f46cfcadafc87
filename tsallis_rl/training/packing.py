"""What an update computes: the tokens that carry a coefficient, in rows that hold several rollouts.

    row       z_1 … z_L </think> y … <eos> | z_1 … z_L </think> y … <eos> | z_1 … | (padding)
    start     0 0 …                      0   n n …                      n   …

Every token sees the prompt's keys and those of its own rollout, from `start` on.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding

from tsallis_rl.models.sharding import to_host
from tsallis_rl.objectives import Coefficients
from tsallis_rl.sampler.record import Rollouts

MIN_LENGTH_STEP = 64  # tokens at least between the lengths that updates are compiled for
LENGTHS = 8  # how many of these there are at most


class Streams(NamedTuple):
    """What an update reads: rollouts of P prompts in R rows each.

    Attributes:
      prompt: [P, T0] ids.
      prompt_length: [P].
      inputs: [P, R, T] what the model read.
      targets: [P, R, T] what came next.
      weight: [P, R, T] coefficient of the target's log-probability.
      log_prob: [P, R, T] what the sampler recorded of it.
      start: [P, R, T] where in its row a token's rollout starts; None where all start at 0.
    """

    prompt: Array
    prompt_length: Array
    inputs: Array
    targets: Array
    weight: Array
    log_prob: Array
    start: Array | None = None


def streams(rollouts: Rollouts, coefficients: Coefficients) -> Streams:
    """A row for each rollout: score [P, M] multiplies the rationale's sampled tokens, path [P, M] the answer's."""
    score = jnp.where(rollouts.score_mask, coefficients.score[..., None], 0.0)
    path = jnp.where(rollouts.path_mask, coefficients.path[..., None], 0.0)
    return Streams(*rollouts[:2], rollouts.inputs, rollouts.targets, score + path, rollouts.log_prob)


def rows_at_once(rows: int, most: int) -> int:
    """The largest divisor of so many rows that is not above `most`; all for 0."""
    return max(n for n in range(1, rows + 1) if rows % n == 0 and n <= (most or rows))


def first_fit(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Which of these [M] share a row of `room` tokens: the longest first, each in the first row with room for it.

    Lengths of 0 are in none.
    """
    rows: list[list[int]] = []
    left: list[int] = []
    for i in np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]:
        row = next((row for row, free in enumerate(left) if free >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(int(i))
        left[row] -= lengths[i]
    return rows


def pack(
    rollouts: Rollouts, coefficients: Coefficients, micro_batches: int = 1, micro_rollouts: int = 0, shards: int = 1,
    sharding: Sharding | None = None,
) -> tuple[Streams, dict[str, float]]:  # fmt: skip
    """What carries a coefficient, in rows of one of a few shapes; the gradient is the same.

    Rollouts whose coefficients are both zero (not drawn by PAFT), groups of nothing else (solved by all or by none,
    under GRPO) and tokens behind every end cost nothing. Groups with equally many rows are put in one micro-batch.

    Args:
      rollouts: [P, M, T].
      coefficients: [P, M].
      micro_batches: as in `learner.gradient`, and the next two.
      micro_rollouts: rows that are computed together, at most.
      shards: over how many devices P is split; with `micro_batches` it divides P, before and after.
      sharding: of arrays that begin with P; the packed ones are laid out by it as well.

    Returns:
      The rows, and as metrics the tokens up to the last of each rollout that carries a coefficient, the share of
      [P, M, T] that is computed, and the share of that which is padding.
    """
    ends = rollouts.answer_start + rollouts.answer_length
    stops = jnp.where(coefficients.path != 0, ends, jnp.where(coefficients.score != 0, rollouts.rationale_length, 0))
    stops = to_host(stops)
    prompts, count, tokens = rollouts.inputs.shape
    step = max(MIN_LENGTH_STEP, -(-tokens // LENGTHS))
    length = next(n for n in range(tokens % step or step, tokens + 1, step) if n >= stops.max())
    is_shared = tokens > MIN_LENGTH_STEP  # shorter rows would save less than a program for each number of them takes
    fitted = [
        first_fit(of_group, length) if is_shared else [[m] for m in np.flatnonzero(of_group)] for of_group in stops
    ]

    order = sorted(range(prompts), key=lambda group: -len(fitted[group]))  # those with most rows first
    kept = _quartered(prompts, np.count_nonzero(stops.any(axis=1)), multiple=micro_batches * shards)
    rows = (_few if is_shared else _quartered)(count, max(map(len, fitted)))
    in_slice = kept // micro_batches
    # Slices of P are strided: the first of each come first.
    groups = np.array(order[:kept]).reshape(micro_batches, in_slice).T.reshape(-1)

    at_once = rows_at_once(rows, micro_rollouts)
    most = [len(fitted[order[i * in_slice]]) for i in range(micro_batches)]
    computed = sum(-(-n // at_once) if at_once < rows else 1 for n in most) * at_once * in_slice * length
    metrics = {
        "update_tokens": float(stops.sum()),
        "update_share": computed / rollouts.inputs.size,
        "update_padding": 1 - stops.sum() / max(computed, 1),
    }
    if length == tokens and min(map(len, fitted)) == count:  # nothing is left out: the record itself
        return _gathered(rollouts, coefficients, None, None, None, sharding=sharding), metrics
    source, start = _layout([fitted[group] for group in groups], stops[groups], (kept, rows, length), tokens)
    return _gathered(rollouts, coefficients, groups, source, start, sharding=sharding), metrics


def _quartered(size: int, needed: int, multiple: int = 1) -> int:
    """`size` divided by four as often as it holds what is needed: few shapes, few programs."""
    while size % (4 * multiple) == 0 and size // 4 >= needed:
        size //= 4
    return size


def _few(size: int, needed: int) -> int:
    """The least of `size`, ¾ of it and their halves that holds what is needed."""
    halves = range(size.bit_length())
    return min(n for i in halves for n in (size >> i, 3 * size >> i + 2) if n >= max(needed, 1))


def _layout(
    fitted: Sequence[Sequence[Sequence[int]]], stops: np.ndarray, shape: tuple[int, int, int], tokens: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Of every token of the rows [P, R, T] its place in its group's M × `tokens`, −1 for padding; and its start."""
    source, start = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    for group, rows in enumerate(fitted):
        for row, members in enumerate(rows):
            at = 0
            for m in members:
                stop = at + stops[group, m]
                source[group, row, at:stop] = m * tokens + np.arange(stop - at)
                start[group, row, at:] = at
                at = stop
    return source, start if start.any() else None


@functools.partial(jax.jit, static_argnames="sharding")
def _gathered(
    rollouts: Rollouts, coefficients: Coefficients, groups: Array | None, source: Array | None, start: Array | None, *,
    sharding: Sharding | None,
) -> Streams:  # fmt: skip
    """The rows that `_layout` gives of these groups; without it one for each rollout."""
    rows = streams(rollouts, coefficients)
    if source is not None:
        rows = _placed(rows, groups, source, start)
    # Left alone, the compiler gives every device all of it.
    return rows if sharding is None else jax.lax.with_sharding_constraint(rows, sharding)


def _placed(whole: Streams, groups: Array, source: Array, start: Array | None) -> Streams:
    flat = source.reshape(len(groups), -1)

    def placed(x: Array) -> Array:
        x = jnp.take_along_axis(x.reshape(len(x), -1)[groups], jnp.maximum(flat, 0), axis=1)
        return jnp.where(flat >= 0, x, 0).reshape(source.shape)

    # The gradient is a mean over prompts: of fewer, each counts for less.
    weight = placed(whole.weight) * (len(groups) / len(whole.prompt))
    return Streams(
        whole.prompt[groups], whole.prompt_length[groups], placed(whole.inputs), placed(whole.targets), weight,
        placed(whole.log_prob), start,
    )  # fmt: skip
