"""The programs that decode: prefill the prompts, decode a segment of tokens, grow the cache.

Each rollout has a row of [C, B]. In the plain engine these are [P, M], M rows for each prompt. Once finished rows are
retired (`compaction`), the remaining rollouts of a shard's P / C prompts share its B rows, and are gathered into slots
[P, R] to attend to their prompt's keys (`models.slots`).

The cache grows between programs, so that no step attends over much empty cache. Batches of prompts that started one
after the other can be decoded together; each then has its own position.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models import (
    Architecture,
    Context,
    Decoder,
    KeyValues,
    Layer,
    RowCache,
    Slots,
    WriteAt,
    bar_ids,
    bind,
    empty_cache,
    joined,
    output_logits,
    slots_for,
    stored,
    take_rows,
    unstack_layers,
    write_tokens,
)
from tsallis_rl.models.sharding import constrain, gather_all
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.keys import rollout_keys, uniforms
from tsallis_rl.sampler.rules import Progress, advance, barred_counts, start_progress
from tsallis_rl.sampler.sampling_settings import Sampling
from tsallis_rl.sampler.token_sampling import sample_tokens


@dataclasses.dataclass(frozen=True)
class DecodeShape:
    """The compiled constants of the sampler's programs, besides the shapes of their arrays.

    Attributes:
      arch: the decoder's architecture.
      num_rollouts: M.
      shards: C.
      total: the most tokens decoded for a rollout.
      max_answer: the longest sampled answer; 0 where gold answers are scored instead.
      max_steps: the most steps of a segment.
    """

    arch: Architecture
    num_rollouts: int
    shards: int
    total: int
    max_answer: int
    max_steps: int


class DecodeParams(NamedTuple):
    """Parameters in the form that every decoding step reads: cast, and gathered over fsdp.

    Attributes:
      params: the decoder's parameters; stacked layers are kept only because the module's structure needs them.
      layers: each layer by itself, which decoding reads.
    """

    params: dict
    layers: list[Layer]


class DecodeInputs(NamedTuple):
    """The inputs of a batch's programs; no program changes them.

    Attributes:
      params: see `DecodeParams`.
      prompt: keys and values of each layer, of all tokens but the last. Each rollout reads that one itself, since it
        predicts the rollout's first token.
      batch: prompts and gold answers.
      keys: [P] typed keys.
      sampling: see `Sampling`.
    """

    params: DecodeParams
    prompt: Context
    batch: PromptBatch
    keys: Array
    sampling: Sampling


class RowState(NamedTuple):
    """The state of each rollout between steps, one row each.

    Attributes:
      rollout: [C, B] number of each row's rollout in its shard, counted prompt by prompt.
      cache: keys and values of each layer.
      inputs: [C, B, T + 1] as in `record.Rows`, as are the next three; the last column is scratch.
      targets: [C, B, T + 1].
      sampled: [C, B, T + 1].
      log_prob: [C, B, T + 1].
      progress: see `Progress`.
    """

    rollout: Array
    cache: tuple[KeyValues | RowCache, ...]
    inputs: Array
    targets: Array
    sampled: Array
    log_prob: Array
    progress: Progress


class DecodeState(NamedTuple):
    """The carry of the decode loop.

    Attributes:
      position: [n] tokens decoded so far, one number for each of n merged batches. A shard's prompts are ordered by
        batch.
      running: number of running rollouts in the shard that has most.
      most_running: number of running rollouts of the prompt that has most.
      most_done: number of finished rollouts still in rows, of the prompt that has most.
      rows: see `RowState`.
    """

    position: Array
    running: Array
    most_running: Array
    most_done: Array
    rows: RowState


class RowIndex(NamedTuple):
    """The rollout in each row.

    Attributes:
      prompt: [C, B] index of its prompt in the shard.
      rollout: [C, B] its index among the prompt's M.
      prompts: P / C.
    """

    prompt: Array
    rollout: Array
    prompts: int

    def per_row(self, x: Array) -> Array:
        """Gathers each row's entry of a per-prompt array: x [P, …] → [C, B, …]."""
        return take_rows(x.reshape(len(self.prompt), self.prompts, *x.shape[1:]), self.prompt)

    def slots(self, needed: Array, count: int) -> Slots | None:
        """Assigns slots to the rows [C, B] that need one; None where all rows of a shard belong to its one prompt."""
        return slots_for(self.prompt, needed, self.prompts, count) if self.prompts > 1 else None

    def most_of_one_prompt(self, counted: Array) -> Array:
        """Counts the marked rows [C, B] of each prompt and returns the largest count."""
        of_prompts = (self.prompt[..., None] == jnp.arange(self.prompts)) & counted[..., None]
        return of_prompts.sum(1, dtype=jnp.int32).max()


def row_index(rows: RowState, batch: PromptBatch, num_rollouts: int) -> RowIndex:
    """Splits each row's rollout number into the index of its prompt and its index among the prompt's M."""
    prompts = len(batch.prompt) // len(rows.rollout)
    return RowIndex(rows.rollout // num_rollouts, rows.rollout % num_rollouts, prompts)


def cache_length(rows: RowState) -> int:
    """Returns how many tokens the cache has room for."""
    return rows.cache[0].values.shape[3]


def decode_params(params: dict, arch: Architecture) -> DecodeParams:
    """Gathers the parameters over fsdp in the dtype of the computation, and unstacks the layers."""
    gathered = gather_layers(params, arch=arch)
    return gathered._replace(params=params | gathered.params)


@functools.partial(jax.jit, static_argnames="arch")
def gather_layers(params: dict, *, arch: Architecture) -> DecodeParams:
    """Casts, gathers and unstacks the layers; returns the parameters without the stacked ones."""
    gathered = gather_all(params, arch.dtype)
    layers = [joined(layer) for layer in unstack_layers(bind(arch, gathered).layers, arch.layers)]
    return DecodeParams({name: leaf for name, leaf in gathered.items() if name != "layers"}, layers)


@functools.partial(jax.jit, static_argnames=("shape", "length"))
def prefill(
    params: DecodeParams, batch: PromptBatch, *, shape: DecodeShape, length: int
) -> tuple[Context, DecodeState]:
    """Prefills the prompts and makes caches of `length` tokens for their rollouts: the state before the first token.

    Returns:
      the prompts' keys and values, and rows [P, M] that are about to read their prompt's last token.
    """
    decoder = bind(shape.arch, params.params)
    prompt = decoder.read_prompt(batch.prompt, batch.prompt_length, params.layers)
    return prompt._replace(kv=[stored(kv) for kv in prompt.kv]), _start(shape, batch, length)


def _start(shape: DecodeShape, batch: PromptBatch, length: int) -> DecodeState:
    arch, rows = shape.arch, (batch.prompt.shape[0], shape.num_rollouts)
    heads, tokens = (*rows, arch.kv_heads), (*rows, shape.total + 1)
    last = jnp.take_along_axis(batch.prompt, batch.prompt_length[:, None] - 1, axis=1)

    def split(x: Array, third: str | None = None) -> Array:
        return constrain(x, ("prompts", None, third, None, None)[: x.ndim], like=batch.prompt)

    cache = tuple(empty_cache(heads, length, arch.head_dim, arch.dtype) for _ in range(arch.layers))
    empty = RowState(
        rollout=jnp.broadcast_to(jnp.arange(shape.num_rollouts), rows),
        cache=(),
        inputs=jnp.zeros(tokens, jnp.int32),
        targets=jnp.zeros(tokens, jnp.int32),
        sampled=jnp.zeros(tokens, bool),
        log_prob=jnp.zeros(tokens, jnp.float32),
        progress=start_progress(rows),
    )
    # Without constraints the compiler puts all of each empty array on every device, and decoding has to split it.
    empty = jax.tree.map(split, empty)._replace(cache=jax.tree.map(functools.partial(split, third="kv_heads"), cache))
    return DecodeState(
        position=jnp.zeros(1, jnp.int32),
        running=jnp.int32(len(batch.prompt) // shape.shards * shape.num_rollouts),
        most_running=jnp.int32(shape.num_rollouts),
        most_done=jnp.int32(0),
        rows=empty._replace(inputs=empty.inputs.at[:, :, 0].set(last)),
    )


@functools.partial(jax.jit, static_argnames=("shape", "slots"), donate_argnames="state")
def decode_segment(
    inputs: DecodeInputs, state: DecodeState, steps: Array, stop_at: Array, *, shape: DecodeShape, slots: int
) -> DecodeState:
    """Decodes up to `steps` tokens of every rollout, and stops once at most `stop_at` rollouts of each shard still run.

    Args:
      inputs: see `DecodeInputs`.
      state: donated; its arrays are written in place.
      steps: at most shape.max_steps, and no more than the cache has room for.
      stop_at: number of running rollouts of a shard.
      shape: see `DecodeShape`.
      slots: R, at least the running rollouts of any prompt; ignored where every shard has one prompt.
    """
    segment = _segment(inputs, state, shape, slots)

    def one_step(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        i, state = carry
        return i + 1, segment.step(i, state)

    start = (jnp.int32(0), state._replace(running=segment.running(state.rows.progress)))
    state = jax.lax.while_loop(lambda carry: (carry[0] < steps) & (carry[1].running > stop_at), one_step, start)[1]
    index, done = segment.index, state.rows.progress.done
    return state._replace(most_running=index.most_of_one_prompt(~done), most_done=index.most_of_one_prompt(done))


@dataclasses.dataclass(frozen=True)
class _Segment:
    """The constants that the steps of a segment share.

    Attributes:
      decoder: bound to the decoding parameters.
      head: [D, V].
      inputs: see `DecodeInputs`.
      shape: see `DecodeShape`.
      index: the rollout in each row.
      part: [C, B] which of the merged batches a row belongs to.
      context_length: [C, B] prompt tokens before the last, which the rollout reads itself.
      slots: of the running rows.
      uniforms: [C, B, T, 2] the random numbers of every step.
    """

    decoder: Decoder
    head: Array
    inputs: DecodeInputs
    shape: DecodeShape
    index: RowIndex
    part: Array
    context_length: Array
    slots: Slots | None
    uniforms: Array

    def write_at(self, position: Array) -> WriteAt:
        """Returns where each row writes, given the position of each batch [n]."""
        return _write_at(position, self.part)

    def running(self, progress: Progress) -> Array:
        """Counts the running rollouts of each shard and returns the largest count."""
        return (~progress.done).reshape(self.shape.shards, -1).sum(axis=1, dtype=jnp.int32).max()

    def step(self, i: Array, state: DecodeState) -> DecodeState:
        """Samples the i-th token of the segment in every row that still runs, and applies the rules to it."""
        rows, sampling, at = state.rows, self.inputs.sampling, self.write_at(state.position)
        t = jnp.broadcast_to(at.of_rows, rows.rollout.shape)
        logits, cache = self.next_logits(rows, at)
        if sampling.rules.min_rationale is not None:
            logits = bar_ids(logits, barred_counts(rows.progress, t, sampling.rules), sampling.rules.barred_ids)
        uniform = jax.lax.dynamic_index_in_dim(self.uniforms, i, axis=2, keepdims=False)
        sampled, log_sum = sample_tokens(uniform, logits, sampling.tokens)
        target, read, forced, progress = advance(
            rows.progress, sampled, t, sampling.rules, max_answer=self.shape.max_answer
        )
        log_prob = jnp.take_along_axis(logits, target[..., None], -1)[..., 0] - log_sum
        runs = ~rows.progress.done

        def write(array: Array, value: Array, at: WriteAt) -> Array:
            value = jnp.where(runs, value, 0).astype(array.dtype)
            return write_tokens(array, value[..., None], at, axis=2)

        after = jnp.minimum(state.position + 1, self.shape.total)
        rows = rows._replace(
            cache=cache,
            inputs=write(rows.inputs, read, self.write_at(after)),
            targets=write(rows.targets, target, at),
            sampled=write(rows.sampled, ~forced, at),
            log_prob=write(rows.log_prob, jnp.where(forced, 0.0, log_prob), at),
            progress=progress,
        )
        return state._replace(position=after, running=self.running(progress), rows=rows)

    def next_logits(self, rows: RowState, at: WriteAt) -> tuple[Array, tuple[KeyValues | RowCache, ...]]:
        """Reads each row's token at `at`; returns logits [C, B, V] of the next token, and the cache with this one."""
        t = jnp.broadcast_to(at.of_rows, rows.rollout.shape)
        token = jnp.take_along_axis(rows.inputs, t[..., None], axis=2)
        hidden, cache = self.decoder.extend(
            token,
            jnp.broadcast_to((self.context_length + t)[..., None], token.shape),
            prompt=self.inputs.prompt,
            past=Context(rows.cache, t + 1, rows.progress.done),
            layers=self.inputs.params.layers,
            write_at=at,
            slots=self.slots,
        )
        return output_logits(hidden[:, :, 0], self.head, self.decoder.arch.logit_form), tuple(cache)


def _segment(inputs: DecodeInputs, state: DecodeState, shape: DecodeShape, slots: int) -> _Segment:
    """Prepares the constants that a segment's steps share, including every step's random numbers."""
    decoder, rows = bind(shape.arch, inputs.params.params), state.rows
    index = row_index(rows, inputs.batch, shape.num_rollouts)
    part = index.prompt // (index.prompts // len(state.position))
    first = jnp.broadcast_to(_write_at(state.position, part).of_rows, rows.rollout.shape)
    keys = rollout_keys(index.per_row(inputs.keys), index.rollout)
    return _Segment(
        decoder=decoder,
        head=decoder.output_head(),
        inputs=inputs,
        shape=shape,
        index=index,
        part=part,
        context_length=index.per_row(inputs.batch.prompt_length) - 1,
        slots=index.slots(~rows.progress.done, slots),
        uniforms=uniforms(keys, first[..., None] + jnp.arange(shape.max_steps)),
    )


def _write_at(position: Array, part: Array) -> WriteAt:
    """Returns where each row writes, given each batch's position [n] and each row's batch [C, B]."""
    return WriteAt(position, None if len(position) == 1 else part)


@functools.partial(jax.jit, static_argnames="length")
def grow_cache(cache: KeyValues | RowCache, *, length: int) -> KeyValues | RowCache:
    """Pads one layer's cache to `length` tokens."""
    return cache.padded(length - cache.values.shape[3])
