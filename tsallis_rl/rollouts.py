"""Rollouts: M rationales a prompt, sampled, closed and scored in one compiled program.

A rollout is a stream of tokens that the model reads (`inputs`) and of what came next (`targets`); it starts by reading
the prompt's last token:

    inputs    x_last  z_1   z_2 …  z_L        </think>  joint …  y_1 …       y_A
    targets   z_1     z_2   …      </think>   joint …   y_1      y_2 …       <eos>
              |------ rationale_length -----|           |---- answer_length ----|
                                            (joint: forced)

The gold answer is scored behind every rationale by extending the rollout's own key-value cache (METHOD §4).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl.mesh import all_gathered
from tsallis_rl.models import Architecture, Decoder, KeyValues, bind, output_logits, token_log_probs

# How a rationale closed. REPLACED: an end of sequence was sampled and the end-of-think token read in its place.
SAMPLED, FORCED, NEVER, REPLACED = 1, 2, 3, 4
_OPEN = 0
MIN_SEGMENT, MAX_SEGMENTS = 32, 6  # the cache grows by at least so many tokens, and so many times
LANES = 1  # its length is a multiple of this
DRAW_BLOCK = 128  # tokens of a large vocabulary that are drawn from together


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


class Sampling(NamedTuple):
    """Numbers and ids of the sampler; all traced, so that changing one compiles nothing.

    Attributes:
      temperature: of the draws; 0 is greedy. Recorded log-probabilities are those of temperature 1.
      budget: rationale tokens before the end-of-think token is forced; at most the compiled maximum.
      end_of_think: id.
      end_of_sequence: [E] ids.
      joint: [J] ids between the end-of-think token and the answer.
      close_unclosed: what an end of sequence inside the rationale means: False, no answer (w = 0); True, the
        end-of-think token is read in its place.
    """

    temperature: Array
    budget: Array
    end_of_think: Array
    end_of_sequence: Array
    joint: Array
    close_unclosed: Array


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


def prompt_states(decoder: Decoder, prompt: Array, prompt_length: Array) -> tuple[KeyValues, Array]:
    """Keys and values of the prompt [N, …], and the mask [P, T0] of all but the last token.

    The last token is read by each rollout itself, since it predicts the rollout's first token.
    """
    _, kv = decoder.prefill(prompt)
    return kv, jnp.arange(prompt.shape[1]) < prompt_length[:, None] - 1


class _Progress(NamedTuple):
    """Where each rollout stands; all [P, M], as in Rollouts."""

    rationale_length: Array
    closing: Array
    answer_length: Array
    done: Array


def _advance(
    progress: _Progress, drawn: Array, t: Array, sampling: Sampling, max_answer: int
) -> tuple[Array, Array, Array, _Progress]:
    """The rules of METHOD §4: what becomes of the tokens drawn [P, M] at step t.

    Returns:
      target, the token that goes down as what came next; read, the one that the model reads next; forced, True where
      the target was not drawn; the new progress. Rollouts that are done stay as they are.
    """
    joint_length = sampling.joint.shape[0]
    is_open = progress.closing == _OPEN
    over_budget = is_open & (t >= sampling.budget)
    in_joint = ~is_open & (t < progress.rationale_length + joint_length)
    target = jnp.where(over_budget, sampling.end_of_think, drawn)
    if joint_length:
        place = jnp.clip(t - progress.rationale_length, 0, joint_length - 1)
        target = jnp.where(in_joint, sampling.joint[place], target)

    ends = (target[..., None] == sampling.end_of_sequence).any(-1)
    closing = jnp.select(
        [~is_open, over_budget, target == sampling.end_of_think, ends & sampling.close_unclosed, ends],
        [progress.closing, FORCED, SAMPLED, REPLACED, NEVER],
        _OPEN,
    ).astype(jnp.int8)
    just_closed = is_open & (closing != _OPEN)
    read = jnp.where(just_closed & (closing == REPLACED), sampling.end_of_think, target)
    in_answer = ~is_open & ~in_joint
    answer_length = progress.answer_length + in_answer
    if max_answer:
        finished = (closing == NEVER) | (in_answer & (ends | (answer_length == max_answer)))
    else:
        finished = just_closed
    new = _Progress(
        rationale_length=jnp.where(just_closed, t + 1, progress.rationale_length),
        closing=closing,
        answer_length=answer_length,
        done=finished,
    )
    kept = jax.tree.map(lambda old, new: jnp.where(progress.done, old, new), progress, new)
    return target, read, over_budget | in_joint, kept


def draw(key: Array, logits: Array, temperature: Array) -> Array:
    """A token of softmax(logits [V] / temperature), by the largest of logits + temperature × Gumbel noise.

    Of a large vocabulary first the block of DRAW_BLOCK tokens, by the blocks' log-sum-exps, then the token in it: the
    same law from V / DRAW_BLOCK + DRAW_BLOCK random numbers instead of V. A block's tokens are spread evenly over the
    vocabulary, so that devices that share it each hold part of every block, and send its sum instead of logits.
    """

    def largest(key: Array, values: Array) -> Array:
        return jnp.argmax(values + temperature * jax.random.gumbel(key, values.shape)).astype(jnp.int32)

    if logits.size <= 2 * DRAW_BLOCK:
        return largest(key, logits)
    padding = -logits.size % DRAW_BLOCK
    blocks = jnp.pad(logits, (0, padding), constant_values=-jnp.inf).reshape(DRAW_BLOCK, -1)
    scale = jnp.maximum(temperature, 1e-6)  # at temperature 0 the block with the largest logit
    first, second = jax.random.split(key)
    block = largest(first, scale * jax.nn.logsumexp(blocks / scale, axis=0))
    return largest(second, blocks[:, block]) * blocks.shape[1] + block


class _Loop(NamedTuple):
    """What the sampling loop carries; shapes as in Rollouts, inputs one longer."""

    step: Array
    cache: KeyValues
    inputs: Array
    targets: Array
    sampled: Array
    log_prob: Array
    progress: _Progress


def _sample(
    decoder: Decoder, prompt_kv: KeyValues, prompt_mask: Array, group: Group, keys: Array, sampling: Sampling, *,
    num_rollouts: int, max_rationale: int, max_answer: int,
) -> _Loop:  # fmt: skip
    """Draws rationales and, if max_answer > 0, answers."""
    shape = (group.prompt.shape[0], num_rollouts)
    total = max_rationale + 1 + (sampling.joint.shape[0] + max_answer if max_answer else 0)
    arch = decoder.arch
    head = decoder.output_head()
    context = group.prompt_length[:, None] - 1
    keys = jax.vmap(lambda key: jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(num_rollouts)))(keys)

    last = jnp.take_along_axis(group.prompt, context, axis=1)
    heads = (arch.layers, *shape, arch.kv_heads)
    counts = jnp.zeros(shape, jnp.int32)
    start = _Loop(
        step=jnp.int32(0),
        cache=KeyValues(
            jnp.zeros((*heads, arch.head_dim, 0), arch.dtype), jnp.zeros((*heads, 0, arch.head_dim), arch.dtype)
        ),
        inputs=jnp.zeros((*shape, total + 1), jnp.int32).at[:, :, 0].set(last),
        targets=jnp.zeros((*shape, total), jnp.int32),
        sampled=jnp.zeros((*shape, total), bool),
        log_prob=jnp.zeros((*shape, total), jnp.float32),
        progress=_Progress(counts, jnp.full(shape, _OPEN, jnp.int8), counts, jnp.zeros(shape, bool)),
    )

    def one_step(loop: _Loop) -> _Loop:
        t, running = loop.step, ~loop.progress.done
        held = loop.cache.values.shape[4]
        token = jax.lax.dynamic_slice_in_dim(loop.inputs, t, 1, axis=2)
        hidden, kv = decoder.extend(
            token, jnp.broadcast_to(context[..., None] + t, token.shape),
            prompt=prompt_kv, prompt_mask=prompt_mask,
            past=loop.cache, past_mask=jnp.broadcast_to(jnp.arange(held) < t, (*shape, held)),
        )  # fmt: skip
        logits = output_logits(hidden[:, :, 0], head, arch.logit_cap)
        step_keys = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(0, None)), in_axes=(0, None))(keys, t)
        drawn = jax.vmap(jax.vmap(draw, in_axes=(0, 0, None)), in_axes=(0, 0, None))(
            step_keys, logits, sampling.temperature
        )
        target, read, forced, progress = _advance(loop.progress, drawn, t, sampling, max_answer)
        log_prob = jnp.take_along_axis(logits, target[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)

        def write(array: Array, value: Array, at: Array) -> Array:
            value = jnp.where(running, value, 0).astype(array.dtype)
            return jax.lax.dynamic_update_slice_in_dim(array, value[..., None], at, axis=2)

        return _Loop(
            step=t + 1,
            cache=loop.cache.written(kv, t),
            inputs=write(loop.inputs, read, t + 1),
            targets=write(loop.targets, target, t),
            sampled=write(loop.sampled, ~forced, t),
            log_prob=write(loop.log_prob, jnp.where(forced, 0.0, log_prob), t),
            progress=progress,
        )

    # The cache grows segment by segment, so that no step attends over much that is still empty.
    loop = start
    segment = LANES * -(-max(MIN_SEGMENT, total // MAX_SEGMENTS) // LANES)
    for first in range(0, total, segment):
        more = min(segment, LANES * -(-(total - first) // LANES))
        end = min(first + segment, total)
        running = functools.partial(lambda end, loop: (loop.step < end) & ~loop.progress.done.all(), end)
        loop = jax.lax.while_loop(running, one_step, loop._replace(cache=loop.cache.grown(more)))
    return loop._replace(inputs=loop.inputs[..., :total])


def _score_gold(
    decoder: Decoder, prompt_kv: KeyValues, prompt_mask: Array, group: Group, loop: _Loop, sampling: Sampling
) -> tuple[Array, Array, Array]:
    """Reads end-of-think, joint and gold answer behind every rationale with the rollout's own cache.

    Returns:
      inputs and targets of the extension, [P, M, J + A], and log-probabilities of the gold answer, [P, M, A].
    """
    prompts, num_rollouts = loop.progress.closing.shape
    joint = jnp.broadcast_to(sampling.joint, (prompts, *sampling.joint.shape))
    targets = jnp.concatenate([joint, group.gold], axis=1)
    first = jnp.full((prompts, 1), sampling.end_of_think, targets.dtype)
    inputs = jnp.concatenate([first, targets[:, :-1]], axis=1)
    inputs, targets = (
        jnp.broadcast_to(ids[:, None], (prompts, num_rollouts, ids.shape[1])) for ids in (inputs, targets)
    )
    start = group.prompt_length[:, None] - 1 + loop.progress.rationale_length
    hidden, _ = decoder.extend(
        inputs, start[..., None] + jnp.arange(inputs.shape[2]),
        prompt=prompt_kv, prompt_mask=prompt_mask,
        past=loop.cache, past_mask=jnp.arange(loop.cache.values.shape[4]) < loop.progress.rationale_length[..., None],
    )  # fmt: skip
    answer = slice(joint.shape[1], None)
    log_prob = token_log_probs(
        hidden[:, :, answer], decoder.output_head(), targets[:, :, answer], decoder.arch.logit_cap
    )
    return inputs, targets, log_prob


@functools.partial(jax.jit, static_argnames=("arch", "num_rollouts", "max_rationale", "max_answer"))
def roll_out(
    params: dict, group: Group, keys: Array, sampling: Sampling, *,
    arch: Architecture, num_rollouts: int, max_rationale: int, max_answer: int = 0,
) -> Rollouts:  # fmt: skip
    """M rollouts for each of P prompts.

    Args:
      params: the decoder's parameters.
      group: prompts and gold answers.
      keys: [P] typed keys; see `address`.
      sampling: traced numbers and ids.
      arch: the decoder's architecture.
      num_rollouts: M.
      max_rationale: compiled maximum of `sampling.budget`.
      max_answer: 0: the stream holds the gold answer; otherwise answers of up to this many tokens, end-of-sequence
        included, are sampled and the stream holds them.

    Returns:
      Rollouts of T = max_rationale + 1 + J + (A or max_answer).
    """
    decoder = bind(arch, all_gathered(params, arch.dtype))
    prompt_kv, prompt_mask = prompt_states(decoder, group.prompt, group.prompt_length)
    loop = _sample(
        decoder, prompt_kv, prompt_mask, group, keys, sampling,
        num_rollouts=num_rollouts, max_rationale=max_rationale, max_answer=max_answer,
    )  # fmt: skip
    gold_inputs, gold_targets, gold_log_prob = _score_gold(decoder, prompt_kv, prompt_mask, group, loop, sampling)
    in_gold = jnp.arange(group.gold.shape[1]) < group.gold_length[:, None, None]
    progress = loop.progress
    closed = progress.closing != NEVER
    log_w = jnp.where(closed, jnp.where(in_gold, gold_log_prob, 0).sum(-1), -jnp.inf)

    joint_length = sampling.joint.shape[0]
    rollouts = Rollouts(
        *group[:2],
        inputs=loop.inputs,
        targets=loop.targets,
        sampled=loop.sampled,
        log_prob=loop.log_prob,
        rationale_length=progress.rationale_length,
        closing=progress.closing,
        answer_start=progress.rationale_length + joint_length,
        answer_length=progress.answer_length,
        log_w=log_w,
    )
    if max_answer:
        return rollouts

    extension = jnp.arange(max_rationale + 1 + gold_inputs.shape[2]) - progress.rationale_length[..., None]

    def behind(stream: Array, values: Array) -> Array:
        """`values` from each rollout's rationale_length on, `stream` before it."""
        stream = jnp.pad(stream, ((0, 0), (0, 0), (0, extension.shape[2] - stream.shape[2])))
        placed = jnp.take_along_axis(values, jnp.clip(extension, 0, values.shape[2] - 1), axis=2)
        return jnp.where((extension >= 0) & (extension < values.shape[2]), placed, stream)

    log_prob = jnp.pad(jnp.where(in_gold, gold_log_prob, 0), ((0, 0), (0, 0), (joint_length, 0)))
    return rollouts._replace(
        inputs=behind(loop.inputs, gold_inputs),
        targets=behind(loop.targets, gold_targets),
        sampled=behind(loop.sampled, jnp.zeros(gold_targets.shape, bool)),
        log_prob=behind(loop.log_prob, jnp.where(closed[..., None], log_prob, 0.0)),
        answer_length=jnp.where(closed, group.gold_length[:, None], 0),
    )


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
