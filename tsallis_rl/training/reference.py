"""Reference parameters that a run holds beside its own, and the rescoring of rollouts under them.

    start     the parameters before the first step, in the dtype of the computation
    average   a moving average of the trained ones, in their own dtype: in bfloat16 it would not move

With adapters, only their factors are held; the frozen parameters are the run's own.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from tsallis_rl.models import Architecture, lora
from tsallis_rl.models.shapes import largest_divisor
from tsallis_rl.models.sharding import mesh_shape, prompt_shards
from tsallis_rl.objectives import ESTIMATORS, Coefficients, compared_estimators
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.sampler.rules import Rules
from tsallis_rl.training.learner import WHOLE, in_slices, read_prompts, scored_rows
from tsallis_rl.training.optimizer import AVERAGE, START
from tsallis_rl.training.packing import PackedRows, RowTokens, Slices, one_row_each


def held_references(config: ConfigDict) -> tuple[str, ...]:
    """Names the references that the settings need: START, AVERAGE, both or none."""
    reference = config.regularizer.reference if reads_reference(config) else ""
    start, average = config.evaluate.kl or reference == START, reference == AVERAGE
    return (START,) * bool(start) + (AVERAGE,) * bool(average)


def reads_reference(config: ConfigDict) -> bool:
    """Returns whether a step rescores its rollouts under config.regularizer.reference."""
    names = {config.estimator.name} | compared_estimators(config.shadow)
    return bool(config.regularizer.kl) or any("log_ratio" in ESTIMATORS[name].needs for name in names)


def rescoring_slices(config: ConfigDict, prompts: int, devices: int) -> Slices:
    """Makes slices of P = `prompts` that are at most as large as those of an update."""
    shards = prompt_shards(mesh_shape(config.mesh, devices))
    most = max((config.train.micro_batch or config.train.prompts) // shards, 1)
    at_once = shards * largest_divisor(prompts // shards, most)
    return Slices(prompts // at_once, config.train.micro_rollouts or config.rollouts.num_rollouts, shards)


@functools.partial(jax.jit, static_argnames=("arch", "slices", "answers"))
def rescore(
    params: dict,
    reference: dict,
    rollouts: Rollouts,
    rules: Rules | None,
    *,
    arch: Architecture,
    slices: Slices = WHOLE,
    answers: bool = False,
) -> Array:
    """Computes log-probabilities of the sampled targets under a reference: rollouts [P, M, T] → [P, M, T].

    They are of the distribution that was sampled from, without its temperature: ids that rollouts.min_rationale bars
    have no probability under the reference either.

    Args:
      params: the run's; with adapters, their frozen part is read.
      reference: replaces the trained part.
      rollouts: [P, M, T].
      rules: under which they were sampled.
      arch: the decoder's architecture.
      slices: in which it is computed.
      answers: score the answers' tokens as well as the rationales' sampled ones; all other targets have 0.
    """
    whole = jax.tree.map(lambda x: x.astype(arch.dtype), lora.replace(params, reference))
    ones = jnp.ones(rollouts.log_w.shape, jnp.float32)
    rows = one_row_each(rollouts, Coefficients(ones, ones * answers), rules)

    def of_slice(rows: PackedRows) -> Array:
        prompts = read_prompts(whole, rows, arch)
        shape = rows.tokens.inputs.shape  # [P, M, T]
        at_once = largest_divisor(shape[1], slices.micro_rollouts)

        def of_rows(tokens: RowTokens) -> Array:
            _, log_probs = scored_rows(whole, prompts, rows._replace(tokens=tokens), arch, slices.shards)
            return log_probs.reshape(tokens.targets.shape)

        parts = jax.tree.map(lambda x: x.reshape(shape[0], -1, at_once, *x.shape[2:]).swapaxes(0, 1), rows.tokens)
        return jax.lax.map(of_rows, parts).swapaxes(0, 1).reshape(shape)

    found = jax.lax.map(of_slice, in_slices(rows, slices.micro_batches))
    return found.swapaxes(0, 1).reshape(rollouts.targets.shape)


@functools.partial(jax.jit, static_argnames="answers")
def sum_log_ratio(log_prob: Array, rescored: Array, rollouts: Rollouts, *, answers: bool = False) -> Array:
    """Sums log p − log p_ref over the tokens that `rescore` scored: [P, M, T] each → [P, M].

    Args:
      log_prob: under the policy: `rollouts.log_prob` of the sampler, or rescored too.
      rescored: under the reference.
      rollouts: [P, M, T].
      answers: see `rescore`.
    """
    mask = rollouts.score_mask | rollouts.path_mask if answers else rollouts.score_mask
    return jnp.where(mask, log_prob - rescored, 0.0).sum(-1)
