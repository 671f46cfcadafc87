"""Several right answers: log w as the sum over the gold answer and its aliases (docs/method.md §10).

Rollouts are sampled and scored with the gold answer. Each alias is then put in its place and scored by a forward pass.
Answers include their end, so they are disjoint events: log w is the logsumexp. Its gradient is the sum of the answers'
log-likelihood gradients, each times the answer's share. One answer is therefore drawn for each rollout by these shares,
and the rollout's path is that answer's.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl.models.sharding import shard_prompts
from tsallis_rl.sampler.keys import ALIAS, example_keys
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.tasks.encoding import encode_aliases
from tsallis_rl.training.setup import Setup


def with_aliases(
    rollouts: Rollouts, params: dict, setup: Setup, step: int, positions: np.ndarray, indices: np.ndarray
) -> Rollouts:
    """Adds the likelihoods of aliases to log w [P, M], and draws the answer that each rollout holds.

    Args:
      rollouts: [P, M, …] with the gold answers of the training examples `indices`.
      params: that sampled them.
      setup: of the run.
      step: updates made so far.
      positions: [P] of the examples in the step's batch.
      indices: [P] of the examples in the split.
    """
    train = setup.splits["train"]
    encoded = [encode_aliases(train, i, setup.tokenizer, setup.markers) for i in indices]
    keys = example_keys(setup.config.seed, ALIAS, step, positions)
    found = rollouts
    for count in range(max(map(len, encoded))):
        ids, length = _padded([aliases[count] if count < len(aliases) else [] for aliases in encoded], train.max_answer)
        ids, length = (shard_prompts(setup.mesh, x) for x in (ids, length))
        other = with_answer(rollouts, ids, length)
        log_prob = setup.rescore(params, other, answers=True)
        found = draw(found, other, log_prob, jax.vmap(jax.random.fold_in, (0, None))(keys, count))
    return found


def _padded(rows: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows of ids [P] with zeros: → ids [P, width] and lengths [P]."""
    ids = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.array([len(row) for row in rows], np.int32)


@jax.jit
def with_answer(rollouts: Rollouts, ids: Array, length: Array) -> Rollouts:
    """Puts other answers after the rationales: rollouts [P, M, T], ids [P, A], length [P] → [P, M, T].

    A rollout whose rationale never closed gets none. log_prob of the answer and log_w stay unchanged.
    """
    offset = jnp.arange(rollouts.targets.shape[-1]) - rollouts.answer_start[..., None]

    def at(offset: Array, old: Array) -> Array:
        inside = (offset >= 0) & (offset < length[:, None, None])
        new = jnp.take_along_axis(ids[:, None], jnp.clip(offset, 0, ids.shape[1] - 1), axis=2)
        return jnp.where(inside, new, old)

    return rollouts._replace(
        inputs=at(offset - 1, rollouts.inputs),
        targets=at(offset, rollouts.targets),
        answer_length=jnp.where(rollouts.answer_length > 0, length[:, None], 0),
    )


@jax.jit
def draw(found: Rollouts, other: Rollouts, log_prob: Array, keys: Array) -> Rollouts:
    """Adds w of other answers to the sum so far, and draws each of these answers with its share of the sum.

    When all answers are added in turn, each is drawn with its share of the whole sum.

    Args:
      found: [P, M, T], whose log_w is the sum so far.
      other: [P, M, T] the same rollouts with other answers.
      log_prob: [P, M, T] of their targets.
      keys: [P] typed keys.
    """
    mask = other.path_mask
    log_w = jnp.where(other.answer_length > 0, jnp.where(mask, log_prob, 0.0).sum(-1), -jnp.inf)
    total = jnp.logaddexp(found.log_w, log_w)
    share = jnp.where(total > -jnp.inf, jnp.exp(log_w - jnp.where(total > -jnp.inf, total, 0.0)), 0.0)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, share.shape[1:]))(keys)
    taken = (uniform < share)[..., None]
    return found._replace(
        inputs=jnp.where(taken, other.inputs, found.inputs),
        targets=jnp.where(taken, other.targets, found.targets),
        log_prob=jnp.where(
            taken, jnp.where(mask, log_prob, jnp.where(found.score_mask, found.log_prob, 0.0)), found.log_prob
        ),
        answer_length=jnp.where(taken[..., 0], other.answer_length, found.answer_length),
        log_w=total,
    )
