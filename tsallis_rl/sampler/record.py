"""The record of rollouts, and the addresses of their randomness.

A rollout is a stream of tokens that the model reads (`inputs`) and of what came next (`targets`); it starts by reading
the prompt's last token:

    inputs    x_last  z_1   z_2 …  z_L        </think>  joint …  y_1 …       y_A
    targets   z_1     z_2   …      </think>   joint …   y_1      y_2 …       <eos>
              |------ rationale_length -----|           |---- answer_length ----|
                                            (joint: forced)

`sampler` makes them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# How a rationale closed. REPLACED: an end of sequence was sampled and the end-of-think token read in its place.
SAMPLED, FORCED, NEVER, REPLACED = 1, 2, 3, 4


class Group(NamedTuple):
    """P prompts with their gold answers, right-padded.

    Attributes:
      prompt: [P, T0] ids.
      prompt_length: [P].
      gold: [P, A] ids, end-of-sequence included.
      gold_length: [P].
    """

    prompt: Array
    prompt_length: Array
    gold: Array
    gold_length: Array


class Truncation(NamedTuple):
    """Which tokens may be drawn at a temperature.

    Attributes:
      top_k: the k most likely; 0 is all.
      top_p: of these the most likely that together reach this probability; 1 is all.
      min_p: and of these those with at least this share of the likeliest one's probability; 0 is all.
    """

    top_k: Array
    top_p: Array
    min_p: Array


class Sampling(NamedTuple):
    """Numbers and ids of the sampler; all traced, so that changing one compiles nothing.

    Attributes:
      temperature: of the draws; 0 is greedy. Recorded log-probabilities are those of temperature 1, nothing left out.
      budget: rationale tokens before the end-of-think token is forced; at most the compiled maximum.
      end_of_think: id.
      end_of_sequence: [E] ids.
      joint: [J] ids between the end-of-think token and the answer.
      close_unclosed: what an end of sequence inside the rationale means: False, no answer (w = 0); True, the
        end-of-think token is read in its place.
      truncation: what is never drawn, if anything; having one at all is compiled, its numbers are not.
    """

    temperature: Array
    budget: Array
    end_of_think: Array
    end_of_sequence: Array
    joint: Array
    close_unclosed: Array
    truncation: Truncation | None = None


class Rollouts(NamedTuple):
    """The one record that weights, loss, metrics, pages and replay read.

    Attributes:
      prompt: [P, T0] ids.
      prompt_length: [P].
      inputs: [P, M, T] what the model read.
      targets: [P, M, T] what came next.
      sampled: [P, M, T] True where the target was drawn from the policy.
      log_prob: [P, M, T] log-probability of the target where it was sampled or belongs to the answer, else 0.
      rationale_length: [P, M] targets up to and including the one that closed the rationale.
      closing: [P, M] SAMPLED, FORCED, NEVER or REPLACED.
      answer_start: [P, M] index of the answer's first target.
      answer_length: [P, M] answer targets; 0 where the rationale never closed.
      log_w: [P, M] log p(y* | x*, z), −inf where the rationale never closed; of the gold answer, whichever answer the
        stream holds.
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


TRAIN, VALIDATION, TEST, ESTIMATOR = range(4)  # streams of randomness


@jax.jit
def address(seed: int, stream: int, step: int, slots: Array) -> Array:
    """Keys [P] of (seed, stream, step, slot), the slot being an example's place in the step's batch or in its split.

    The sampler folds the rollout and the position into them, so a rollout depends on its address alone.
    """
    key = jax.random.key(seed)
    for number in (stream, step):
        key = jax.random.fold_in(key, number)
    return jax.vmap(functools.partial(jax.random.fold_in, key))(slots)


def supervised(group: Group, rationale: np.ndarray, rationale_length: np.ndarray, end_of_think: int) -> Rollouts:
    """Given rationales as a record of M = 1, for supervised training by the same learner; all on the host.

    Args:
      group: prompts and answers.
      rationale: [P, Z] ids without the end-of-think token.
      rationale_length: [P], the same.
      end_of_think: id.

    Returns:
      Rollouts [P, 1, Z + 1 + A] whose rationale counts as sampled; log_prob and log_w are zero.
    """
    index = np.arange(rationale.shape[1] + 1 + group.gold.shape[1])
    place = index - rationale_length[:, None]  # 0 at the end-of-think token
    thought = np.take_along_axis(rationale, np.minimum(index, rationale.shape[1] - 1)[None], axis=1)
    answer = np.take_along_axis(group.gold, np.clip(place - 1, 0, group.gold.shape[1] - 1), axis=1)
    targets = np.select([place < 0, place == 0], [thought, end_of_think], answer).astype(np.int32)
    last = np.take_along_axis(group.prompt, group.prompt_length[:, None] - 1, axis=1).astype(np.int32)
    length = (rationale_length[:, None] + 1).astype(np.int32)
    return Rollouts(
        prompt=group.prompt.astype(np.int32),
        prompt_length=group.prompt_length.astype(np.int32),
        inputs=np.concatenate([last, targets[:, :-1]], axis=1)[:, None],
        targets=targets[:, None],
        sampled=(place <= 0)[:, None],
        log_prob=np.zeros(targets.shape, np.float32)[:, None],
        rationale_length=length,
        closing=np.full_like(length, SAMPLED, np.int8),
        answer_start=length,
        answer_length=group.gold_length[:, None].astype(np.int32),
        log_w=np.zeros(length.shape, np.float32),
    )
