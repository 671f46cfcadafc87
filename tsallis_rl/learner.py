"""The learner: coefficients × log-probabilities → gradient → update. It knows no estimator by name."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Sharding
from ml_collections import ConfigDict

from tsallis_rl.decoding import prompt_states
from tsallis_rl.errors import UserError
from tsallis_rl.mesh import to_host
from tsallis_rl.models import Architecture, KeyValues, bind, lora, weighted_log_probs
from tsallis_rl.objectives import Coefficients
from tsallis_rl.rollouts import Rollouts

MIN_LENGTH_STEP = 64  # tokens at least between the lengths that updates are compiled for
LENGTHS = 8  # how many of these there are at most


class TrainState(NamedTuple):
    """What training carries from step to step: parameters, optax's state of those trained, updates made so far."""

    params: dict
    opt_state: optax.OptState
    step: Array


def learning_rate(optimizer: ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then constant or cosine to zero at the last step."""
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    if optimizer.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    elif optimizer.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        raise UserError(f"config.optimizer.schedule={optimizer.schedule!r}: choose from constant, cosine")
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def make_optimizer(optimizer: ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW, or SGD with momentum and the same decoupled decay, behind clipping by the global norm.

    Adam's `eps` decides which gradients are too small to count.
    """
    if optimizer.name == "adamw":
        rule = optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps)
    elif optimizer.name == "sgd":
        rule = optax.trace(optimizer.b1)
    else:
        raise UserError(f"config.optimizer.name={optimizer.name!r}: choose from adamw, sgd")
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip),
        rule,
        optax.add_decayed_weights(optimizer.weight_decay),
        optax.scale_by_learning_rate(learning_rate(optimizer, steps)),
    )


def start_state(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(params, optimizer.init(lora.trained(params)), jnp.int32(0))


def read_prompts(params: dict, rollouts: Rollouts, arch: Architecture) -> tuple[KeyValues, Array]:
    """Keys and values of the prompts, read once per group, and their mask [P, T0]."""
    return prompt_states(bind(arch, params), rollouts.prompt, rollouts.prompt_length)


def stream_states(
    params: dict, prompts: tuple[KeyValues, Array], rollouts: Rollouts, arch: Architecture
) -> tuple[Array, Array]:
    """Hidden states [P, M, T, D] that predict the rollouts' targets behind `read_prompts`; and the head."""
    decoder = bind(arch, params)
    positions = rollouts.prompt_length[:, None, None] - 1 + jnp.arange(rollouts.inputs.shape[2])  # [P, 1, T]
    hidden, _ = decoder.extend(rollouts.inputs, positions, prompt=prompts[0], prompt_mask=prompts[1])
    return hidden, decoder.output_head()


def surrogate(
    params: dict, prompts: tuple[KeyValues, Array], rollouts: Rollouts, coefficients: Coefficients, arch: Architecture,
    shards: int = 1,
) -> tuple[Array, Array]:  # fmt: skip
    """−Σ_m [score_m log p(z_m | x) + path_m log p(y_m | x, z_m)], summed over prompts (METHOD §3).

    Args:
      params: the decoder's parameters.
      prompts: what `read_prompts` gives; the gradient goes through it as well.
      rollouts: [P, M, T].
      coefficients: score and path [P, M], constants.
      arch: the decoder's architecture.
      shards: over how many devices P is split.

    Returns:
      The surrogate, whose gradient is the estimator's, and the largest gap between the log-probabilities that carry a
      coefficient and those that the sampler recorded.
    """
    hidden, head = stream_states(params, prompts, rollouts, arch)
    score = jnp.where(rollouts.score_mask, coefficients.score[..., None], 0.0)
    path = jnp.where(rollouts.path_mask, coefficients.path[..., None], 0.0)
    hidden, targets, weight, recorded = (
        x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (hidden, rollouts.targets, score + path, rollouts.log_prob)
    )
    total, log_probs = weighted_log_probs(hidden, head, targets, weight, arch.logit_cap, shards)
    return -total, jnp.where(weight == 0, 0.0, jnp.abs(log_probs - recorded)).max()


def rollouts_at_once(rollouts: int, most: int) -> int:
    """The largest divisor of so many rollouts that is not above `most`; all for 0."""
    return max(n for n in range(1, rollouts + 1) if rollouts % n == 0 and n <= (most or rollouts))


def gradient(
    params: dict, rollouts: Rollouts, coefficients: Coefficients, *,
    arch: Architecture, micro_batches: int = 1, micro_rollouts: int = 0, shards: int = 1,
) -> tuple[dict, dict[str, Array]]:  # fmt: skip
    """The mean over prompts of the surrogate's gradient to what is trained, accumulated over slices of P and of M.

    Args:
      params: the decoder's parameters.
      rollouts: [P, M, T].
      coefficients: [P, M].
      arch: the decoder's architecture.
      micro_batches: equal slices of P; each reads its prompts once.
      micro_rollouts: how many of a prompt's rollouts, at most, go through the decoder together; 0 is all.
      shards: over how many devices P is split.

    Returns:
      The gradient and scalars to log.
    """
    prompts, count = rollouts.log_w.shape
    # Slices are strided, so that each holds prompts of every device when P is split over the mesh.
    slices = jax.tree.map(
        lambda x: x.reshape(prompts // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1),
        (rollouts, coefficients),
    )
    at_once = rollouts_at_once(count, micro_rollouts)
    part = lora.trained(params)

    def of_slice(total: tuple, inputs: tuple[Rollouts, Coefficients]) -> tuple[tuple, None]:
        group = inputs[0][:2]  # prompts and their lengths
        streams = jax.tree.map(
            lambda x: x.reshape(len(x), count // at_once, at_once, *x.shape[2:]).swapaxes(0, 1),
            (inputs[0][2:], inputs[1]),
        )

        def read(part: dict) -> tuple[KeyValues, Array]:
            return read_prompts(lora.replace(params, part), inputs[0], arch)

        kv, through_prompts, mask = jax.vjp(read, part, has_aux=True)

        def of_rollouts(total: tuple, inputs: tuple[tuple, Coefficients]) -> tuple[tuple, None]:
            def loss(part: dict, kv: KeyValues) -> tuple[Array, Array]:
                some, coefficients = Rollouts(*group, *inputs[0]), inputs[1]
                return surrogate(lora.replace(params, part), (kv, mask), some, coefficients, arch, shards)

            (value, gap), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(part, kv)
            total_value, total_gap, total_grads = total
            total_grads = jax.tree.map(jnp.add, total_grads, grads)
            return (total_value + value, jnp.maximum(total_gap, gap), total_grads), None

        total_value, total_gap, total_grads = total
        start = (total_value, total_gap, (total_grads, jax.tree.map(jnp.zeros_like, kv)))
        (value, gap, (grads, d_kv)), _ = jax.lax.scan(of_rollouts, start, streams)
        return (value, gap, jax.tree.map(jnp.add, grads, *through_prompts(d_kv))), None

    zeros = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, part))
    (loss, gap, grads), _ = jax.lax.scan(of_slice, zeros, slices)
    grads = jax.tree.map(lambda g: g / prompts, grads)
    return grads, {"surrogate": loss / prompts, "log_prob_gap": gap, "grad_norm": optax.tree.norm(grads)}


class Sizes(NamedTuple):
    """The shape of an update: prompts, rollouts of each, tokens of each."""

    prompts: int
    rollouts: int
    tokens: int


def pack(
    rollouts: Rollouts, coefficients: Coefficients, slices: int, sharding: Sharding | None = None
) -> tuple[Rollouts, Coefficients, dict[str, float]]:
    """What carries a coefficient, in the smallest of a few shapes that hold it; the gradient is the same.

    Rollouts whose coefficients are both zero (not drawn by PAFT), groups of nothing else (solved by all or by none,
    under GRPO) and tokens behind every end cost nothing more.

    Args:
      rollouts: [P, M, T].
      coefficients: [P, M].
      slices: P stays a multiple of it: micro-batches times devices over which prompts are split.
      sharding: of arrays that begin with P; the packed ones are laid out by it as well.

    Returns:
      The packed record and its coefficients, and as metrics the tokens up to the last that carries a coefficient, the
      share of [P, M, T] that is left and the share of that which is padding.
    """
    used, stops = to_host((_used(coefficients), rollouts.answer_start + rollouts.answer_length))
    stops = np.where(used, stops, 0)
    full = Sizes(*rollouts.inputs.shape)
    step = max(MIN_LENGTH_STEP, -(-full.tokens // LENGTHS))
    sizes = Sizes(
        _quartered(full.prompts, used.any(axis=1).sum(), multiple=slices),
        _quartered(full.rollouts, used.sum(axis=1).max()),
        next(n for n in range(full.tokens % step or step, full.tokens + 1, step) if n >= stops.max()),
    )
    left = np.prod(sizes)
    metrics = {
        "update_tokens": float(stops.sum()),
        "update_share": left / np.prod(full),
        "update_padding": 1 - stops.sum() / left,
    }
    return *((rollouts, coefficients) if sizes == full else _select(rollouts, coefficients, sizes, sharding)), metrics


def _used(coefficients: Coefficients) -> Array:
    return (coefficients.score != 0) | (coefficients.path != 0)


def _quartered(size: int, needed: int, multiple: int = 1) -> int:
    """`size` divided by four as often as it holds what is needed: few shapes, few programs."""
    while size % (4 * multiple) == 0 and size // 4 >= needed:
        size //= 4
    return size


@functools.partial(jax.jit, static_argnames=("sizes", "sharding"))
def _select(
    rollouts: Rollouts, coefficients: Coefficients, sizes: Sizes, sharding: Sharding | None
) -> tuple[Rollouts, Coefficients]:
    """The groups of which anything is used, of each the rollouts that are, and their first tokens."""
    used = _used(coefficients)
    groups = jnp.argsort(~used.any(axis=1), stable=True)[: sizes.prompts]
    places = jnp.argsort(~used[groups], axis=1, stable=True)[:, : sizes.rollouts]

    def chosen(x: Array) -> Array:
        return jax.vmap(lambda group, place: group[place])(x[groups], places)

    streams = jax.tree.map(lambda x: chosen(x)[..., : sizes.tokens] if x.ndim == 3 else chosen(x), rollouts[2:])
    # The gradient is a mean over prompts: of fewer, each counts for less.
    share = sizes.prompts / used.shape[0]
    packed = Rollouts(rollouts.prompt[groups], rollouts.prompt_length[groups], *streams)
    packed = packed, jax.tree.map(lambda x: share * chosen(x), coefficients)
    # Left alone, the compiler gives every device all of it.
    return packed if sharding is None else jax.lax.with_sharding_constraint(packed, sharding)


def update(
    state: TrainState, rollouts: Rollouts, coefficients: Coefficients, *,
    arch: Architecture, optimizer: optax.GradientTransformation, micro_batches: int = 1, micro_rollouts: int = 0,
    shards: int = 1,
) -> tuple[TrainState, dict[str, Array]]:  # fmt: skip
    """One optimiser step with `gradient`; returns the new state and scalars to log.

    Where a coefficient, the loss, the gradient or a new weight is not finite, the state stays as it is: `skipped` is 1.
    """
    grads, metrics = gradient(
        state.params, rollouts, coefficients, arch=arch, micro_batches=micro_batches, micro_rollouts=micro_rollouts,
        shards=shards,
    )  # fmt: skip
    part = lora.trained(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, part)
    new = optax.apply_updates(part, updates)
    checked = (coefficients, metrics["surrogate"], metrics["grad_norm"], new)
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(checked)]).all()
    part, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (new, opt_state), (part, state.opt_state)
    )
    metrics["skipped"] = 1 - finite.astype(jnp.float32)
    return TrainState(lora.replace(state.params, part), opt_state, state.step + finite), metrics
