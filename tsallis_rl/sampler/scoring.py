"""Scores the gold answer after every finished rationale, or without one, and makes the record (docs/method.md §4)."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models import Architecture, Context, bind, token_log_probs
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.decode import (
    DecodeInputs,
    DecodeShape,
    DecodeState,
    RowIndex,
    RowState,
    row_index,
)
from tsallis_rl.sampler.record import NEVER, Rows
from tsallis_rl.sampler.rules import Rules


def score_gold(inputs: DecodeInputs, rows: RowState, *, shape: DecodeShape, slots: int) -> Rows:
    """Scores the gold answer after every finished rationale and makes the rows' record.

    End-of-think, joint and gold answer are read after the rationale with the rollout's own cache. Where no answers
    were sampled the record holds the gold answer.

    Args:
      inputs: see `DecodeInputs`.
      rows: all done.
      shape: see `DecodeShape`.
      slots: R, at least the rows of any prompt.
    """
    batch, progress = inputs.batch, rows.progress
    index = row_index(rows, batch, shape.num_rollouts)
    gold_inputs, gold_targets, gold_log_prob = _read_gold(inputs, rows, index, shape, slots)
    gold_length = index.per_row(batch.gold_length)
    in_gold = jnp.arange(batch.gold.shape[1]) < gold_length[..., None]
    closed = progress.closing != NEVER
    joint_length = inputs.sampling.rules.joint.shape[0]
    record = Rows(
        inputs=rows.inputs[..., : shape.total],
        targets=rows.targets[..., : shape.total],
        sampled=rows.sampled[..., : shape.total],
        log_prob=rows.log_prob[..., : shape.total],
        rationale_length=progress.rationale_length,
        closing=progress.closing,
        answer_start=progress.rationale_length + joint_length,
        answer_length=progress.answer_length,
        log_w=jnp.where(closed, jnp.where(in_gold, gold_log_prob, 0).sum(-1), -jnp.inf),
    )
    if shape.max_answer:
        return record

    offset = jnp.arange(shape.total + gold_inputs.shape[2]) - progress.rationale_length[..., None]

    def with_gold(tokens: Array, values: Array) -> Array:
        """Puts `values` after each rationale: [C, B, T] and [C, B, J + A] → [C, B, T + J + A]."""
        tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, offset.shape[2] - shape.total)))
        shifted = jnp.take_along_axis(values, jnp.clip(offset, 0, values.shape[2] - 1), axis=2)
        return jnp.where((offset >= 0) & (offset < values.shape[2]), shifted, tokens)

    log_prob = jnp.pad(jnp.where(in_gold, gold_log_prob, 0), ((0, 0), (0, 0), (joint_length, 0)))
    return record._replace(
        inputs=with_gold(record.inputs, gold_inputs),
        targets=with_gold(record.targets, gold_targets),
        sampled=with_gold(record.sampled, jnp.zeros(gold_targets.shape, bool)),
        log_prob=with_gold(record.log_prob, jnp.where(closed[..., None], log_prob, 0.0)),
        answer_length=jnp.where(closed, gold_length, 0),
    )


def _read_gold(
    inputs: DecodeInputs, rows: RowState, index: RowIndex, shape: DecodeShape, slots: int
) -> tuple[Array, Array, Array]:
    """Reads the last id of end-of-think, joint and gold answer after every rationale.

    Returns:
      inputs and targets of the extension [C, B, J + A], and log-probabilities of the gold answer [C, B, A].
    """
    decoder = bind(shape.arch, inputs.params.params)
    rules, size = inputs.sampling.rules, rows.rollout.shape
    joint = jnp.broadcast_to(rules.joint, (*size, *rules.joint.shape))
    targets = jnp.concatenate([joint, index.per_row(inputs.batch.gold)], axis=2)
    first = jnp.full((*size, 1), rules.end_of_think[-1], targets.dtype)
    tokens = jnp.concatenate([first, targets[..., :-1]], axis=2)
    start = index.per_row(inputs.batch.prompt_length) - 1 + rows.progress.rationale_length
    hidden, _ = decoder.extend(
        tokens,
        start[..., None] + jnp.arange(tokens.shape[2]),
        prompt=inputs.prompt,
        past=Context(rows.cache, rows.progress.rationale_length),
        layers=inputs.params.layers,
        slots=index.slots(jnp.ones(size, bool), slots),
    )
    answer = slice(joint.shape[2], None)
    log_prob = token_log_probs(
        hidden[:, :, answer], decoder.output_head(), targets[:, :, answer], decoder.arch.logit_form
    )
    return tokens, targets, log_prob


@functools.partial(jax.jit, static_argnames=("shape", "slots"))
def score_answers(inputs: DecodeInputs, state: DecodeState, *, shape: DecodeShape, slots: int) -> Rows:
    """Runs `score_gold` over all rows as one program."""
    return score_gold(inputs, state.rows, shape=shape, slots=slots)


@functools.partial(jax.jit, static_argnames=("arch", "mean_probability"))
def score_prompts(
    params: dict, batch: PromptBatch, rules: Rules, *, arch: Architecture, mean_probability: bool = False
) -> Array:
    """Scores gold answers right after the prompts, thinking closed at once → log p(y* | x*, no rationale) [P].

    End-of-think, joint and gold answer attend to the prompt's own keys, one row a prompt. With `mean_probability`
    the score is the mean probability of the answer's tokens.
    """
    decoder = bind(arch, params)
    prompt = decoder.read_prompt(batch.prompt, batch.prompt_length)
    between = jnp.concatenate([rules.end_of_think, rules.joint])
    ids = jnp.concatenate([jnp.broadcast_to(between, (len(batch.gold), len(between))), batch.gold], axis=1)
    last = batch.prompt_length[:, None] - 1
    tokens = jnp.concatenate([jnp.take_along_axis(batch.prompt, last, axis=1), ids[:, :-1]], axis=1)
    positions = last + jnp.arange(tokens.shape[1])
    hidden, _ = decoder.extend(tokens[:, None], positions[:, None], prompt=prompt)
    gold = batch.gold[:, None]
    log_prob = token_log_probs(hidden[:, :, len(between) :], decoder.output_head(), gold, arch.logit_form)
    in_gold = jnp.arange(gold.shape[2]) < batch.gold_length[:, None]
    if mean_probability:
        return jnp.where(in_gold, jnp.exp(log_prob[:, 0]), 0).sum(-1) / batch.gold_length
    return jnp.where(in_gold, log_prob[:, 0], 0).sum(-1)
