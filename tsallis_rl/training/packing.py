"""Packs the tokens of an update that carry a coefficient into rows that hold several rollouts each.

    row       z_1 … z_n </think> y … <eos> | z_1 … z_n </think> y … <eos> | z_1 … | (padding)
    start     0 0 …                      0   n n …                      n   …

Every token sees the prompt's keys and those of its own rollout, from `start` on.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding

from tsallis_rl.models.shapes import Expected, check_shapes, largest_divisor
from tsallis_rl.models.sharding import to_host
from tsallis_rl.objectives import Coefficients
from tsallis_rl.sampler import RolloutShape
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.buckets import MIN_LENGTH_STEP, halving_bucket, length_bucket, quarter_bucket
from tsallis_rl.sampler.measures import first_identical
from tsallis_rl.sampler.record import Rollouts, record_shapes
from tsallis_rl.sampler.rules import Rules, recorded_barred_counts
from tsallis_rl.sampler.schedule import rollout_tokens


class RowTokens(NamedTuple):
    """The tokens of an update's rows.

    Attributes:
      inputs: [P, B, T] what the model read.
      targets: [P, B, T] what came next.
      coefficient: [P, B, T] what multiplies the target's log-probability.
      log_prob: [P, B, T] the target's log-probability as the sampler recorded it.
      start: [P, B, T] where in its row a token's rollout starts; None if all start at 0.
      barred: [P, B, T] how many of the rows' barred ids its distribution leaves out; None if it leaves out nothing.
    """

    inputs: Array
    targets: Array
    coefficient: Array
    log_prob: Array
    start: Array | None = None
    barred: Array | None = None


class PackedRows(NamedTuple):
    """The rows of an update: rollouts of P prompts in B rows each.

    Attributes:
      prompt: [P, T0] ids.
      prompt_length: [P].
      tokens: see `RowTokens`.
      barred_ids: [P, E + 1] see `Rules.barred_ids`; None if nothing is barred.
    """

    prompt: Array
    prompt_length: Array
    tokens: RowTokens
    barred_ids: Array | None = None


def slice_tokens(width: int, rows: int, tokens: int) -> int:
    """Counts the tokens of a prompt and of its rows, to compare slices by their memory.

    A prompt's tokens count twice: their keys and values, and the gradients of these, are kept beside their activations.
    """
    return 2 * width + rows * tokens


@dataclasses.dataclass(frozen=True)
class Slices:
    """How an update is computed in parts; changes memory, never the gradient.

    Attributes:
      micro_batches: equal slices of P; each reads its prompts once.
      micro_rollouts: most rows of a prompt that go through the decoder together; 0 is all.
      shards: devices over which P is split; shards × micro_batches divides P, before and after packing.
      room: tokens that a device takes at a time, as `slice_tokens` counts them; slices are then as large as that
        allows, and the first two fields are ignored. 0: the first two fields decide.
    """

    micro_batches: int = 1
    micro_rollouts: int = 0
    shards: int = 1
    room: int = 0

    def of(self, prompts: int, rows: int, tokens: int, width: int) -> "Slices":
        """Returns the slices, without `room`, of rows [P, B, T] after prompts of `width` tokens."""
        if not self.room:
            return self
        here = prompts // self.shards
        together = largest_divisor(here, max(1, self.room // slice_tokens(width, rows, tokens)))
        at_once = largest_divisor(rows, max(1, (self.room - slice_tokens(width, 0, tokens)) // tokens))
        return Slices(here // together, at_once, self.shards)


def one_row_each(rollouts: Rollouts, coefficients: Coefficients, rules: Rules | None = None) -> PackedRows:
    """Puts every rollout in a row of its own: [P, M, T] → [P, B, T] with B = M.

    The score coefficient [P, M] multiplies the rationale's sampled tokens, the path coefficient the answer's.

    Args:
      rollouts: [P, M, T].
      coefficients: [P, M].
      rules: under which they were sampled; None if these barred nothing.
    """
    check_shapes(
        Expected("rollouts.targets", rollouts.targets, "P M T", jnp.integer),
        Expected("coefficients.score", coefficients.score, "P M", jnp.floating),
        Expected("coefficients.path", coefficients.path, "P M", jnp.floating),
    )
    score = jnp.where(rollouts.score_mask, coefficients.score[..., None], 0.0)
    path = jnp.where(rollouts.path_mask, coefficients.path[..., None], 0.0)
    tokens = RowTokens(rollouts.inputs, rollouts.targets, coefficient=score + path, log_prob=rollouts.log_prob)
    rows = PackedRows(rollouts.prompt, rollouts.prompt_length, tokens)
    if rules is None or rules.min_rationale is None:
        return rows
    ids = jnp.broadcast_to(rules.barred_ids, (len(rollouts.prompt), len(rules.barred_ids)))
    return rows._replace(tokens=tokens._replace(barred=recorded_barred_counts(rollouts, rules)), barred_ids=ids)


def first_fit(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Fits rollouts of these lengths [M] into rows of `room` tokens: the longest first, each in the first row it fits.

    Returns:
      the rollouts of each row; those of length 0 are in none.
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
    rollouts: Rollouts,
    coefficients: Coefficients,
    slices: Slices,
    sharding: Sharding | None = None,
    rules: Rules | None = None,
) -> tuple[PackedRows, dict[str, float]]:
    """Packs the tokens with a nonzero coefficient into rows of bucketed length: [P, M, T] → [P', B, T'].

    The gradient stays the same. Rollouts that are token for token the same are computed once (`merge_identical`).
    Rollouts whose coefficients are both zero (not drawn by PAFT), groups of only such rollouts (solved by all or by
    none, under GRPO) and tokens after every end cost nothing. Groups are sorted into micro-batches by number of rows.

    Args:
      rollouts: [P, M, T].
      coefficients: [P, M].
      slices: in which the rows will be computed.
      sharding: of arrays with leading P, the packed ones included.
      rules: see `one_row_each`.

    Returns:
      The rows, and metrics: the tokens of all rollouts, each up to its last with a coefficient; the share of [P, M, T]
      that is computed; the share of that which is padding; and the mean number of different rollouts of a prompt.
    """
    coefficients, different = merge_identical(rollouts, coefficients)
    stops, different = to_host((_stops(rollouts, coefficients), different))
    prompts, count, tokens = rollouts.inputs.shape
    length = length_bucket(tokens, stops.max())
    is_shared = tokens > MIN_LENGTH_STEP  # shorter rows would save less than compiling for each number of rows costs
    fitted = [
        first_fit(of_group, length) if is_shared else [[m] for m in np.flatnonzero(of_group)] for of_group in stops
    ]

    order = sorted(range(prompts), key=lambda group: -len(fitted[group]))  # those with most rows first
    used = np.count_nonzero(stops.any(axis=1))
    kept = quarter_bucket(prompts, used, multiple=slices.shards * (1 if slices.room else slices.micro_batches))
    rows = (halving_bucket if is_shared else quarter_bucket)(count, max(map(len, fitted)))
    slices = slices.of(kept, rows, length, rollouts.prompt.shape[1])
    in_slice = kept // slices.micro_batches
    # Slices of P are strided: the first groups of all slices come first.
    groups = np.array(order[:kept]).reshape(slices.micro_batches, in_slice).T.reshape(-1)

    most = [len(fitted[order[i * in_slice]]) for i in range(slices.micro_batches)]
    at_once = largest_divisor(rows, slices.micro_rollouts)
    computed = sum(-(-n // at_once) if at_once < rows else 1 for n in most) * at_once * in_slice * length
    metrics = {
        "update_tokens": float(stops.sum()),
        "update_share": computed / rollouts.inputs.size,
        "update_padding": 1 - stops.sum() / max(computed, 1),
        "unique_rollouts": float(different.mean()),
    }
    if length == tokens and min(map(len, fitted)) == count:  # nothing is left out: the record itself
        return _gather_rows(rollouts, coefficients, rules, None, sharding=sharding), metrics
    layout = _layout(groups, [fitted[group] for group in groups], stops[groups], (kept, rows, length), tokens)
    return _gather_rows(rollouts, coefficients, rules, layout, sharding=sharding), metrics


@jax.jit
def merge_identical(rollouts: Rollouts, coefficients: Coefficients) -> tuple[Coefficients, Array]:
    """Sums the coefficients [P, M] of rollouts that are token for token the same; the first of them gets the sum.

    The surrogate is linear in the coefficients, so its gradient stays the same, and the duplicates cost nothing.

    Returns:
      the coefficients [P, M], and the number of different rollouts of each prompt [P].
    """
    r = rollouts
    first = first_identical((r.inputs, r.targets, r.sampled, r.rationale_length, r.answer_start, r.answer_length))
    numbers = jnp.arange(first.shape[1])
    counted = first[:, None] == numbers[:, None]  # [P, M, M]
    merged = jax.tree.map(lambda x: jnp.where(counted, x[:, None], 0).sum(-1), coefficients)
    return merged, (first == numbers).sum(axis=1)


def _stops(rollouts: Rollouts, coefficients: Coefficients) -> Array:
    """Returns how many tokens of each rollout [P, M] the update needs: up to the last that carries a coefficient."""
    ends = rollouts.answer_start + rollouts.answer_length
    return jnp.where(coefficients.path != 0, ends, jnp.where(coefficients.score != 0, rollouts.rationale_length, 0))


def longest_rows(batch: PromptBatch, shape: RolloutShape, rules: Rules, sharding: Sharding) -> PackedRows:
    """Returns the shapes of what `pack` makes of rollouts [P, M, T] that all differ and have the longest length."""
    prompts, width = batch.prompt.shape
    fixed, answer = len(rules.end_of_think) + len(rules.joint), shape.max_answer or batch.gold.shape[1]
    tokens = rollout_tokens(shape.max_rationale, fixed, answer)
    rollouts = record_shapes(prompts, shape.num_rollouts, width, tokens)
    numbers = jax.ShapeDtypeStruct(rollouts.log_w.shape, jnp.float32)
    rows = jax.eval_shape(one_row_each, rollouts, Coefficients(score=numbers, path=numbers), rules)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), rows)


class _Layout(NamedTuple):
    """Where the rows' tokens come from.

    Attributes:
      groups: [P'] the groups that are kept.
      source: [P', B, T'] the index of every token in its group's M × T, −1 for padding.
      start: [P', B, T'], see `RowTokens`.
    """

    groups: np.ndarray
    source: np.ndarray
    start: np.ndarray | None


def _layout(
    groups: np.ndarray,
    fitted: Sequence[Sequence[Sequence[int]]],
    stops: np.ndarray,
    shape: tuple[int, int, int],
    tokens: int,
) -> _Layout:
    """Lays rollouts out one after the other in their rows.

    Args:
      groups: [P'] the groups that are kept.
      fitted: the rollouts of each row, for each of these groups.
      stops: [P', M] tokens of each rollout.
      shape: of the rows, (P', B, T').
      tokens: T of the record.
    """
    source, start = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    for group, rows in enumerate(fitted):
        for row, members in enumerate(rows):
            at = 0
            for m in members:
                stop = at + stops[group, m]
                source[group, row, at:stop] = m * tokens + np.arange(stop - at)
                start[group, row, at:] = at
                at = stop
    return _Layout(groups, source, start if start.any() else None)


@functools.partial(jax.jit, static_argnames="sharding")
def _gather_rows(
    rollouts: Rollouts,
    coefficients: Coefficients,
    rules: Rules | None,
    layout: _Layout | None,
    *,
    sharding: Sharding | None,
) -> PackedRows:
    """Gathers the rows that a layout describes; without one, a row for each rollout."""
    rows = one_row_each(rollouts, coefficients, rules)
    if layout is not None:
        rows = _apply_layout(rows, layout)
    # Without the constraint, the compiler replicates the rows on every device.
    return rows if sharding is None else jax.lax.with_sharding_constraint(rows, sharding)


def _apply_layout(whole: PackedRows, layout: _Layout) -> PackedRows:
    """Gathers the tokens of a row for each rollout, [P, M, T], into the rows of a layout: → [P', B, T']."""
    groups, source = layout.groups, layout.source
    flat = source.reshape(len(groups), -1)

    def gather(x: Array) -> Array:
        x = jnp.take_along_axis(x.reshape(len(x), -1)[groups], jnp.maximum(flat, 0), axis=1)
        return jnp.where(flat >= 0, x, 0).reshape(source.shape)

    tokens = jax.tree.map(gather, whole.tokens)
    # The gradient is a mean over the kept prompts: scaling makes it the mean over all.
    coefficient = tokens.coefficient * (len(groups) / len(whole.prompt))
    tokens = tokens._replace(coefficient=coefficient, start=layout.start)
    barred_ids = None if whole.barred_ids is None else whole.barred_ids[groups]
    return PackedRows(whole.prompt[groups], whole.prompt_length[groups], tokens, barred_ids)
