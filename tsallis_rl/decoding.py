"""What the sampler compiles: reading prompts, steps of decoding, scoring and letting go of rollouts that are done.

P prompts have R rows of rollouts each, R ≤ M. The cache grows between programs, so that no step attends over much that
is still empty. Waves of prompts that were begun one after the other can be decoded together: each has its own step.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from tsallis_rl.drawing import draw, truncated, uniforms
from tsallis_rl.mesh import all_gathered
from tsallis_rl.models import Architecture, Decoder, KeyValues, bind, by_layer, output_logits, token_log_probs, written
from tsallis_rl.rollouts import FORCED, NEVER, REPLACED, SAMPLED, Group, Rollouts, Sampling

_OPEN = 0


def prompt_states(
    decoder: Decoder, prompt: Array, prompt_length: Array, layers: list | None = None
) -> tuple[KeyValues | list[KeyValues], Array]:
    """Keys and values of the prompt as `Decoder.extend` gives them, and the mask [P, T0] of all but the last token.

    The last token is read by each rollout itself, since it predicts the rollout's first token.
    """
    _, kv = decoder.prefill(prompt, layers)
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


class _Loop(NamedTuple):
    """What the sampling loop carries; shapes as in Rollouts with R ≤ M rows a group, inputs one longer.

    Attributes:
      step: [W] how many tokens every running rollout of a wave has; of P groups the first is of the first wave, ….
      running: rollouts of the group with most that are not done.
      place: [P, R] which of the group's M rollouts stands in a row.
      cache: of each layer.
      inputs: and the three that follow are [P, R, T + 1]; what is written last is no rollout's.
    """

    step: Array
    running: Array
    place: Array
    cache: list[KeyValues]
    inputs: Array
    targets: Array
    sampled: Array
    log_prob: Array
    progress: _Progress

    def rows(self, chosen: Array) -> "_Loop":
        """The same with the rows [P, r] alone."""

        def of(x: Array) -> Array:
            return jax.vmap(lambda group, row: group[row])(x, chosen)

        return _Loop(self.step, self.running, *jax.tree.map(of, tuple(self[2:])))


class _Prompt(NamedTuple):
    """Keys and values of each layer, and the mask of all but the last token [P, T0]."""

    kv: list[KeyValues]
    mask: Array


def _empty(arch: Architecture, group: Group, num_rollouts: int, total: int, length: int) -> _Loop:
    """Nothing sampled yet, room for `length` tokens; every rollout is about to read the prompt's last token."""
    shape = (group.prompt.shape[0], num_rollouts)
    heads = (*shape, arch.kv_heads)
    last = jnp.take_along_axis(group.prompt, group.prompt_length[:, None] - 1, axis=1)
    counts, stream = jnp.zeros(shape, jnp.int32), (*shape, total + 1)

    def cache() -> KeyValues:
        return KeyValues(
            jnp.zeros((*heads, arch.head_dim, length), arch.dtype),
            jnp.zeros((*heads, length, arch.head_dim), arch.dtype),
        )

    return _Loop(
        step=jnp.zeros(1, jnp.int32),
        running=jnp.int32(num_rollouts),
        place=jnp.broadcast_to(jnp.arange(num_rollouts), shape),
        cache=[cache() for _ in range(arch.layers)],
        inputs=jnp.zeros(stream, jnp.int32).at[:, :, 0].set(last),
        targets=jnp.zeros(stream, jnp.int32),
        sampled=jnp.zeros(stream, bool),
        log_prob=jnp.zeros(stream, jnp.float32),
        progress=_Progress(counts, jnp.full(shape, _OPEN, jnp.int8), counts, jnp.zeros(shape, bool)),
    )


def _decode(
    decoder: Decoder, layers: list, prompt: _Prompt, group: Group, keys: Array, sampling: Sampling, loop: _Loop,
    steps: Array, enough: Array, *, most: int, max_answer: int,
) -> _Loop:  # fmt: skip
    """So many steps, at most `most`, or until `enough` of each group run. A wave at the streams' end stays there."""
    arch, head = decoder.arch, decoder.output_head()
    total, held = loop.targets.shape[2] - 1, loop.cache[0].values.shape[3]
    groups, rows = loop.place.shape

    def of_groups(step: Array) -> Array:
        return jnp.tile(step, groups // len(step))[:, None]  # [P, 1]

    context = group.prompt_length[:, None] - 1
    keys = jax.vmap(lambda key, place: jax.vmap(functools.partial(jax.random.fold_in, key))(place))(keys, loop.place)
    numbers = uniforms(keys, of_groups(loop.step) + jnp.arange(most))

    def one_step(carry: tuple[Array, _Loop]) -> tuple[Array, _Loop]:
        i, loop = carry
        t, running = of_groups(loop.step), ~loop.progress.done
        token = jnp.take_along_axis(loop.inputs, t[..., None], axis=2)
        hidden, cache = decoder.extend(
            token, jnp.broadcast_to((context + t)[..., None], token.shape),
            prompt=prompt.kv, prompt_mask=prompt.mask,
            past=loop.cache, past_mask=jnp.broadcast_to((jnp.arange(held) <= t)[:, None], (groups, rows, held)),
            layers=layers, place=loop.step,
        )  # fmt: skip
        logits = output_logits(hidden[:, :, 0], head, arch.logit_cap)
        uniform = jax.lax.dynamic_index_in_dim(numbers, i, axis=2, keepdims=False)
        scaled = logits / jnp.maximum(sampling.temperature, 1e-6)  # at 0, all but the largest are out of reach
        if sampling.truncation is not None:
            scaled = truncated(scaled, sampling.truncation)
        drawn = jax.vmap(jax.vmap(draw))(uniform, scaled)
        target, read, forced, progress = _advance(loop.progress, drawn, t, sampling, max_answer)
        log_prob = jnp.take_along_axis(logits, target[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)

        def write(array: Array, value: Array, at: Array) -> Array:
            value = jnp.where(running, value, 0).astype(array.dtype)
            return written(array, value[..., None], at, axis=2)

        after = jnp.minimum(loop.step + 1, total)
        return i + 1, loop._replace(
            step=after,
            running=(~progress.done).sum(axis=1).max(),
            cache=cache,
            inputs=write(loop.inputs, read, after),
            targets=write(loop.targets, target, loop.step),
            sampled=write(loop.sampled, ~forced, loop.step),
            log_prob=write(loop.log_prob, jnp.where(forced, 0.0, log_prob), loop.step),
            progress=progress,
        )

    start = (jnp.int32(0), loop)
    return jax.lax.while_loop(lambda carry: (carry[0] < steps) & (carry[1].running > enough), one_step, start)[1]


def _score_gold(
    decoder: Decoder, layers: list, prompt: _Prompt, group: Group, loop: _Loop, sampling: Sampling
) -> tuple[Array, Array, Array]:
    """Reads end-of-think, joint and gold answer behind every rationale with the rollout's own cache.

    Returns:
      inputs and targets of the extension, [P, R, J + A], and log-probabilities of the gold answer, [P, R, A].
    """
    prompts, rows = loop.progress.closing.shape
    joint = jnp.broadcast_to(sampling.joint, (prompts, *sampling.joint.shape))
    targets = jnp.concatenate([joint, group.gold], axis=1)
    first = jnp.full((prompts, 1), sampling.end_of_think, targets.dtype)
    inputs = jnp.concatenate([first, targets[:, :-1]], axis=1)
    inputs, targets = (jnp.broadcast_to(ids[:, None], (prompts, rows, ids.shape[1])) for ids in (inputs, targets))
    start = group.prompt_length[:, None] - 1 + loop.progress.rationale_length
    held = loop.cache[0].values.shape[3]
    hidden, _ = decoder.extend(
        inputs, start[..., None] + jnp.arange(inputs.shape[2]),
        prompt=prompt.kv, prompt_mask=prompt.mask,
        past=loop.cache, past_mask=jnp.arange(held) < loop.progress.rationale_length[..., None],
        layers=layers,
    )  # fmt: skip
    answer = slice(joint.shape[1], None)
    log_prob = token_log_probs(
        hidden[:, :, answer], decoder.output_head(), targets[:, :, answer], decoder.arch.logit_cap
    )
    return inputs, targets, log_prob


def _recorded(
    decoder: Decoder, layers: list, prompt: _Prompt, group: Group, loop: _Loop, sampling: Sampling, max_answer: int
) -> Rollouts:
    """The record of rollouts that are done, their gold answers scored."""
    gold_inputs, gold_targets, gold_log_prob = _score_gold(decoder, layers, prompt, group, loop, sampling)
    in_gold = jnp.arange(group.gold.shape[1]) < group.gold_length[:, None, None]
    progress, total = loop.progress, loop.targets.shape[2] - 1
    streams = {name: getattr(loop, name)[..., :total] for name in ("inputs", "targets", "sampled", "log_prob")}
    closed = progress.closing != NEVER
    log_w = jnp.where(closed, jnp.where(in_gold, gold_log_prob, 0).sum(-1), -jnp.inf)

    joint_length = sampling.joint.shape[0]
    rollouts = Rollouts(
        *group[:2],
        **streams,
        rationale_length=progress.rationale_length,
        closing=progress.closing,
        answer_start=progress.rationale_length + joint_length,
        answer_length=progress.answer_length,
        log_w=log_w,
    )
    if max_answer:
        return rollouts

    extension = jnp.arange(total + gold_inputs.shape[2]) - progress.rationale_length[..., None]

    def behind(stream: Array, values: Array) -> Array:
        """`values` from each rollout's rationale_length on, `stream` before it."""
        stream = jnp.pad(stream, ((0, 0), (0, 0), (0, extension.shape[2] - total)))
        placed = jnp.take_along_axis(values, jnp.clip(extension, 0, values.shape[2] - 1), axis=2)
        return jnp.where((extension >= 0) & (extension < values.shape[2]), placed, stream)

    log_prob = jnp.pad(jnp.where(in_gold, gold_log_prob, 0), ((0, 0), (0, 0), (joint_length, 0)))
    return rollouts._replace(
        inputs=behind(rollouts.inputs, gold_inputs),
        targets=behind(rollouts.targets, gold_targets),
        sampled=behind(rollouts.sampled, jnp.zeros(gold_targets.shape, bool)),
        log_prob=behind(rollouts.log_prob, jnp.where(closed[..., None], log_prob, 0.0)),
        answer_length=jnp.where(closed, group.gold_length[:, None], 0),
    )


@functools.partial(jax.jit, static_argnames="arch")
def together(params: dict, *, arch: Architecture) -> tuple[dict, list]:
    """Parameters as decoding reads them again and again: cast, put together over fsdp; those of each layer apart."""
    params = all_gathered(params, arch.dtype)
    layers = by_layer(nnx.split(bind(arch, params).layers)[1], arch.layers)
    return {name: leaf for name, leaf in params.items() if name != "layers"}, layers


@functools.partial(jax.jit, static_argnames=("arch", "num_rollouts", "total", "length", "max_answer"))
def begin(
    params: dict, layers: list, group: Group, keys: Array, sampling: Sampling, enough: Array, *,
    arch: Architecture, num_rollouts: int, total: int, length: int, max_answer: int,
) -> tuple[_Prompt, _Loop]:  # fmt: skip
    """Reads the prompts and samples until a first cache of `length` tokens is full."""
    decoder = bind(arch, params)
    prompt = _Prompt(*prompt_states(decoder, group.prompt, group.prompt_length, layers))
    loop = _empty(arch, group, num_rollouts, total, length)
    steps = min(length, total)
    sizes = {"most": steps, "max_answer": max_answer}
    return prompt, _decode(decoder, layers, prompt, group, keys, sampling, loop, steps, enough, **sizes)


@functools.partial(jax.jit, static_argnames=("arch", "most", "max_answer"), donate_argnames="loop")
def go_on(
    params: dict, layers: list, prompt: _Prompt, group: Group, keys: Array, sampling: Sampling, loop: _Loop,
    steps: Array, enough: Array, *, arch: Architecture, most: int, max_answer: int,
) -> _Loop:  # fmt: skip
    """`_decode` as a program."""
    sizes = {"most": most, "max_answer": max_answer}
    return _decode(bind(arch, params), layers, prompt, group, keys, sampling, loop, steps, enough, **sizes)


@functools.partial(jax.jit, static_argnames="length")
def grown(cache: KeyValues, *, length: int) -> KeyValues:
    """One layer's cache with room for `length` tokens."""
    return cache.grown(length - cache.values.shape[3])


@functools.partial(jax.jit, static_argnames=("arch", "keep", "max_answer"))
def let_go(
    params: dict, layers: list, prompt: _Prompt, group: Group, sampling: Sampling, loop: _Loop, *,
    arch: Architecture, keep: int, max_answer: int,
) -> tuple[_Loop, Array, Rollouts]:  # fmt: skip
    """Keeps `keep` rollouts of each group, of which no more run; returns them, and the others' places and record.

    With 0 kept, what returns first is of no use.
    """
    staying, leaving = loop, loop
    if keep:
        order = jnp.argsort(loop.progress.done, axis=1, stable=True)
        staying, leaving = loop.rows(order[:, :keep]), loop.rows(order[:, keep:])
    record = _recorded(bind(arch, params), layers, prompt, group, leaving, sampling, max_answer)
    return staying, leaving.place, record


@jax.jit
def rows_joined(parts: Sequence[Any]) -> Any:
    """Trees of arrays [P, r, …], of the same groups, as one of [P, R, …]."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *parts)


@functools.partial(jax.jit, static_argnames="groups")
def waves_joined(waves: Sequence[Any], *, groups: int) -> Any:
    """Trees of arrays [P, …] as one; of each in turn come P / groups of its groups, so that none changes devices."""

    def joined(*xs: Array) -> Array:
        apart = [x.reshape(groups, -1, *x.shape[1:]) for x in xs]
        return jnp.concatenate(apart, axis=1).reshape(-1, *xs[0].shape[1:])

    return jax.tree.map(joined, *waves)


@jax.jit
def in_place(places: Array, record: Any) -> Any:
    """A tree of arrays [P, M, …] with every rollout in its place [P, M]."""
    order = jnp.argsort(places, axis=1)
    return jax.tree.map(lambda x: jax.vmap(lambda group, row: group[row])(x, order), record)


PROGRAMS = (together, begin, go_on, grown, let_go, rows_joined, waves_joined, in_place)  # what is compiled; tests count
