"""The sampler: M rationales for each of P prompts, drawn, closed and scored.

The prompt is read once a group. Rollouts are decoded a segment at a time, by whose length the cache grows, so that no
step attends over much that is still empty. Once few enough rollouts of every group still run, those that are done are
scored and leave, and the others go on in arrays of fewer rows. The gold answer is scored behind a rationale by
extending the rollout's own key-value cache (METHOD §4).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from tsallis_rl.mesh import all_gathered
from tsallis_rl.models import Architecture, Decoder, KeyValues, bind, by_layer, output_logits, token_log_probs
from tsallis_rl.rollouts import FORCED, NEVER, REPLACED, SAMPLED, Group, Rollouts, Sampling, Truncation

_OPEN = 0
MIN_SEGMENT, MAX_SEGMENTS = 32, 6  # the cache grows by at least so many tokens, and so many times
LONG = 128  # tokens of a stream from which on rollouts that are done leave; shorter ones are over before it pays
DRAW_BLOCK = 128  # tokens of a large vocabulary that are drawn from together


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


def truncated(logits: Array, truncation: Truncation) -> Array:
    """Logits [..., V] with −inf at tokens that are not to be drawn; what ties with the last one drawn stays."""
    top_k, top_p, min_p = truncation
    ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    first = jnp.arange(logits.shape[-1]) < jnp.where(top_k > 0, top_k, logits.shape[-1])
    share = jax.nn.softmax(jnp.where(first, ordered, -jnp.inf), axis=-1)
    needed = first & (jnp.cumsum(share, axis=-1) - share < top_p)
    least = jnp.where(needed, ordered, jnp.inf).min(axis=-1, keepdims=True)
    least = jnp.maximum(least, ordered[..., :1] + jnp.log(min_p))
    return jnp.where(logits >= least, logits, -jnp.inf)


def draw(uniform: Array, logits: Array) -> Array:
    """A token of softmax(logits [V]) from two numbers uniform in [0, 1), by the cumulative distribution.

    First the block of DRAW_BLOCK tokens, by the blocks' log-sum-exps, then the token in it: sums of some hundred terms
    lose no rare token, and neither a sort nor a random number for every token is needed. A block's tokens are spread
    evenly over the vocabulary, so that devices that share it each hold part of every block, and send its sum instead of
    logits.
    """
    padding = -logits.size % DRAW_BLOCK
    blocks = jnp.pad(logits, (0, padding), constant_values=-jnp.inf).reshape(DRAW_BLOCK, -1)

    def inverse(values: Array, u: Array) -> Array:
        cumulative = jnp.cumsum(jnp.exp(values - values.max()))
        return jnp.sum(cumulative <= u * cumulative[-1], dtype=jnp.int32)

    block = inverse(jax.nn.logsumexp(blocks, axis=0), uniform[0])
    return inverse(blocks[:, block], uniform[1]) * blocks.shape[1] + block


def _uniforms(keys: Array, steps: Array) -> Array:
    """The numbers [P, M, steps, 2] that rollouts with keys [P, M] draw with at these steps."""
    each = jax.vmap(lambda key: jax.vmap(lambda step: jax.random.uniform(jax.random.fold_in(key, step), (2,)))(steps))
    return jax.vmap(each)(keys)


class _Loop(NamedTuple):
    """What the sampling loop carries; shapes as in Rollouts with R ≤ M rows a group, inputs one longer.

    Attributes:
      step: how many tokens every running rollout has.
      running: rollouts of the group with most that are not done.
      place: [P, R] which of the group's M rollouts stands in a row.
      cache: of each layer.
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


def _empty(arch: Architecture, group: Group, num_rollouts: int, total: int) -> _Loop:
    """Nothing sampled yet; every rollout is about to read the prompt's last token."""
    shape = (group.prompt.shape[0], num_rollouts)
    heads = (*shape, arch.kv_heads)
    kv = KeyValues(jnp.zeros((*heads, arch.head_dim, 0), arch.dtype), jnp.zeros((*heads, 0, arch.head_dim), arch.dtype))
    last = jnp.take_along_axis(group.prompt, group.prompt_length[:, None] - 1, axis=1)
    counts = jnp.zeros(shape, jnp.int32)
    return _Loop(
        step=jnp.int32(0),
        running=jnp.int32(num_rollouts),
        place=jnp.broadcast_to(jnp.arange(num_rollouts), shape),
        cache=[kv] * arch.layers,
        inputs=jnp.zeros((*shape, total + 1), jnp.int32).at[:, :, 0].set(last),
        targets=jnp.zeros((*shape, total), jnp.int32),
        sampled=jnp.zeros((*shape, total), bool),
        log_prob=jnp.zeros((*shape, total), jnp.float32),
        progress=_Progress(counts, jnp.full(shape, _OPEN, jnp.int8), counts, jnp.zeros(shape, bool)),
    )


def _decode(
    decoder: Decoder, layers: list, prompt: _Prompt, group: Group, keys: Array, sampling: Sampling, loop: _Loop,
    end: Array, enough: Array, *, more: int, most: int, max_answer: int,
) -> _Loop:  # fmt: skip
    """At most `most` steps with a cache of `more` further tokens, to step `end` or until `enough` of each group run."""
    arch, head = decoder.arch, decoder.output_head()
    loop = loop._replace(cache=[cache.grown(more) for cache in loop.cache])
    context = group.prompt_length[:, None] - 1
    first, held = loop.step, loop.cache[0].values.shape[3]
    keys = jax.vmap(lambda key, place: jax.vmap(functools.partial(jax.random.fold_in, key))(place))(keys, loop.place)
    uniforms = _uniforms(keys, first + jnp.arange(most))

    def one_step(loop: _Loop) -> _Loop:
        t, running = loop.step, ~loop.progress.done
        token = jax.lax.dynamic_slice_in_dim(loop.inputs, t, 1, axis=2)
        hidden, cache = decoder.extend(
            token, jnp.broadcast_to(context[..., None] + t, token.shape),
            prompt=prompt.kv, prompt_mask=prompt.mask,
            past=loop.cache, past_mask=jnp.broadcast_to(jnp.arange(held) <= t, (*token.shape[:2], held)),
            layers=layers, place=t,
        )  # fmt: skip
        logits = output_logits(hidden[:, :, 0], head, arch.logit_cap)
        uniform = jax.lax.dynamic_index_in_dim(uniforms, t - first, axis=2, keepdims=False)
        scaled = logits / jnp.maximum(sampling.temperature, 1e-6)  # at 0, all but the largest are out of reach
        if sampling.truncation is not None:
            scaled = truncated(scaled, sampling.truncation)
        drawn = jax.vmap(jax.vmap(draw))(uniform, scaled)
        target, read, forced, progress = _advance(loop.progress, drawn, t, sampling, max_answer)
        log_prob = jnp.take_along_axis(logits, target[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)

        def write(array: Array, value: Array, at: Array) -> Array:
            value = jnp.where(running, value, 0).astype(array.dtype)
            return jax.lax.dynamic_update_slice_in_dim(array, value[..., None], at, axis=2)

        return loop._replace(
            step=t + 1,
            running=(~progress.done).sum(axis=1).max(),
            cache=cache,
            inputs=write(loop.inputs, read, t + 1),
            targets=write(loop.targets, target, t),
            sampled=write(loop.sampled, ~forced, t),
            log_prob=write(loop.log_prob, jnp.where(forced, 0.0, log_prob), t),
            progress=progress,
        )

    return jax.lax.while_loop(lambda loop: (loop.step < end) & (loop.running > enough), one_step, loop)


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
    progress, total = loop.progress, loop.targets.shape[2]
    closed = progress.closing != NEVER
    log_w = jnp.where(closed, jnp.where(in_gold, gold_log_prob, 0).sum(-1), -jnp.inf)

    joint_length = sampling.joint.shape[0]
    rollouts = Rollouts(
        *group[:2],
        inputs=loop.inputs[..., :total],
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

    extension = jnp.arange(total + gold_inputs.shape[2]) - progress.rationale_length[..., None]

    def behind(stream: Array, values: Array) -> Array:
        """`values` from each rollout's rationale_length on, `stream` before it."""
        stream = jnp.pad(stream, ((0, 0), (0, 0), (0, extension.shape[2] - total)))
        placed = jnp.take_along_axis(values, jnp.clip(extension, 0, values.shape[2] - 1), axis=2)
        return jnp.where((extension >= 0) & (extension < values.shape[2]), placed, stream)

    log_prob = jnp.pad(jnp.where(in_gold, gold_log_prob, 0), ((0, 0), (0, 0), (joint_length, 0)))
    return rollouts._replace(
        inputs=behind(rollouts.inputs, gold_inputs),
        targets=behind(loop.targets, gold_targets),
        sampled=behind(loop.sampled, jnp.zeros(gold_targets.shape, bool)),
        log_prob=behind(loop.log_prob, jnp.where(closed[..., None], log_prob, 0.0)),
        answer_length=jnp.where(closed, group.gold_length[:, None], 0),
    )


_SIZES = ("arch", "more", "most", "max_answer")


@functools.partial(jax.jit, static_argnames="arch")
def _together(params: dict, *, arch: Architecture) -> tuple[dict, list]:
    """Parameters as decoding reads them again and again: cast, put together over fsdp; those of each layer apart."""
    params = all_gathered(params, arch.dtype)
    layers = by_layer(nnx.split(bind(arch, params).layers)[1], arch.layers)
    return {name: leaf for name, leaf in params.items() if name != "layers"}, layers


@functools.partial(jax.jit, static_argnames=(*_SIZES, "num_rollouts", "total"))
def _begin(
    params: dict, layers: list, group: Group, keys: Array, sampling: Sampling, end: Array, enough: Array, *,
    arch: Architecture, num_rollouts: int, total: int, more: int, most: int, max_answer: int,
) -> tuple[_Prompt, _Loop]:  # fmt: skip
    """Reads the prompts and samples with a first cache."""
    decoder = bind(arch, params)
    prompt = _Prompt(*prompt_states(decoder, group.prompt, group.prompt_length, layers))
    loop = _empty(arch, group, num_rollouts, total)
    sizes = {"more": more, "most": most, "max_answer": max_answer}
    return prompt, _decode(decoder, layers, prompt, group, keys, sampling, loop, end, enough, **sizes)


@functools.partial(jax.jit, static_argnames=_SIZES)
def _go_on(
    params: dict, layers: list, prompt: _Prompt, group: Group, keys: Array, sampling: Sampling, loop: _Loop, end: Array,
    enough: Array, *, arch: Architecture, more: int, most: int, max_answer: int,
) -> _Loop:  # fmt: skip
    """Samples on, with a cache of `more` further tokens."""
    sizes = {"more": more, "most": most, "max_answer": max_answer}
    return _decode(bind(arch, params), layers, prompt, group, keys, sampling, loop, end, enough, **sizes)


@functools.partial(jax.jit, static_argnames=("arch", "keep", "max_answer"))
def _let_go(
    params: dict, layers: list, prompt: _Prompt, group: Group, sampling: Sampling, loop: _Loop, *,
    arch: Architecture, keep: int, max_answer: int,
) -> tuple[_Loop, Array, Rollouts]:  # fmt: skip
    """Keeps `keep` rollouts of each group, of which no more run; returns them, and the others' places and record."""
    staying, leaving = loop, loop
    if keep:
        order = jnp.argsort(loop.progress.done, axis=1, stable=True)
        staying, leaving = loop.rows(order[:, :keep]), loop.rows(order[:, keep:])
    record = _recorded(bind(arch, params), layers, prompt, group, leaving, sampling, max_answer)
    return staying, leaving.place, record


@jax.jit
def _assembled(places: Sequence[Array], records: Sequence[Rollouts]) -> Rollouts:
    """Records of some rows each, [P, r, …], as one [P, M, …] with every rollout in its place."""
    order = jnp.argsort(jnp.concatenate(places, axis=1), axis=1)

    def joined(*parts: Array) -> Array:
        return jax.vmap(lambda group, row: group[row])(jnp.concatenate(parts, axis=1), order)

    return Rollouts(*records[0][:2], *(joined(*parts) for parts in zip(*(x[2:] for x in records), strict=True)))


PROGRAMS = (_together, _begin, _go_on, _let_go, _assembled)  # what is compiled; a test counts


def _sizes(num_rollouts: int) -> list[int]:
    """How many rows of a group there may be: M and its halves to an eighth. Each is compiled for when first met."""
    return [size for size in (num_rollouts >> i for i in range(4)) if size]


def roll_out(
    params: dict, group: Group, keys: Array, sampling: Sampling, *,
    arch: Architecture, num_rollouts: int, max_rationale: int, max_answer: int = 0, traced: bool = False,
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
      traced: whether this call is itself traced; then no rollout leaves before the end.

    Returns:
      Rollouts of T = max_rationale + 1 + J + (A or max_answer).
    """
    return roll_out_counted(
        params, group, keys, sampling, arch=arch, num_rollouts=num_rollouts, max_rationale=max_rationale,
        max_answer=max_answer, traced=traced,
    )[0]  # fmt: skip


def roll_out_counted(
    params: dict, group: Group, keys: Array, sampling: Sampling, *,
    arch: Architecture, num_rollouts: int, max_rationale: int, max_answer: int, traced: bool = False,
) -> tuple[Rollouts, Array | int]:  # fmt: skip
    """`roll_out`, and how many tokens would have been sampled had no row of any step been idle."""
    total = max_rationale + 1 + (sampling.joint.shape[0] + max_answer if max_answer else 0)
    most = min(total, max(MIN_SEGMENT, -(-total // MAX_SEGMENTS)))
    static = {"arch": arch, "max_answer": max_answer}
    sizes = [num_rollouts] if traced or total < LONG else _sizes(num_rollouts)
    rows, end, before, work = num_rollouts, most, 0, 0
    places, records = [], []

    def enough() -> int:
        return max([size for size in sizes if size < rows], default=0)

    apart, layers = _together(params, arch=arch)
    params = params | apart  # the stacked layers are there for their shape: no program reads them
    prompt, loop = _begin(
        params,
        layers,
        group,
        keys,
        sampling,
        end,
        enough(),
        num_rollouts=rows,
        total=total,
        more=most,
        most=most,
        **static,
    )
    while True:
        # Of few tokens nothing is asked before the end: programs are sent off one behind the other.
        step, running = (end, rows) if len(sizes) == 1 else map(int, jax.device_get((loop.step, loop.running)))
        work, before = work + rows * (step - before), step
        if not running or step == total:
            break
        if running <= enough():
            rows = min(size for size in sizes if size >= running)
            loop, place, record = _let_go(params, layers, prompt, group, sampling, loop, keep=rows, **static)
            places, records = [*places, place], [*records, record]
        more = min(most, total - end) if step == end else 0
        end += more
        loop = _go_on(
            params, layers, prompt, group, keys, sampling, loop, end, enough(), more=more, most=most, **static
        )
    if len(sizes) == 1:
        work = rows * loop.step
    _, place, record = _let_go(params, layers, prompt, group, sampling, loop, keep=0, **static)
    record = _assembled([*places, place], [*records, record]) if places else record
    return record, work * group.prompt.shape[0]
