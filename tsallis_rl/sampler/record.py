"""The record of rollouts, which weights, loss, metrics, pages and replay read by field name.

A rollout has the tokens that the model read (`inputs`) and the token that came after each (`targets`). It starts by
reading the prompt's last token:

    inputs    x_last  z_1   z_2 …  z_n        </think>  joint …  y_1 …       y_A
    targets   z_1     z_2   …      </think>   joint …   y_1      y_2 …       <eos>
              |------ rationale_length -----|           |---- answer_length ----|
                                            (joint: forced)
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl.sampler.batch import PromptBatch

# How a rationale closed. REPLACED: a stop id was sampled and end-of-think read in its place. OPEN: not yet.
OPEN, SAMPLED, FORCED, NEVER, REPLACED = range(5)


class Rows(NamedTuple):
    """The record of each rollout, in rows [C, B, …] of shards or by prompt [P, M, …].

    Attributes:
      inputs: [C, B, T] what the model read.
      targets: [C, B, T] what came next.
      sampled: [C, B, T] True where the target was sampled from the policy.
      log_prob: [C, B, T] log-probability of the target where it was sampled or belongs to the answer, else 0.
      rationale_length: [C, B] targets up to and including the one that closed the rationale.
      closing: [C, B] SAMPLED, FORCED, NEVER or REPLACED.
      answer_start: [C, B] index of the answer's first target.
      answer_length: [C, B] answer targets; 0 where the rationale never closed.
      log_w: [C, B] log p(y* | x*, z) of the gold answer, whichever answer the sequence holds; −inf where the rationale
        never closed.
    """

    inputs: Array
    targets: Array
    sampled: Array
    log_prob: Array
    rationale_length: Array
    closing: Array
    answer_start: Array
    answer_length: Array
    log_w: Array


class Rollouts(NamedTuple):
    """P prompts with M rollouts each: the prompts' fields, then those of `Rows` with [P, M] for [C, B].

    Attributes:
      prompt: [P, T0] ids.
      prompt_length: [P].
    """

    prompt: Array
    prompt_length: Array
    inputs: Array
    targets: Array
    sampled: Array
    log_prob: Array
    rationale_length: Array
    closing: Array
    answer_start: Array
    answer_length: Array
    log_w: Array

    @property
    def score_mask(self) -> Array:
        """[P, M, T], True at the rationale's sampled tokens: those that the score coefficient multiplies."""
        return self.sampled & (jnp.arange(self.targets.shape[-1]) < self.rationale_length[..., None])

    @property
    def path_mask(self) -> Array:
        """[P, M, T], True at the answer's tokens: those that the path coefficient multiplies."""
        offset = jnp.arange(self.targets.shape[-1]) - self.answer_start[..., None]
        return (offset >= 0) & (offset < self.answer_length[..., None])


def record_of(batch: PromptBatch, rows: Rows) -> Rollouts:
    """Joins prompts [P, …] and the rows of their rollouts [P, M, …] into the record."""
    return Rollouts(prompt=batch.prompt, prompt_length=batch.prompt_length, **rows._asdict())


def record_shapes(prompts: int, num_rollouts: int, prompt_tokens: int, tokens: int) -> Rollouts:
    """Returns the shapes and dtypes of a record of P prompts of T0 tokens with M rollouts of T tokens each."""
    like, rows = jax.ShapeDtypeStruct, (prompts, num_rollouts)
    count = like(rows, jnp.int32)
    return Rollouts(
        prompt=like((prompts, prompt_tokens), jnp.int32),
        prompt_length=like((prompts,), jnp.int32),
        inputs=like((*rows, tokens), jnp.int32),
        targets=like((*rows, tokens), jnp.int32),
        sampled=like((*rows, tokens), jnp.bool_),
        log_prob=like((*rows, tokens), jnp.float32),
        rationale_length=count,
        closing=like(rows, jnp.int8),
        answer_start=count,
        answer_length=count,
        log_w=like(rows, jnp.float32),
    )


def supervised_record(
    batch: PromptBatch, rationale: np.ndarray, rationale_length: np.ndarray, end_of_think: Sequence[int]
) -> Rollouts:
    """Makes a record of M = 1 from given rationales, for supervised training by the same learner; all on the host.

    Args:
      batch: prompts and answers.
      rationale: [P, n] ids without end-of-think.
      rationale_length: [P], without end-of-think.
      end_of_think: L ids.

    Returns:
      Rollouts [P, 1, n + L + A] whose rationale counts as sampled; log_prob and log_w are zero.
    """
    closing = len(end_of_think)
    index = np.arange(rationale.shape[1] + closing + batch.gold.shape[1])
    offset = index - rationale_length[:, None]  # 0 at the first id of end-of-think
    thought = np.take_along_axis(rationale, np.minimum(index, rationale.shape[1] - 1)[None], axis=1)
    answer = np.take_along_axis(batch.gold, np.clip(offset - closing, 0, batch.gold.shape[1] - 1), axis=1)
    marker = np.asarray(end_of_think)[np.clip(offset, 0, closing - 1)]
    targets = np.select([offset < 0, offset < closing], [thought, marker], answer).astype(np.int32)
    last = np.take_along_axis(batch.prompt, batch.prompt_length[:, None] - 1, axis=1).astype(np.int32)
    length = (rationale_length[:, None] + closing).astype(np.int32)
    return Rollouts(
        prompt=batch.prompt.astype(np.int32),
        prompt_length=batch.prompt_length.astype(np.int32),
        inputs=np.concatenate([last, targets[:, :-1]], axis=1)[:, None],
        targets=targets[:, None],
        sampled=(offset < closing)[:, None],
        log_prob=np.zeros(targets.shape, np.float32)[:, None],
        rationale_length=length,
        closing=np.full_like(length, SAMPLED, np.int8),
        answer_start=length,
        answer_length=batch.gold_length[:, None].astype(np.int32),
        log_w=np.zeros(length.shape, np.float32),
    )


def concatenate_rollouts(parts: Sequence[Rollouts]) -> Rollouts:
    """Concatenates records [P, M, …] of the same prompts into one [P, ΣM, …]."""
    rest = [part._replace(prompt=None, prompt_length=None) for part in parts]
    joined = jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *rest)
    return joined._replace(prompt=parts[0].prompt, prompt_length=parts[0].prompt_length)
