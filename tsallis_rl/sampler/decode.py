"""What the sampler compiles: reading prompts, steps of decoding, scoring and letting go of rollouts that are done.

P prompts are held by L lanes, G = P / L by each: a lane is what one device holds. At first each prompt is a lane of its
own, of M rows; once rollouts leave, those that are left of a lane's G prompts stand in its B rows, [L, B], and sit
apart, [P, R], where they ask their prompt's keys (`Slots`).

The cache grows between programs, so that no step attends over much that is still empty. Waves of prompts that were
begun one after the other can be decoded together: each has its own step.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from tsallis_rl.models import (
    Architecture,
    Context,
    Decoder,
    KeyValues,
    Slots,
    bind,
    output_logits,
    slots_for,
    take_rows,
    token_log_probs,
    unstack_layers,
    write_tokens,
)
from tsallis_rl.models.sharding import gather_all
from tsallis_rl.sampler.record import FORCED, NEVER, REPLACED, SAMPLED, Group, Rollouts, Sampling
from tsallis_rl.sampler.token_sampling import draw, truncated, uniforms

_OPEN = 0


class _Progress(NamedTuple):
    """Where each rollout stands; all [L, B], else as in Rollouts."""

    rationale_length: Array
    closing: Array
    answer_length: Array
    done: Array


def _advance(
    progress: _Progress, drawn: Array, t: Array, sampling: Sampling, max_answer: int
) -> tuple[Array, Array, Array, _Progress]:
    """The rules of METHOD §4: what becomes of the tokens drawn [L, B] at steps t.

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
    """What the sampling loop carries; shapes as in Rollouts with [L, B] for [P, M], inputs one longer.

    Attributes:
      step: [W] how many tokens every running rollout of a wave has; of a lane's G prompts the first G / W are of the
        first wave, ….
      running: rollouts of the lane with most that are not done.
      crowds: [2] of the prompt with most, those that run, and of the prompt with most, those that are done.
      place: [L, B] which of the lane's G · M rollouts, prompt by prompt, stands in a row.
      cache: of each layer.
      inputs: and the three that follow are [L, B, T + 1]; what is written last is no rollout's.
    """

    step: Array
    running: Array
    crowds: Array
    place: Array
    cache: list[KeyValues]
    inputs: Array
    targets: Array
    sampled: Array
    log_prob: Array
    progress: _Progress

    def over_rows(self, change: Callable[[Array], Array]) -> "_Loop":
        """The same with all arrays [L, B, …] changed."""
        return self._replace(**jax.tree.map(change, {name: getattr(self, name) for name in _ROWS}))

    def rows(self, chosen: Array) -> "_Loop":
        """The same with the rows [L, r] alone."""
        return self.over_rows(lambda x: take_rows(x, chosen))

    def in_lanes(self, lanes: int, num_rollouts: int) -> "_Loop":
        """The same in fewer lanes: each of one prompt so far."""
        first = jnp.arange(len(self.place)) % (len(self.place) // lanes) * num_rollouts
        return self._replace(place=self.place + first[:, None]).over_rows(lambda x: x.reshape(lanes, -1, *x.shape[2:]))


_ROWS = _Loop._fields[3:]  # arrays [L, B, …]


def _empty(arch: Architecture, group: Group, num_rollouts: int, total: int, length: int) -> _Loop:
    """Nothing sampled yet, room for `length` tokens; every rollout is about to read its prompt's last token."""
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
        running=jnp.int32(0),
        crowds=jnp.full(2, num_rollouts),
        place=jnp.broadcast_to(jnp.arange(num_rollouts), shape),
        cache=[cache() for _ in range(arch.layers)],
        inputs=jnp.zeros(stream, jnp.int32).at[:, :, 0].set(last),
        targets=jnp.zeros(stream, jnp.int32),
        sampled=jnp.zeros(stream, bool),
        log_prob=jnp.zeros(stream, jnp.float32),
        progress=_Progress(counts, jnp.full(shape, _OPEN, jnp.int8), counts, jnp.zeros(shape, bool)),
    )


class _Rows(NamedTuple):
    """Whose rollouts stand in the rows [L, B].

    Attributes:
      prompt: which of its lane's prompts each row's rollout has.
      rollout: which of its M it is.
      prompts: G.
    """

    prompt: Array
    rollout: Array
    prompts: int

    def of(self, x: Array) -> Array:
        """What is of prompts, [P, …], for each row, [L, B, …]."""
        return take_rows(x.reshape(len(self.prompt), self.prompts, *x.shape[1:]), self.prompt)

    def seats(self, needed: Array, count: int) -> Slots | None:
        """Where each lane has one prompt, its rows are the prompt's."""
        return slots_for(self.prompt, needed, self.prompts, count) if self.prompts > 1 else None

    def crowd(self, counted: Array) -> Array:
        """How many of one prompt are counted at most."""
        of_prompts = (self.prompt[..., None] == jnp.arange(self.prompts)) & counted[..., None]
        return of_prompts.sum(1, dtype=jnp.int32).max()


def _rows(loop: _Loop, group: Group, num_rollouts: int) -> _Rows:
    return _Rows(loop.place // num_rollouts, loop.place % num_rollouts, len(group.prompt) // len(loop.place))


def _decode(
    decoder: Decoder, layers: list, prompt: Context, group: Group, keys: Array, sampling: Sampling, loop: _Loop,
    steps: Array, enough: Array, *, num_rollouts: int, lanes: int, seats: int, most: int, max_answer: int,
) -> _Loop:  # fmt: skip
    """So many steps, at most `most`, or until `enough` of each lane run. A wave at the streams' end stays there.

    `lanes`: in which rollouts are counted that run; `seats`: R, if there are several prompts to a lane.
    """
    arch, head = decoder.arch, decoder.output_head()
    total, held = loop.targets.shape[2] - 1, loop.cache[0].values.shape[3]
    rows, shape = _rows(loop, group, num_rollouts), loop.place.shape
    wave = rows.prompt // (rows.prompts // len(loop.step))
    seated = rows.seats(~loop.progress.done, seats)

    def place(step: Array) -> Array:
        """Where tokens of a step are written: one place, or each row's."""
        return step[0] if len(step) == 1 else step[wave]

    def running(progress: _Progress) -> Array:
        return (~progress.done).reshape(lanes, -1).sum(axis=1, dtype=jnp.int32).max()

    context = rows.of(group.prompt_length) - 1
    keys = jax.vmap(jax.vmap(jax.random.fold_in))(rows.of(keys), rows.rollout)
    first = jnp.broadcast_to(place(loop.step), shape)
    numbers = uniforms(keys, first[..., None] + jnp.arange(most))

    def one_step(carry: tuple[Array, _Loop]) -> tuple[Array, _Loop]:
        i, loop = carry
        at, runs = place(loop.step), ~loop.progress.done
        t = jnp.broadcast_to(at, shape)
        token = jnp.take_along_axis(loop.inputs, t[..., None], axis=2)
        hidden, cache = decoder.extend(
            token, jnp.broadcast_to((context + t)[..., None], token.shape),
            prompt=prompt, past=Context(loop.cache, jnp.arange(held) <= t[..., None]),
            layers=layers, write_at=at, slots=seated,
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
            value = jnp.where(runs, value, 0).astype(array.dtype)
            return write_tokens(array, value[..., None], at, axis=2)

        after = jnp.minimum(loop.step + 1, total)
        return i + 1, loop._replace(
            step=after,
            running=running(progress),
            cache=cache,
            inputs=write(loop.inputs, read, place(after)),
            targets=write(loop.targets, target, at),
            sampled=write(loop.sampled, ~forced, at),
            log_prob=write(loop.log_prob, jnp.where(forced, 0.0, log_prob), at),
            progress=progress,
        )

    start = (jnp.int32(0), loop._replace(running=running(loop.progress)))
    loop = jax.lax.while_loop(lambda carry: (carry[0] < steps) & (carry[1].running > enough), one_step, start)[1]
    return loop._replace(crowds=jnp.stack([rows.crowd(~loop.progress.done), rows.crowd(loop.progress.done)]))


def _score_gold(
    decoder: Decoder,
    layers: list,
    prompt: Context,
    group: Group,
    rows: _Rows,
    loop: _Loop,
    sampling: Sampling,
    count: int,
) -> tuple[Array, Array, Array]:
    """Reads end-of-think, joint and gold answer behind every rationale with the rollout's own cache.

    Returns:
      inputs and targets of the extension, [L, B, J + A], and log-probabilities of the gold answer, [L, B, A].
    """
    shape = loop.place.shape
    joint = jnp.broadcast_to(sampling.joint, (*shape, *sampling.joint.shape))
    targets = jnp.concatenate([joint, rows.of(group.gold)], axis=2)
    first = jnp.full((*shape, 1), sampling.end_of_think, targets.dtype)
    inputs = jnp.concatenate([first, targets[..., :-1]], axis=2)
    start = rows.of(group.prompt_length) - 1 + loop.progress.rationale_length
    held = loop.cache[0].values.shape[3]
    seats = rows.seats(jnp.ones(shape, bool), count)
    hidden, _ = decoder.extend(
        inputs, start[..., None] + jnp.arange(inputs.shape[2]),
        prompt=prompt, past=Context(loop.cache, jnp.arange(held) < loop.progress.rationale_length[..., None]),
        layers=layers, slots=seats,
    )  # fmt: skip
    answer = slice(joint.shape[2], None)
    log_prob = token_log_probs(
        hidden[:, :, answer], decoder.output_head(), targets[:, :, answer], decoder.arch.logit_cap
    )
    return inputs, targets, log_prob


def _recorded(
    decoder: Decoder, layers: list, prompt: Context, group: Group, loop: _Loop, sampling: Sampling, num_rollouts: int,
    seats: int, max_answer: int,
) -> Rollouts:  # fmt: skip
    """The record of rollouts that are done, their gold answers scored."""
    rows = _rows(loop, group, num_rollouts)
    gold_inputs, gold_targets, gold_log_prob = _score_gold(decoder, layers, prompt, group, rows, loop, sampling, seats)
    gold_length = rows.of(group.gold_length)
    in_gold = jnp.arange(group.gold.shape[1]) < gold_length[..., None]
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
        answer_length=jnp.where(closed, gold_length, 0),
    )


@functools.partial(jax.jit, static_argnames="arch")
def together(params: dict, *, arch: Architecture) -> tuple[dict, list]:
    """Parameters as decoding reads them again and again: cast, put together over fsdp; those of each layer apart."""
    params = gather_all(params, arch.dtype)
    layers = unstack_layers(nnx.split(bind(arch, params).layers)[1], arch.layers)
    return {name: leaf for name, leaf in params.items() if name != "layers"}, layers


@functools.partial(jax.jit, static_argnames=("arch", "num_rollouts", "lanes", "total", "length", "max_answer"))
def begin(
    params: dict, layers: list, group: Group, keys: Array, sampling: Sampling, enough: Array, *,
    arch: Architecture, num_rollouts: int, lanes: int, total: int, length: int, max_answer: int,
) -> tuple[Context, _Loop]:  # fmt: skip
    """Reads the prompts and samples until a first cache of `length` tokens is full."""
    decoder = bind(arch, params)
    prompt = decoder.read_prompt(group.prompt, group.prompt_length, layers)
    loop = _empty(arch, group, num_rollouts, total, length)
    steps = min(length, total)
    sizes = {"num_rollouts": num_rollouts, "lanes": lanes, "seats": 0, "most": steps, "max_answer": max_answer}
    return prompt, _decode(decoder, layers, prompt, group, keys, sampling, loop, steps, enough, **sizes)


@functools.partial(
    jax.jit,
    static_argnames=("arch", "num_rollouts", "lanes", "seats", "most", "max_answer"),
    donate_argnames="loop",
)
def go_on(
    params: dict, layers: list, prompt: Context, group: Group, keys: Array, sampling: Sampling, loop: _Loop,
    steps: Array, enough: Array, *,
    arch: Architecture, num_rollouts: int, lanes: int, seats: int, most: int, max_answer: int,
) -> _Loop:  # fmt: skip
    """`_decode` as a program."""
    sizes = {"num_rollouts": num_rollouts, "lanes": lanes, "seats": seats, "most": most, "max_answer": max_answer}
    return _decode(bind(arch, params), layers, prompt, group, keys, sampling, loop, steps, enough, **sizes)


@functools.partial(jax.jit, static_argnames="length")
def grown(cache: KeyValues, *, length: int) -> KeyValues:
    """One layer's cache with room for `length` tokens."""
    return cache.padded(length - cache.values.shape[3])


@functools.partial(jax.jit, static_argnames=("arch", "num_rollouts", "lanes", "seats", "keep", "max_answer"))
def let_go(
    params: dict, layers: list, prompt: Context, group: Group, sampling: Sampling, loop: _Loop, *,
    arch: Architecture, num_rollouts: int, lanes: int, seats: int, keep: int, max_answer: int,
) -> tuple[_Loop | None, Array, Rollouts]:  # fmt: skip
    """Keeps `keep` rollouts of each lane, of which no more run; returns them, if any, and others' places and record."""
    staying, leaving = None, loop
    if keep:
        loop = loop.in_lanes(lanes, num_rollouts)
        order = jnp.argsort(loop.progress.done, axis=1, stable=True)
        staying, leaving = loop.rows(order[:, :keep]), loop.rows(order[:, keep:])
    record = _recorded(bind(arch, params), layers, prompt, group, leaving, sampling, num_rollouts, seats, max_answer)
    return staying, leaving.place, record


@jax.jit
def rows_joined(parts: Sequence[Any]) -> Any:
    """Trees of arrays [L, r, …], of the same lanes, as one of [L, B, …]."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *parts)


@functools.partial(jax.jit, static_argnames="lanes")
def prompts_joined(waves: Sequence[Any], *, lanes: int) -> Any:
    """Trees of arrays [P, …] as one, in each lane those of the first wave, then those of the second, …."""

    def joined(*xs: Array) -> Array:
        apart = [x.reshape(lanes, -1, *x.shape[1:]) for x in xs]
        return jnp.concatenate(apart, axis=1).reshape(-1, *xs[0].shape[1:])

    return jax.tree.map(joined, *waves)


@functools.partial(jax.jit, static_argnames=("lanes", "num_rollouts"))
def waves_joined(waves: Sequence[tuple[Any, _Loop, Any]], *, lanes: int, num_rollouts: int) -> tuple[Any, _Loop, Any]:
    """Waves as one: of each what is of its prompts, its loop, and places and record of its rollouts that left."""
    prompts, loops, left = zip(*waves, strict=True)
    each = len(jax.tree.leaves(prompts[0])[0]) // lanes * num_rollouts
    loops = [loop._replace(place=loop.place + i * each) for i, loop in enumerate(loops)]
    left = [(place + i * each, *record) for i, (place, *record) in enumerate(left)]
    progress = rows_joined([loop.progress for loop in loops])
    loop = _Loop(
        jnp.concatenate([loop.step for loop in loops]),
        (~progress.done).sum(axis=1, dtype=jnp.int32).max(),
        functools.reduce(jnp.maximum, [loop.crowds for loop in loops]),
        *rows_joined([loop[3:-1] for loop in loops]),
        progress,
    )
    return prompts_joined(prompts, lanes=lanes), loop, rows_joined(left)


@functools.partial(jax.jit, static_argnames="num_rollouts")
def in_place(places: Array, record: Any, *, num_rollouts: int) -> Any:
    """A tree of arrays [L, G · M, …] as [P, M, …], every rollout in its place [L, G · M]."""
    order = jnp.argsort(places, axis=1)
    return jax.tree.map(lambda x: take_rows(x, order).reshape(-1, num_rollouts, *x.shape[2:]), record)


# What is compiled; tests count.
PROGRAMS = (together, begin, go_on, grown, let_go, rows_joined, prompts_joined, waves_joined, in_place)
