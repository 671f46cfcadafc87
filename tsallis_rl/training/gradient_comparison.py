"""Compares gradients: what other estimators would have made of the same rollouts, and how good it would have been.

A compared estimator is named NAME@Q: an estimator, at commitment Q if it takes one, compared with ∇ℓ_Q. The learner
computes its gradient from its own coefficients, without what config.regularizer adds; training is not affected. The
reference for ∇ℓ_Q is the plug-in estimator from many more rollouts of the same prompts.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from ml_collections import ConfigDict

from tsallis_rl import objectives
from tsallis_rl.models import Architecture, lora
from tsallis_rl.runs.errors import UserError
from tsallis_rl.sampler import RolloutShape, roll_out
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.keys import ESTIMATOR, REFERENCE, TRAIN, example_keys
from tsallis_rl.sampler.record import Rollouts, concatenate_rollouts
from tsallis_rl.sampler.rules import Rules
from tsallis_rl.sampler.sampling_settings import Sampling
from tsallis_rl.training.learner import WHOLE, gradient
from tsallis_rl.training.packing import PackedRows, Slices, one_row_each
from tsallis_rl.training.weighed import WeighedRollouts

_ROUNDING = 1e-5  # of a sum of many squares in float32, as a share of it


class Moments(NamedTuple):
    """Moments of the gradients g_p that the prompts of a batch contribute.

    Attributes:
      mean: their mean, shaped like the trained parameters, divided by `scale`.
      square: the mean of ‖g_p‖², divided by scale².
      scale: the largest coefficient, taken out so that squares of tiny gradients do not underflow.
    """

    mean: dict
    square: Array
    scale: Array


@functools.partial(jax.jit, static_argnames=("arch", "slices"))
def moments(
    params: dict,
    weighed: WeighedRollouts,
    rules: Rules | None = None,
    *,
    arch: Architecture,
    slices: Slices = WHOLE,
) -> Moments:
    """Computes the moments over the P prompts of weighed rollouts [P, M, …], one prompt at a time.

    Args:
      params: the decoder's parameters.
      weighed: [P, M, …].
      rules: see `packing.one_row_each`.
      arch: the decoder's architecture.
      slices: in which a prompt is computed.
    """
    coefficients = weighed.coefficients
    scale = jnp.maximum(jnp.abs(coefficients.score).max(), jnp.abs(coefficients.path).max())
    coefficients = jax.tree.map(lambda x: x / jnp.where(scale > 0, scale, 1.0), coefficients)

    def one_prompt(total: tuple, rows: PackedRows) -> tuple[tuple, None]:
        grads, measured = gradient(params, jax.tree.map(lambda x: x[None], rows), arch=arch, slices=slices)
        return (jax.tree.map(jnp.add, total[0], grads), total[1] + measured["grad_norm"] ** 2), None

    zeros = (jax.tree.map(jnp.zeros_like, lora.trained(params)), jnp.float32(0))
    total, _ = jax.lax.scan(one_prompt, zeros, one_row_each(weighed.rollouts, coefficients, rules))
    mean, square = jax.tree.map(lambda x: x / len(weighed.rollouts.log_w), total)
    return Moments(mean, square, scale)


class GradientComparison:
    """The comparison of the estimators in config.shadow.estimators.

    Raises:
      UserError: a name is not NAME@Q of an estimator with rationales, or the reference's rollouts no multiple of M.
    """

    def __init__(self, config: ConfigDict, arch: Architecture, sampling: Sampling):
        self.config = config
        self.sampling = sampling
        self._shape = RolloutShape(arch, config.rollouts.num_rollouts, config.rollouts.max_rationale)
        # Of a prompt's rollouts, which are many in the reference, no more at a time than in an update.
        slices = Slices(micro_rollouts=config.train.micro_rollouts or config.rollouts.num_rollouts)
        self._moments = functools.partial(moments, arch=arch, slices=slices)
        self._plug_in = jax.jit(functools.partial(objectives.garl, baseline="none", normalize=False))
        options = config.estimator.to_dict() | {"commitment": "power", "normalize": False}
        self._coefficients = jax.jit(
            lambda name, group: objectives.coefficients(objectives.ESTIMATORS[name], options, group),
            static_argnums=0,
        )
        self.compared = {name: self._parse(name) for name in config.shadow.estimators}
        m = config.rollouts.num_rollouts
        if config.shadow.reference_rollouts % m or not config.shadow.reference_rollouts:
            raise UserError(
                f"config.shadow.reference_rollouts={config.shadow.reference_rollouts} is not a multiple of "
                f"config.rollouts.num_rollouts={m}"
            )

    def _parse(self, compared: str) -> tuple[objectives.Estimator, float]:
        """Reads the estimator and the commitment of NAME@Q."""
        row, q = objectives.estimator_at(compared) or (None, None)
        if row is None or q is None or not row.rationale:
            names = ", ".join(name for name, row in objectives.ESTIMATORS.items() if row.rationale)
            raise UserError(
                f"config.shadow.estimators: {compared!r} is not NAME@Q with Q in [0, 1] and NAME of {names}"
            )
        if kept := [quantity for quantity in row.quantities if quantity in objectives.HISTORIES]:
            raise UserError(
                f"config.shadow.estimators: {compared!r} needs {kept[0]}, which earlier batches decide and only a run "
                f"of {row.name} itself keeps; leave it out"
            )
        settings = self.config.estimator.to_dict()
        objectives.check(
            settings | {"name": row.name, "q": q, "commitment": "power"}, self.config.rollouts.num_rollouts
        )
        return row, q

    def __call__(
        self,
        params: dict,
        batch: PromptBatch,
        step: int,
        quantities: Callable[[Rollouts, Collection[str]], Mapping[str, Array]],
    ) -> dict[str, float | None]:
        """Measures every compared estimator on the rollouts that step `step` trains on.

        Args:
          params: of the decoder, before the step's update.
          batch: the step's prompts.
          step: updates made so far.
          quantities: rollouts and names -> what the compared estimators need besides log_w, name: [P, M].

        Returns:
          Metrics. For each compared estimator a: shadow/a/cosine to its reference; /norm_ratio to it; /noise_scale,
          in prompts, see `_noise_scale`; and shadow/a/cosine/b for each later b. None where a gradient is zero.
        """
        seed, positions = self.config.seed, np.arange(len(batch.prompt))

        def sample(purpose: int, shape: RolloutShape = self._shape) -> Rollouts:
            keys, at_once = example_keys(seed, purpose, step, positions), self.config.rollouts.at_once
            return roll_out(params, batch, keys, self.sampling, shape, at_once=at_once).rollouts

        rollouts = {"gold": sample(TRAIN)}
        if any(row.answer == "sampled" for row, _ in self.compared.values()):
            shape = dataclasses.replace(self._shape, max_answer=self.config.task.max_answer)
            rollouts["sampled"] = sample(TRAIN, shape)
        keys = example_keys(seed, ESTIMATOR, step, positions)
        groups = {}
        for answer, found in rollouts.items():
            rows = [row for row, _ in self.compared.values() if row.answer == answer]
            names = dict.fromkeys(name for row in rows for name in row.quantities)
            groups[answer] = {"key": keys, "log_w": found.log_w, **quantities(found, names)}

        def of_estimator(row: objectives.Estimator, q: float) -> Moments:
            of_row = rollouts[row.answer]
            coefficients = self._coefficients(row.name, groups[row.answer] | {"q": jnp.float32(q)})
            return self._moments(params, WeighedRollouts(of_row, coefficients), self.sampling.rules)

        count = self.config.shadow.reference_rollouts // self.config.rollouts.num_rollouts
        many = concatenate_rollouts([sample(REFERENCE + k) for k in range(count)])
        references = {
            q: self._moments(
                params, WeighedRollouts(many, self._plug_in(many.log_w, jnp.float32(q))), self.sampling.rules
            )
            for q in {q for _, q in self.compared.values()}
        }
        found = {name: of_estimator(row, q) for name, (row, q) in self.compared.items()}
        return compare(found, {name: references[q] for name, (_, q) in self.compared.items()}, len(positions))


def compare(found: Mapping[str, Moments], references: Mapping[str, Moments], prompts: int) -> dict[str, float | None]:
    """Computes the metrics of `GradientComparison.__call__` from each estimator's moments and its reference's.

    Args:
      found: NAME@Q -> moments.
      references: NAME@Q -> moments.
      prompts: over which both were taken.
    """
    metrics: dict[str, float | None] = {}
    for name, own in found.items():
        reference = references[name]
        norm, of_reference = _norm(own), _norm(reference)
        ratio = float(own.scale) * norm / (float(reference.scale) * of_reference) if of_reference else None
        metrics |= {
            f"shadow/{name}/cosine": _cosine(own, reference),
            f"shadow/{name}/norm_ratio": ratio,
            f"shadow/{name}/noise_scale": _noise_scale(float(own.square), norm**2, prompts),
        }
    for (a, one), (b, another) in itertools.combinations(found.items(), 2):
        metrics[f"shadow/{a}/cosine/{b}"] = _cosine(one, another)
    return metrics


def _noise_scale(square: float, squared_norm: float, prompts: int) -> float | None:
    """Estimates the gradient noise scale tr Σ/‖E g‖² of arXiv 1812.06162 from one batch; in prompts.

    It is the number of prompts of which the mean gradient is half noise. ‖ḡ‖² exceeds ‖E g‖² by tr Σ/P on average,
    which is subtracted: tr Σ/‖ḡ‖² would be near P whatever the estimator.

    Args:
      square: mean of ‖g_p‖².
      squared_norm: ‖ḡ‖².
      prompts: P.

    Returns:
      None where the batch is too small to tell, that is, all of ‖ḡ‖² may be noise: if one prompt alone has a gradient,
      exactly all.
    """
    if prompts == 1:
        return None
    variance = (square - squared_norm) * prompts / (prompts - 1)
    signal = squared_norm - variance / prompts
    return variance / signal if signal > _ROUNDING * squared_norm else None


_dot = jax.jit(optax.tree.vdot)


def _norm(moments: Moments) -> float:
    """Computes ‖mean‖, divided by `scale` as the mean is."""
    return float(_dot(moments.mean, moments.mean)) ** 0.5


def _cosine(a: Moments, b: Moments) -> float | None:
    """Computes the cosine of two means; None where one is zero."""
    norms = _norm(a) * _norm(b)
    return float(_dot(a.mean, b.mean)) / norms if norms else None
