"""The rules of a rollout, one token at a time (docs/method.md §4): a pure state machine.

    phase      what comes next                                          what ends the phase
    rationale  the sampled token; at the budget, end-of-think (forced)  end-of-think, or a stop id
    joint      the tokens of the joint, one after the other (forced)    the last of them
    answer     the sampled token                                        a stop id, or the longest answer
    done       nothing: the rollout stays as it is

A stop id inside of the rationale ends the rollout without an answer; with `close_unclosed` the model reads end-of-think
in its place and continues. Where the gold answer is scored instead of an answer being sampled (max_answer = 0), a
rollout is done as soon as its rationale is closed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.sampler.record import FORCED, NEVER, OPEN, REPLACED, SAMPLED


class Rules(NamedTuple):
    """Ids and numbers that the rules read; traced, so that changing one compiles nothing.

    Attributes:
      budget: rationale tokens before end-of-think is forced; at most the compiled maximum.
      end_of_think: id.
      stop_ids: [E] ids that end a sequence.
      joint: [J] ids between end-of-think and answer.
      close_unclosed: a stop id inside the rationale means: False, no answer (w = 0); True, end-of-think is read in its
        place.
    """

    budget: Array
    end_of_think: Array
    stop_ids: Array
    joint: Array
    close_unclosed: Array


class Progress(NamedTuple):
    """How far each rollout has come; all [C, B].

    Attributes:
      rationale_length: tokens up to and including the one that closed the rationale; 0 while it is open.
      closing: OPEN, SAMPLED, FORCED, NEVER or REPLACED.
      answer_length: answer tokens so far.
      done: whether nothing more is sampled.
    """

    rationale_length: Array
    closing: Array
    answer_length: Array
    done: Array


class Transition(NamedTuple):
    """The result of one step of the rules; all [C, B].

    Attributes:
      target: the token that is recorded as what came next.
      read: the token that the model reads next; another one only where a stop id was replaced by end-of-think.
      forced: where the target was not sampled.
      progress: after the step.
    """

    target: Array
    read: Array
    forced: Array
    progress: Progress


def start_progress(shape: tuple[int, ...]) -> Progress:
    """Makes the progress of rollouts that have sampled nothing yet."""
    return Progress(
        rationale_length=jnp.zeros(shape, jnp.int32),
        closing=jnp.full(shape, OPEN, jnp.int8),
        answer_length=jnp.zeros(shape, jnp.int32),
        done=jnp.zeros(shape, bool),
    )


def advance(progress: Progress, sampled: Array, t: Array, rules: Rules, *, max_answer: int) -> Transition:
    """Applies the rules to the tokens sampled at positions t: ids [C, B] and t [C, B] → Transition.

    Args:
      progress: before the step.
      sampled: ids that token sampling chose.
      t: how many tokens each rollout has already.
      rules: see `Rules`.
      max_answer: the longest sampled answer, its end included; 0 where the gold answer is scored instead.
    """
    joint_length = rules.joint.shape[0]
    in_rationale = progress.closing == OPEN
    in_joint = ~in_rationale & (t < progress.rationale_length + joint_length)
    in_answer = ~in_rationale & ~in_joint

    over_budget = in_rationale & (t >= rules.budget)
    target = jnp.where(over_budget, rules.end_of_think, sampled)
    if joint_length:
        index = jnp.clip(t - progress.rationale_length, 0, joint_length - 1)
        target = jnp.where(in_joint, rules.joint[index], target)

    stops = (target[..., None] == rules.stop_ids).any(-1)
    closing = jnp.select(
        [~in_rationale, over_budget, target == rules.end_of_think, stops & rules.close_unclosed, stops],
        [progress.closing, FORCED, SAMPLED, REPLACED, NEVER],
        OPEN,
    ).astype(jnp.int8)
    closes = in_rationale & (closing != OPEN)
    read = jnp.where(closes & (closing == REPLACED), rules.end_of_think, target)

    answer_length = progress.answer_length + in_answer
    if max_answer:
        done = (closing == NEVER) | (in_answer & (stops | (answer_length == max_answer)))
    else:
        done = closes
    after = Progress(
        rationale_length=jnp.where(closes, t + 1, progress.rationale_length),
        closing=closing,
        answer_length=answer_length,
        done=done,
    )
    after = jax.tree.map(lambda old, new: jnp.where(progress.done, old, new), progress, after)
    return Transition(target, read, over_budget | in_joint, after)
