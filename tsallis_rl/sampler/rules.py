"""The rules of a rollout, one token at a time (docs/method.md §4): a pure state machine.

    phase      what comes next                                          what ends the phase
    rationale  the sampled token; at the budget, end-of-think (forced)  end-of-think, or a stop id
    joint      the tokens of the joint, one after the other (forced)    the last of them
    answer     the sampled token                                        a stop id, or the longest answer
    done       nothing: the rollout stays as it is

End-of-think is one id or several. Several close the rationale once they follow one another in it, sampled or forced; at
the budget, those still missing are forced. A stop id inside the rationale ends the rollout without an answer; with
`close_unclosed` the model instead reads the missing ids of end-of-think in its place and continues. Where the gold
answer is scored and no answer is sampled (max_answer = 0), a rollout is done as soon as its rationale is closed.

Before `min_rationale` tokens, stop ids and the id that would complete end-of-think cannot be sampled: they are barred
(`barred_counts`), and log-probabilities are those of the distribution without them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.sampler.record import FORCED, NEVER, OPEN, REPLACED, SAMPLED, Rollouts


class Rules(NamedTuple):
    """Ids and numbers that the rules read; traced, so that changing one recompiles nothing.

    Attributes:
      budget: rationale tokens before end-of-think is forced; at most the compiled maximum.
      end_of_think: [L] ids.
      stop_ids: [E] ids that end a sequence.
      joint: [J] ids between end-of-think and answer.
      close_unclosed: whether end-of-think is read in place of a stop id inside the rationale; if False, such a stop id
        means no answer (w = 0).
      min_rationale: tokens before which a rationale cannot end; None for no limit. Whether there is a limit is
        compiled, its number is not.
    """

    budget: Array
    end_of_think: Array
    stop_ids: Array
    joint: Array
    close_unclosed: Array
    min_rationale: Array | None = None

    @property
    def barred_ids(self) -> Array:
        """[E + 1] the stop ids, and the id that completes end-of-think; see `barred_counts`."""
        return jnp.concatenate([self.stop_ids, self.end_of_think[-1:]])


class Progress(NamedTuple):
    """The progress of each rollout; all [C, B].

    Attributes:
      rationale_length: tokens up to and including the one that closed the rationale; 0 while it is open.
      closing: OPEN, SAMPLED, FORCED, NEVER or REPLACED. FORCED and REPLACED are set at the first id of end-of-think
        that was not sampled.
      matched: how many leading ids of end-of-think the rationale ends with.
      answer_length: answer tokens so far.
      done: whether nothing more is sampled.
    """

    rationale_length: Array
    closing: Array
    matched: Array
    answer_length: Array
    done: Array


class Transition(NamedTuple):
    """The result of one step of the rules; all [C, B].

    Attributes:
      target: the token that is recorded as the next one.
      read: the token that the model reads next; not the target only where end-of-think replaces a stop id.
      forced: whether the target was forced, not sampled.
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
        matched=jnp.zeros(shape, jnp.int8),
        answer_length=jnp.zeros(shape, jnp.int32),
        done=jnp.zeros(shape, bool),
    )


def match_ids(matched: Array, token: Array, ids: Array) -> Array:
    """Counts how many leading `ids` [L] a text ends with once `token` is added: matched [C, B] → [C, B].

    Args:
      matched: the count before, less than L.
      token: [C, B].
      ids: [L].

    Source: Knuth, Morris and Pratt 1977, doi 10.1137/0206024.
    """
    length, after = len(ids), jnp.zeros_like(matched)
    for n in range(1, length + 1):
        # A text that ends with the first `before` ids may end with the first n - 1 as well.
        ends = [before >= n - 1 and (ids[: n - 1] == ids[before - n + 1 : before]).all() for before in range(length)]
        after = jnp.where((token == ids[n - 1]) & jnp.stack(ends)[matched], jnp.int8(n), after)
    return after


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
    in_rationale = progress.rationale_length == 0
    in_joint = ~in_rationale & (t < progress.rationale_length + joint_length)
    in_answer = ~in_rationale & ~in_joint

    is_closing = in_rationale & ((t >= rules.budget) | (progress.closing != OPEN))
    missing = rules.end_of_think[jnp.minimum(progress.matched, len(rules.end_of_think) - 1)]
    target = jnp.where(is_closing, missing, sampled)
    if joint_length:
        index = jnp.clip(t - progress.rationale_length, 0, joint_length - 1)
        target = jnp.where(in_joint, rules.joint[index], target)

    stops = (target[..., None] == rules.stop_ids).any(-1)
    is_unclosed = in_rationale & ~is_closing & stops
    replaced = is_unclosed & rules.close_unclosed
    read = jnp.where(replaced, missing, target)
    matched = jnp.where(in_rationale, match_ids(progress.matched, read, rules.end_of_think), progress.matched)
    is_whole = in_rationale & (matched == len(rules.end_of_think))
    closing = jnp.select(
        [progress.closing != OPEN, is_closing, replaced, is_unclosed, is_whole],
        [progress.closing, FORCED, REPLACED, NEVER, SAMPLED],
        OPEN,
    ).astype(jnp.int8)
    closes = is_whole | (is_unclosed & ~replaced)

    answer_length = progress.answer_length + in_answer
    if max_answer:
        done = (closing == NEVER) | (in_answer & (stops | (answer_length == max_answer)))
    else:
        done = closes
    after = Progress(
        rationale_length=jnp.where(closes, t + 1, progress.rationale_length),
        closing=closing,
        matched=matched,
        answer_length=answer_length,
        done=done,
    )
    after = jax.tree.map(lambda old, new: jnp.where(progress.done, old, new), progress, after)
    return Transition(target, read, is_closing | in_joint, after)


def barred_counts(progress: Progress, t: Array, rules: Rules) -> Array:
    """Counts how many leading `rules.barred_ids` cannot be sampled at positions t [C, B]: 0, E or E + 1.

    Needs rules with a min_rationale.
    """
    early = (progress.rationale_length == 0) & (t < rules.min_rationale) & (t < rules.budget)
    last = progress.matched == len(rules.end_of_think) - 1
    return early * (len(rules.stop_ids) + last)


def recorded_barred_counts(rollouts: Rollouts, rules: Rules) -> Array:
    """Computes the `barred_counts` under which each token of a record was sampled, [P, M, T]."""
    marker, targets = rules.end_of_think, rollouts.targets
    last = jnp.ones(targets.shape, bool)
    for i in range(1, len(marker)):  # compares the i-th token before with the i-th id before the last one
        last &= jnp.pad(targets, ((0, 0), (0, 0), (i, 0)), constant_values=-1)[..., :-i] == marker[-1 - i]
    early = rollouts.score_mask & (jnp.arange(targets.shape[-1]) < rules.min_rationale)
    return (early * (len(rules.stop_ids) + last)).astype(jnp.int8)
