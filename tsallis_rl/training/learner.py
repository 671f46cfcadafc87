"""The learner: coefficients × log-probabilities → gradient → update. It knows no estimator by name."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict

from tsallis_rl.models import Architecture, Context, KeyValues, bind, lora, scored_log_probs
from tsallis_rl.runs.errors import UserError
from tsallis_rl.training.packing import Streams, rows_at_once


class TrainState(NamedTuple):
    """What training carries from step to step: parameters, optax's state of those trained, updates made so far."""

    params: dict
    opt_state: optax.OptState
    step: Array


def learning_rate(optimizer: ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then constant or cosine to zero at the last step.

    Raises:
      UserError: an unknown schedule.
    """
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

    Raises:
      UserError: an unknown name or schedule.
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


def read_prompts(params: dict, streams: Streams, arch: Architecture) -> Context:
    """Keys and values of the prompts, read once per group, and their mask [P, T0]."""
    return bind(arch, params).read_prompt(streams.prompt, streams.prompt_length)


def stream_states(params: dict, prompts: Context, streams: Streams, arch: Architecture) -> tuple[Array, Array]:
    """Hidden states [P, R, T, D] that predict the streams' targets behind `read_prompts`; and the head."""
    decoder = bind(arch, params)
    behind = jnp.arange(streams.inputs.shape[2]) - (0 if streams.start is None else streams.start)
    positions = streams.prompt_length[:, None, None] - 1 + behind  # [P, 1 or R, T]
    hidden, _ = decoder.extend(streams.inputs, positions, prompt=prompts, start=streams.start)
    return hidden, decoder.output_head()


def surrogate(
    params: dict, prompts: Context, streams: Streams, arch: Architecture, shards: int = 1
) -> tuple[Array, Array]:
    """−Σ_m [score_m log p(z_m | x) + path_m log p(y_m | x, z_m)], summed over prompts (METHOD §3).

    Args:
      params: the decoder's parameters.
      prompts: what `read_prompts` gives; the gradient goes through it as well.
      streams: rollouts and their coefficients, [P, R, T].
      arch: the decoder's architecture.
      shards: over how many devices P is split.

    Returns:
      The surrogate, whose gradient is the estimator's, and the largest gap between the log-probabilities that carry a
      coefficient and those that the sampler recorded.
    """
    hidden, head = stream_states(params, prompts, streams, arch)
    hidden, targets, weight, recorded = (
        x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (hidden, streams.targets, streams.weight, streams.log_prob)
    )
    total, log_probs = scored_log_probs(hidden, head, targets, weight, arch.logit_cap, shards)
    return -total, jnp.where(weight == 0, 0.0, jnp.abs(log_probs - recorded)).max()


def gradient(
    params: dict, streams: Streams, *, arch: Architecture, micro_batches: int = 1, micro_rollouts: int = 0,
    shards: int = 1,
) -> tuple[dict, dict[str, Array]]:  # fmt: skip
    """The mean over prompts of the surrogate's gradient to what is trained, accumulated over slices of P and of rows.

    Args:
      params: the decoder's parameters.
      streams: [P, R, T].
      arch: the decoder's architecture.
      micro_batches: equal slices of P; each reads its prompts once.
      micro_rollouts: how many of a prompt's rows, at most, go through the decoder together; 0 is all. Behind the last
        row of a slice that holds anything no more are computed.
      shards: over how many devices P is split.

    Returns:
      The gradient and scalars to log.
    """
    prompts, count = streams.inputs.shape[:2]
    # Slices are strided, so that each holds prompts of every device when P is split over the mesh.
    slices = jax.tree.map(
        lambda x: x.reshape(prompts // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1), streams
    )
    at_once = rows_at_once(count, micro_rollouts)
    part = lora.trained(params)

    def of_slice(total: tuple, streams: Streams) -> tuple[tuple, None]:
        group = streams[:2]  # prompts and their lengths
        rows = jax.tree.map(
            lambda x: x.reshape(len(x), count // at_once, at_once, *x.shape[2:]).swapaxes(0, 1), streams[2:]
        )

        def read(part: dict) -> tuple[KeyValues, Array]:
            prompts = read_prompts(lora.replace(params, part), streams, arch)
            return prompts.kv, prompts.mask

        kv, through_prompts, mask = jax.vjp(read, part, has_aux=True)

        def of_rows(i: Array | int, total: tuple) -> tuple:
            def loss(part: dict, kv: KeyValues) -> tuple[Array, Array]:
                some = Streams(*group, *jax.tree.map(lambda x: x[i], rows))
                return surrogate(lora.replace(params, part), Context(kv, mask), some, arch, shards)

            (value, gap), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(part, kv)
            total_value, total_gap, total_grads = total
            total_grads = jax.tree.map(jnp.add, total_grads, grads)
            return total_value + value, jnp.maximum(total_gap, gap), total_grads

        total_value, total_gap, total_grads = total
        start = (total_value, total_gap, (total_grads, jax.tree.map(jnp.zeros_like, kv)))
        if at_once == count:
            value, gap, (grads, d_kv) = of_rows(0, start)
        else:
            holding = (rows[2] != 0).any(axis=(1, 2, 3))  # weights
            needed = (jnp.arange(1, len(holding) + 1) * holding).max()
            value, gap, (grads, d_kv) = jax.lax.fori_loop(0, needed, of_rows, start)
        return (value, gap, jax.tree.map(jnp.add, grads, *through_prompts(d_kv))), None

    zeros = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, part))
    (loss, gap, grads), _ = jax.lax.scan(of_slice, zeros, slices)
    grads = jax.tree.map(lambda g: g / prompts, grads)
    return grads, {"surrogate": loss / prompts, "log_prob_gap": gap, "grad_norm": optax.tree.norm(grads)}


def update(
    state: TrainState, streams: Streams, *, arch: Architecture, optimizer: optax.GradientTransformation,
    micro_batches: int = 1, micro_rollouts: int = 0, shards: int = 1,
) -> tuple[TrainState, dict[str, Array]]:  # fmt: skip
    """One optimiser step with `gradient`; returns the new state and scalars to log.

    Where a coefficient, the loss, the gradient or a new weight is not finite, the state stays as it is: `skipped` is 1.
    """
    grads, metrics = gradient(
        state.params, streams, arch=arch, micro_batches=micro_batches, micro_rollouts=micro_rollouts, shards=shards
    )  # fmt: skip
    part = lora.trained(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, part)
    new = optax.apply_updates(part, updates)
    checked = (streams.weight, metrics["surrogate"], metrics["grad_norm"], new)
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(checked)]).all()
    part, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (new, opt_state), (part, state.opt_state)
    )
    metrics["skipped"] = 1 - finite.astype(jnp.float32)
    return TrainState(lora.replace(state.params, part), opt_state, state.step + finite), metrics
