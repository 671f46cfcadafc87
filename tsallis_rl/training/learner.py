"""The learner: coefficients × log-probabilities → gradient → update. It knows no estimator by name."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.models import Architecture, Barred, Context, KeyValues, bind, lora, scored_log_probs
from tsallis_rl.models.shapes import largest_divisor
from tsallis_rl.training.log_prob_gaps import Gaps, count_gaps, no_gaps
from tsallis_rl.training.optimizer import AVERAGE, State
from tsallis_rl.training.packing import PackedRows, RowTokens, Slices

WHOLE = Slices()


def read_prompts(params: dict, rows: PackedRows, arch: Architecture) -> Context:
    """Prefills each group's prompt once: keys and values of all but the last token."""
    return bind(arch, params).read_prompt(rows.prompt, rows.prompt_length)


def row_states(params: dict, prompts: Context, rows: PackedRows, arch: Architecture) -> tuple[Array, Array]:
    """Computes hidden states [P, B, T, D] that predict the rows' targets after the prompts; also returns the head."""
    decoder, tokens = bind(arch, params), rows.tokens
    offset = jnp.arange(tokens.inputs.shape[2]) - (0 if tokens.start is None else tokens.start)
    positions = rows.prompt_length[:, None, None] - 1 + offset  # [P, 1 or B, T]
    hidden, _ = decoder.extend(tokens.inputs, positions, prompt=prompts, start=tokens.start)
    return hidden, decoder.output_head()


def surrogate(
    params: dict, prompts: Context, rows: PackedRows, arch: Architecture, shards: int = 1
) -> tuple[Array, Gaps]:
    """Sums −Σ_m [score_m log p(z_m | x) + path_m log p(y_m | x, z_m)] over prompts (docs/method.md §3).

    Args:
      params: the decoder's parameters.
      prompts: what `read_prompts` returns; the gradient flows through it as well.
      rows: rollouts and their coefficients, [P, B, T].
      arch: the decoder's architecture.
      shards: over how many devices P is split.

    Returns:
      The surrogate, whose gradient is the estimator's, and the gaps between the log-probabilities that carry a
      coefficient and those that the sampler recorded.
    """
    total, log_probs = scored_rows(params, prompts, rows, arch, shards)
    coefficient, recorded = (x.reshape(log_probs.shape) for x in (rows.tokens.coefficient, rows.tokens.log_prob))
    return -total, count_gaps(jnp.abs(log_probs - recorded), coefficient != 0)


def scored_rows(
    params: dict, prompts: Context, rows: PackedRows, arch: Architecture, shards: int
) -> tuple[Array, Array]:
    """Sums coefficient × log-probability over the rows' targets; arguments as for `surrogate`.

    Returns:
      The sum, and the log-probabilities [P, B T], 0 where the coefficient is 0: constants to differentiation.
    """
    hidden, head = row_states(params, prompts, rows, arch)
    tokens = rows.tokens
    hidden, targets, coefficient = (
        x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (hidden, tokens.targets, tokens.coefficient)
    )
    barred = None if rows.barred_ids is None else Barred(rows.barred_ids, tokens.barred.reshape(targets.shape))
    return scored_log_probs(hidden, head, targets, coefficient, arch.logit_form, shards, barred)


def in_slices(tree: Any, count: int) -> Any:
    """Splits arrays [P, …] into `count` slices [count, P / count, …] for a scan.

    They are strided, so that each holds prompts of every device when P is split over the mesh.
    """
    return jax.tree.map(lambda x: x.reshape(len(x) // count, count, *x.shape[1:]).swapaxes(0, 1), tree)


class _Total(NamedTuple):
    """The sums over slices.

    Attributes:
      value: of the surrogate.
      gaps: of each prompt of a slice, added up over slices.
      grads: of the value.
    """

    value: Array
    gaps: Gaps
    grads: Any

    def plus(self, value: Array, gaps: Gaps, grads: Any) -> "_Total":
        """Adds value, gaps and gradient of one slice, in the dtypes of the sums."""
        grads = jax.tree.map(lambda total, x: total + x.astype(total.dtype), self.grads, grads)
        return _Total(self.value + value, self.gaps.plus(gaps), grads)


def gradient(
    params: dict, rows: PackedRows, *, arch: Architecture, slices: Slices = WHOLE
) -> tuple[dict, dict[str, Any]]:
    """Computes the gradient of the surrogate's mean over prompts, for trained parameters, in slices of P and of rows.

    Args:
      params: the decoder's parameters.
      rows: [P, B, T].
      arch: the decoder's architecture.
      slices: in which it is computed.

    Returns:
      The gradient; and metrics: scalars, and the `Gaps` that `gap_figures` turns into scalars.
    """
    prompts = rows.tokens.inputs.shape[0]
    slices = slices.of(*rows.tokens.inputs.shape, rows.prompt.shape[1])
    sliced = in_slices(rows, slices.micro_batches)
    gaps = no_gaps(prompts // slices.micro_batches)
    zeros = _Total(jnp.float32(0), gaps, jax.tree.map(jnp.zeros_like, lora.trained(params)))
    params = jax.tree.map(lambda x: x.astype(arch.dtype), params)  # once for all slices; gradients are of the cast ones
    total, _ = jax.lax.scan(lambda total, rows: (_add_slice(total, params, rows, arch, slices), None), zeros, sliced)
    grads = jax.tree.map(lambda g: g / prompts, total.grads)
    return grads, {
        "surrogate": total.value / prompts,
        "log_prob_gaps": total.gaps,
        "grad_norm": optax.tree.norm(grads),
    }


def _add_slice(total: _Total, params: dict, rows: PackedRows, arch: Architecture, slices: Slices) -> _Total:
    """Adds a slice of P: its prompts are prefilled once, its rows computed `micro_rollouts` at a time.

    Stops after the last rows with a nonzero coefficient.
    """
    count = rows.tokens.inputs.shape[1]
    at_once = largest_divisor(count, slices.micro_rollouts)
    parts: RowTokens = jax.tree.map(
        lambda x: x.reshape(len(x), count // at_once, at_once, *x.shape[2:]).swapaxes(0, 1), rows.tokens
    )

    def read(part: dict) -> tuple[KeyValues, Array]:
        prompts = read_prompts(lora.replace(params, part), rows, arch)
        return prompts.kv, prompts.length

    part = lora.trained(params)
    kv, through_prompts, length = jax.vjp(read, part, has_aux=True)

    def add_rows(i: Array | int, total: _Total) -> _Total:
        def loss(part: dict, kv: KeyValues) -> tuple[Array, Gaps]:
            some = rows._replace(tokens=jax.tree.map(lambda x: x[i], parts))
            return surrogate(lora.replace(params, part), Context(kv, length), some, arch, slices.shards)

        (value, gaps), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(part, kv)
        return total.plus(value, gaps, grads)

    # Over several parts the gradient of keys and values is summed in float32: bfloat16 would round each sum.
    summed = kv if at_once == count else jax.tree.map(lambda x: x.astype(jnp.float32), kv)
    start = total._replace(grads=(total.grads, jax.tree.map(jnp.zeros_like, summed)))
    if at_once == count:
        found = add_rows(0, start)
    else:
        holding = (parts.coefficient != 0).any(axis=(1, 2, 3))
        needed = (jnp.arange(1, len(holding) + 1) * holding).max()
        found = jax.lax.fori_loop(0, needed, add_rows, start)
    grads, d_kv = found.grads
    (through,) = through_prompts(jax.tree.map(lambda total, x: total.astype(x.dtype), d_kv, kv))
    return found._replace(grads=jax.tree.map(lambda total, x: total + x.astype(total.dtype), grads, through))


def update(
    state: State,
    rows: PackedRows,
    *,
    arch: Architecture,
    optimizer: optax.GradientTransformation,
    slices: Slices = WHOLE,
    decay: ArrayLike | None = None,
    rate: optax.Schedule | None = None,
) -> tuple[State, dict[str, Any]]:
    """Takes one optimiser step with `gradient`; returns the new state and metrics.

    If a coefficient, the loss, the gradient or a new parameter is not finite, the state stays as it is and `skipped`
    is 1. Otherwise a moving average that the state holds becomes decay · average + (1 − decay) · new parameters. `rate`
    is the optimiser's learning rate; its value at this step is logged.
    """
    grads, metrics = gradient(state.params, rows, arch=arch, slices=slices)
    if rate is not None:
        metrics["learning_rate"] = jnp.asarray(rate(state.step), jnp.float32)
    part = lora.trained(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, part)
    new = optax.apply_updates(part, updates)
    checked = (rows.tokens.coefficient, metrics["surrogate"], metrics["grad_norm"], new)
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(checked)]).all()
    part, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (new, opt_state), (part, state.opt_state)
    )
    metrics["skipped"] = 1 - finite.astype(jnp.float32)
    after = state._replace(params=lora.replace(state.params, part), opt_state=opt_state, step=state.step + finite)
    if AVERAGE in state.references:
        share = jnp.where(finite, 1.0 - decay, 0.0)
        average = jax.tree.map(lambda old, new: old + share * (new - old), state.references[AVERAGE], part)
        after = after._replace(references=state.references | {AVERAGE: average})
    return after, metrics
