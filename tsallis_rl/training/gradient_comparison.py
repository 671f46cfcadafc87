"""Shadow estimators: what every estimator would have made of the same rollouts, and how good it would have been.

A shadow is named NAME@Q: an estimator, at commitment Q if it takes one, held against ∇ℓ_Q. Its gradient is the
learner's own, from its own coefficients, so that training goes on as if nobody had looked. The reference for ∇ℓ_Q is
the plug-in estimator from many more rollouts of the same prompts.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from ml_collections import ConfigDict

from tsallis_rl import objectives
from tsallis_rl.models import Architecture, lora
from tsallis_rl.objectives import Coefficients
from tsallis_rl.runs.errors import UserError
from tsallis_rl.sampler.record import ESTIMATOR, TRAIN, Group, Rollouts, Sampling, address
from tsallis_rl.sampler.sampler import roll_out
from tsallis_rl.training.learner import gradient
from tsallis_rl.training.packing import Streams, streams

REFERENCE = ESTIMATOR + 1  # the first of the reference's streams of randomness


class Moments(NamedTuple):
    """Of the gradients g_p that the prompts of a batch contribute.

    Attributes:
      mean: their mean, shaped like what is trained, divided by `scale`.
      square: the mean of ‖g_p‖², divided by scale².
      scale: the largest coefficient, taken out so that squares of tiny gradients do not underflow.
    """

    mean: dict
    square: Array
    scale: Array


@functools.partial(jax.jit, static_argnames="arch")
def moments(params: dict, rollouts: Rollouts, coefficients: Coefficients, *, arch: Architecture) -> Moments:
    """Moments over the P prompts of rollouts and coefficients [P, M, …], one prompt at a time."""
    scale = jnp.maximum(jnp.abs(coefficients.score).max(), jnp.abs(coefficients.path).max())
    coefficients = jax.tree.map(lambda x: x / jnp.where(scale > 0, scale, 1.0), coefficients)

    def one_prompt(total: tuple, inputs: Streams) -> tuple[tuple, None]:
        grads, measured = gradient(params, jax.tree.map(lambda x: x[None], inputs), arch=arch)
        return (jax.tree.map(jnp.add, total[0], grads), total[1] + measured["grad_norm"] ** 2), None

    zeros = (jax.tree.map(jnp.zeros_like, lora.trained(params)), jnp.float32(0))
    total, _ = jax.lax.scan(one_prompt, zeros, streams(rollouts, coefficients))
    mean, square = jax.tree.map(lambda x: x / len(rollouts.log_w), total)
    return Moments(mean, square, scale)


class Shadows:
    """The shadows of config.shadow.estimators.

    Raises:
      UserError: a name that is no NAME@Q of an estimator with rationales; a reference that is no multiple of M.
    """

    def __init__(self, config: ConfigDict, arch: Architecture, sampling: Sampling):
        self.config = config
        self.sampling = sampling
        self._roll = functools.partial(
            roll_out, arch=arch, max_rationale=config.rollouts.max_rationale, at_once=config.rollouts.at_once
        )
        self._moments = functools.partial(moments, arch=arch)
        self._plug_in = jax.jit(functools.partial(objectives.garl, baseline="none", normalize=False))
        options = config.estimator.to_dict() | {"normalize": False}
        self._coefficients = jax.jit(
            lambda name, **group: objectives.coefficients(objectives.ESTIMATORS[name], options, **group),
            static_argnums=0,
        )
        self.shadows = {name: self._parse(name) for name in config.shadow.estimators}
        m = config.rollouts.num_rollouts
        if config.shadow.reference_rollouts % m or not config.shadow.reference_rollouts:
            raise UserError(
                f"config.shadow.reference_rollouts={config.shadow.reference_rollouts} is not a multiple of "
                f"config.rollouts.num_rollouts={m}"
            )

    def _parse(self, shadow: str) -> tuple[objectives.Estimator, float]:
        """The estimator and the commitment of NAME@Q."""
        name, _, text = shadow.partition("@")
        row = objectives.ESTIMATORS.get(name)
        try:
            q = float(text)
        except ValueError:
            q = -1.0
        if row is None or not row.rationale or not 0 <= q <= 1:
            names = ", ".join(name for name, row in objectives.ESTIMATORS.items() if row.rationale)
            raise UserError(f"config.shadow.estimators: {shadow!r} is not NAME@Q with Q in [0, 1] and NAME of {names}")
        objectives.check({"name": name, "q": q}, self.config.rollouts.num_rollouts)
        return row, q

    def __call__(
        self, params: dict, group: Group, step: int, reward: Callable[[Rollouts], Array]
    ) -> dict[str, float | None]:
        """Measures every shadow on the rollouts that step `step` trains on.

        Args:
          params: of the decoder, before the step's update.
          group: the step's prompts.
          step: updates made so far.
          reward: rollouts with sampled answers -> [P, M], for the estimators that need rewards.

        Returns:
          For each shadow a: shadow/a/cosine to its reference; /norm_ratio to it; /variance, of a prompt's gradient
          relative to the squared norm of the mean, tr Σ/‖ḡ‖²; and shadow/a/cosine/b for each later b. None where a
          gradient is zero, and for the variance of a single prompt.
        """
        seed, m, prompts = self.config.seed, self.config.rollouts.num_rollouts, np.arange(len(group.prompt))

        def roll(stream: int, max_answer: int = 0) -> Rollouts:
            keys = address(seed, stream, step, prompts)
            return self._roll(params, group, keys, self.sampling, num_rollouts=m, max_answer=max_answer)

        rollouts = {"gold": roll(TRAIN)}
        if any(row.answer == "sampled" for row, _ in self.shadows.values()):
            rollouts["sampled"] = roll(TRAIN, self.config.task.max_answer)
        rewards = reward(rollouts["sampled"]) if "sampled" in rollouts else None
        keys = address(seed, ESTIMATOR, step, prompts)

        def shadow(row: objectives.Estimator, q: float) -> Moments:
            rolled = rollouts[row.answer]
            weights = self._coefficients(row.name, key=keys, log_w=rolled.log_w, rewards=rewards, q=jnp.float32(q))
            return self._moments(params, rolled, weights)

        many = _side_by_side([roll(REFERENCE + k) for k in range(self.config.shadow.reference_rollouts // m)])
        references = {
            q: self._moments(params, many, self._plug_in(many.log_w, jnp.float32(q)))
            for q in {q for _, q in self.shadows.values()}
        }
        found = {name: shadow(*row_and_q) for name, row_and_q in self.shadows.items()}
        return compare(found, {name: references[q] for name, (_, q) in self.shadows.items()}, len(prompts))


def compare(found: Mapping[str, Moments], references: Mapping[str, Moments], prompts: int) -> dict[str, float | None]:
    """The metrics of `Shadows.__call__`, from each shadow's moments and its reference's, both over so many prompts."""
    metrics: dict[str, float | None] = {}
    for name, own in found.items():
        reference = references[name]
        norm, of_reference = _norm(own), _norm(reference)
        ratio = float(own.scale) * norm / (float(reference.scale) * of_reference) if of_reference else None
        variance = None  # of one prompt nothing is known
        if norm and prompts > 1:
            variance = (float(own.square) - norm**2) * prompts / (prompts - 1) / norm**2
        metrics |= {
            f"shadow/{name}/cosine": _cosine(own, reference),
            f"shadow/{name}/norm_ratio": ratio,
            f"shadow/{name}/variance": variance,
        }
    for (a, one), (b, another) in itertools.combinations(found.items(), 2):
        metrics[f"shadow/{a}/cosine/{b}"] = _cosine(one, another)
    return metrics


_dot = jax.jit(optax.tree.vdot)


def _norm(of: Moments) -> float:
    return float(_dot(of.mean, of.mean)) ** 0.5


def _cosine(a: Moments, b: Moments) -> float | None:
    norms = _norm(a) * _norm(b)
    return float(_dot(a.mean, b.mean)) / norms if norms else None


def _side_by_side(chunks: list[Rollouts]) -> Rollouts:
    """Several rollouts [P, M, …] of the same prompts as one [P, ΣM, …]."""
    prompt = chunks[0][:2]
    return Rollouts(
        *prompt, *(jnp.concatenate(arrays, axis=1) for arrays in zip(*(c[2:] for c in chunks), strict=True))
    )
