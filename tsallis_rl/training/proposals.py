"""Draws a step's rationales from a proposal that knows the answer, and scores them after the plain prompt.

The result is a record like any other: rollouts after the plain prompts, with log p(z|x) and log p(y*|x, z) under these,
and log ρ beside it (docs/method.md §9). Under both prompts, log-probabilities are of the distribution that was sampled
from: ids that rollouts.min_rationale bars are left out of each, and forced tokens have none.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl import objectives
from tsallis_rl.models.sharding import shard_prompts
from tsallis_rl.sampler import RolloutShape, roll_out
from tsallis_rl.sampler.batch import PromptBatch, batch_at
from tsallis_rl.sampler.keys import HINTED, TRAIN, example_keys
from tsallis_rl.sampler.record import NEVER, Rollouts, concatenate_rollouts
from tsallis_rl.sampler.sampler import score_without_rationale
from tsallis_rl.sampler.sampling_settings import Sampling
from tsallis_rl.training.reference import sum_log_ratio
from tsallis_rl.training.setup import Setup


class Drawn(NamedTuple):
    """The rollouts of a step's proposal.

    Attributes:
      rollouts: [P, M, T] after the plain prompts; those drawn after them come first.
      log_rho: [P, M], see `objectives.log_importance`.
      computed_tokens: of the sampler.
      measured: see `objectives.proposal_figures`.
    """

    rollouts: Rollouts
    log_rho: Array
    computed_tokens: Array | int
    measured: dict[str, Array]


class Proposal:
    """The proposal of a run whose config.proposal.name is hinted or mixture.

    Args:
      setup: of the run.
      sampling: of its training.
      shape: of its rollouts.
    """

    def __init__(self, setup: Setup, sampling: Sampling, shape: RolloutShape):
        self.setup, self.sampling, self.shape = setup, sampling, shape
        self.name = setup.config.proposal.name
        self._first_hinted = objectives.first_hinted(self.name, shape.num_rollouts)

    def __call__(
        self, params: dict, batch: PromptBatch, step: int, positions: np.ndarray, indices: np.ndarray
    ) -> Drawn:
        """Draws M rollouts for each of a batch's plain prompts.

        Args:
          params: the decoder's parameters.
          batch: the plain prompts and their golds.
          step: updates made so far.
          positions: [P] of the examples in the step's batch.
          indices: [P] of the examples in the training split.
        """
        first, split = self._first_hinted, self.setup.splits["hinted"]
        shown = shard_prompts(self.setup.mesh, batch_at(split, indices, split.width(indices)))
        count, seed = self.shape.num_rollouts, self.setup.config.seed
        keys = example_keys(seed, HINTED, step, positions)
        drawn, computed = self._roll_out(params, shown, keys, count - first)
        scored = self.setup.rescore(params, after_prompts(batch, drawn), answers=True)
        hinted = rescored(batch, drawn, scored)
        ratio, rollouts = -sum_log_ratio(drawn.log_prob, scored, drawn), hinted
        if first:
            keys = example_keys(seed, TRAIN, step, positions)
            plain, more = self._roll_out(params, batch, keys, first)
            under_hint = self.setup.rescore(params, after_prompts(shown, plain))
            ratio = jnp.concatenate([sum_log_ratio(plain.log_prob, under_hint, plain), ratio], axis=1)
            rollouts, computed = concatenate_rollouts([plain, hinted]), computed + more
        log_p_without = score_without_rationale(
            params, batch, self.sampling.rules, self.setup.arch, at_once=self.setup.config.rollouts.at_once
        )
        log_rho, measured = _figures(rollouts.log_w, ratio, log_p_without, self.name)
        return Drawn(rollouts, log_rho, computed, measured)

    def columns(self, log_rho: np.ndarray) -> dict[str, np.ndarray]:
        """Makes transcript columns of rollouts on the host, [P, M] each: log ρ, and whether z is hinted."""
        hinted = np.broadcast_to(np.arange(log_rho.shape[1]) >= self._first_hinted, log_rho.shape)
        return {"log_rho": log_rho, "hinted": hinted}

    def _roll_out(self, params: dict, batch: PromptBatch, keys: Array, count: int) -> tuple[Rollouts, Array | int]:
        """Draws `count` rollouts of each group after the prompts of a batch; also returns the computed tokens."""
        shape = dataclasses.replace(self.shape, num_rollouts=count)
        return roll_out(params, batch, keys, self.sampling, shape, at_once=self.setup.config.rollouts.at_once)


@jax.jit
def after_prompts(batch: PromptBatch, rollouts: Rollouts) -> Rollouts:
    """Puts rollouts [P, M, T] after other prompts; each rollout then reads its new prompt's last token first."""
    last = jnp.take_along_axis(jnp.asarray(batch.prompt), batch.prompt_length[:, None] - 1, axis=1)
    inputs = rollouts.inputs.at[:, :, 0].set(last.astype(rollouts.inputs.dtype))
    return rollouts._replace(prompt=batch.prompt, prompt_length=batch.prompt_length, inputs=inputs)


@jax.jit
def rescored(batch: PromptBatch, rollouts: Rollouts, scored: Array) -> Rollouts:
    """Makes the record of rollouts [P, M, T] after other prompts, with their log-probabilities `scored` under these."""
    log_w = jnp.where(rollouts.path_mask, scored, 0.0).sum(-1)
    closed = rollouts.closing != NEVER
    return after_prompts(batch, rollouts)._replace(log_prob=scored, log_w=jnp.where(closed, log_w, -jnp.inf))


@functools.partial(jax.jit, static_argnames="proposal")
def _figures(log_w: Array, ratio: Array, log_p_without: Array, proposal: str) -> tuple[Array, dict[str, Array]]:
    """Computes log ρ [P, M] and what to log."""
    figures = objectives.proposal_figures(log_w, ratio, log_p_without, proposal)
    return objectives.log_importance(ratio, proposal), figures


def restating_advice(metrics: Mapping[str, float]) -> str:
    """Returns where to look if a step's hinted rationales merely restate the answer; else ""."""
    answer_gain, gain = (metrics.get(f"train/hinted_{name}", np.nan) for name in ("answer_gain", "gain"))
    if not objectives.restates_answer(answer_gain, gain):
        return ""
    return (
        f"hinted rationales merely restate the answer: after them it is {answer_gain:.1f} nats likelier than at once, "
        f"but the plain prompt makes them so unlikely that rationale and answer together are {-gain:.1f} nats less "
        "likely; read some in rollouts/, and try config.proposal.template in other words, or config.proposal.name=prior"
    )
