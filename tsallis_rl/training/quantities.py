"""Computes the quantities of rollouts that estimators declare besides log_w: one function a name, [P, M] each."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl.models.sharding import shard_prompts, to_host
from tsallis_rl.objectives import HISTORIES
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.sampler.sampler import score_without_rationale
from tsallis_rl.training.optimizer import State
from tsallis_rl.training.setup import Setup

# Names of quantities in a run's saved rollouts, where they differ.
COLUMNS = {"rewards": "reward", "lengths": "length"}


class Sources(NamedTuple):
    """Rollouts, and what else quantities are computed from.

    Attributes:
      rollouts: [P, M, …].
      reward: grades the sampled answers of rollouts → [P, M].
      batch: makes the batch of the prompts, for the quantities that read it.
      state: parameters that sampled the rollouts, and the references held beside them.
      setup: of the run.
    """

    rollouts: Rollouts
    reward: Callable[[Rollouts], Array]
    batch: Callable[[], PromptBatch]
    state: State
    setup: Setup


QUANTITIES: dict[str, Callable[[Sources], Array]] = {
    "rewards": lambda sources: sources.reward(sources.rollouts),
    "lengths": lambda sources: _scored_lengths(sources.rollouts),
    "rationale_length": lambda sources: sources.rollouts.rationale_length,
    "gold_length": lambda sources: _per_rollout(sources.batch().gold_length, sources.rollouts),
    "gold_prob": lambda sources: _gold_prob(sources.rollouts),
    "gold_prob_without": lambda sources: _gold_prob_without(sources),
    "log_ratio": lambda sources: to_reference(sources.rollouts, sources.state, sources.setup),
}


def collect(names: Collection[str], sources: Sources, histories: Mapping[str, Sequence]) -> dict[str, Array]:
    """Computes the quantities `names`, and those that they are made from: name → [P, M].

    Args:
      names: of QUANTITIES, and of HISTORIES, which are made from others.
      sources: what they are computed from.
      histories: name → its history over earlier batches; absent if there were none.
    """
    kept = [name for name in names if name in HISTORIES]
    names = dict.fromkeys([*names, *(other for name in kept for other in HISTORIES[name].needs)])
    found = {name: QUANTITIES[name](sources) for name in names if name in QUANTITIES}
    on_host = to_host(found) if kept else {}
    read = {name: HISTORIES[name].read(histories.get(name, ()), on_host) for name in kept}
    return found | {name: shard_prompts(sources.setup.mesh, x.astype(np.float32)) for name, x in read.items()}


def to_reference(rollouts: Rollouts, state: State, setup: Setup, *, answers: bool = False) -> Array:
    """Computes log p − log p_ref of the rationales, under config.regularizer.reference: [P, M, …] → [P, M].

    Args:
      rollouts: [P, M, …].
      state: which holds the reference.
      setup: of the run.
      answers: sum over the answers' tokens as well.
    """
    reference = state.references[setup.config.regularizer.reference]
    return setup.log_ratio(state.params, rollouts, reference=reference, answers=answers)


@jax.jit
def _gold_prob(rollouts: Rollouts) -> Array:
    """Averages the probabilities of the gold answer's tokens after each rationale; 0 if none was read: → [P, M]."""
    mask = rollouts.path_mask
    return jnp.where(mask, jnp.exp(rollouts.log_prob), 0.0).sum(-1) / jnp.maximum(mask.sum(-1), 1)


def _gold_prob_without(sources: Sources) -> Array:
    """Averages the probabilities of the gold answer's tokens if thinking is closed at once: → [P, M]."""
    setup = sources.setup
    found = score_without_rationale(
        sources.state.params,
        sources.batch(),
        setup.sampling.rules,
        setup.arch,
        at_once=setup.config.rollouts.at_once,
        mean_probability=True,
    )
    return _per_rollout(found, sources.rollouts)


def _per_rollout(x: Array, rollouts: Rollouts) -> Array:
    """Repeats the values of prompts [P] for their rollouts: → [P, M]."""
    return jnp.broadcast_to(jnp.asarray(x)[:, None], rollouts.log_w.shape)


def _scored_lengths(rollouts: Rollouts) -> Array:
    """Counts the tokens that score and path coefficients multiply: rollouts [P, M, T] → [P, M]."""
    return (rollouts.score_mask | rollouts.path_mask).sum(-1)
