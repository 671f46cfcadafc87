"""The optimiser of config.optimizer, and the state that training carries."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from tsallis_rl.config.schema import FIELDS
from tsallis_rl.models import Architecture, lora, parameter_shapes
from tsallis_rl.models.sharding import state_shardings

START, AVERAGE = "start", "average"  # names of references, as config.regularizer.reference has them


class TrainState(NamedTuple):
    """The state that training carries from step to step.

    Attributes:
      params: the decoder's parameters.
      opt_state: optax's state, of the trained ones.
      step: updates made so far.
    """

    params: dict
    opt_state: optax.OptState
    step: Array

    @property
    def references(self) -> dict[str, dict]:
        """No references are held."""
        return {}


class AnchoredState(NamedTuple):
    """The state of a run that holds references, in whose checkpoints they are kept.

    Not `TrainState` with one more field: orbax would refuse the checkpoints that were saved without it.

    Attributes:
      params, opt_state, step: as in `TrainState`.
      references: START or AVERAGE → parameters that replace those that are trained.
    """

    params: dict
    opt_state: optax.OptState
    step: Array
    references: dict[str, dict]


State = TrainState | AnchoredState


def learning_rate(optimizer: ConfigDict, steps: int) -> optax.Schedule:
    """Makes the schedule: linear warm-up to the peak, then constant, or cosine to zero at the end.

    Step t of a warm-up of w steps has the rate peak · (t + 1)/(w + 1), so that the first is not wasted at 0.

    Raises:
      UserError: an unknown schedule.
    """
    FIELDS["optimizer.schedule"].check("optimizer.schedule", optimizer.schedule)
    return _learning_rate(FrozenConfigDict(optimizer), steps if optimizer.schedule == "cosine" else 0)


@functools.lru_cache(maxsize=64)
def _learning_rate(optimizer: FrozenConfigDict, steps: int) -> optax.Schedule:
    """Makes the schedule once, so that runs with equal settings share programs, which know it by identity."""
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    if optimizer.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / (warmup + 1), peak, warmup), after], [warmup])


def make_optimizer(optimizer: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Makes AdamW, or SGD with momentum and the same decoupled decay, after clipping by the global norm.

    Adam's `eps` decides which gradients are too small to count.

    Raises:
      UserError: an unknown name or schedule.
    """
    FIELDS["optimizer.name"].check("optimizer.name", optimizer.name)
    return _make_optimizer(FrozenConfigDict(optimizer), learning_rate(optimizer, steps))


@functools.lru_cache(maxsize=64)
def _make_optimizer(optimizer: FrozenConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    """Makes the optimiser once, for the reason given in `_learning_rate`."""
    if optimizer.name == "adamw":
        rule = optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps)
    else:
        rule = optax.trace(optimizer.b1)
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip),
        rule,
        optax.add_decayed_weights(optimizer.weight_decay),
        optax.scale_by_learning_rate(rate),
    )


def start_state(
    params: dict, optimizer: optax.GradientTransformation, references: Sequence[str] = (), dtype: str = "float32"
) -> State:
    """Makes the state before the first update; it holds a copy for each of `references`, START's in `dtype`."""
    part = lora.trained(params)
    state = TrainState(params, optimizer.init(part), jnp.int32(0))
    if not references:
        return state
    # Copies: the state's buffers are donated to the update, and none may belong to two arrays.
    held = {
        name: jax.tree.map(lambda x, to=dtype if name == START else None: jnp.array(x, to or x.dtype, copy=True), part)
        for name in references
    }
    return AnchoredState(*state, references=held)


def sharded_start(
    mesh: Mesh,
    params: dict,
    optimizer: optax.GradientTransformation,
    references: Sequence[str] = (),
    dtype: str = "float32",
) -> State:
    """Makes the state before the first update, laid over the mesh; the parameters' buffers become the state's."""
    options = {"optimizer": optimizer, "references": tuple(references), "dtype": dtype}
    shapes = jax.eval_shape(functools.partial(start_state, **options), params)
    start = jax.jit(
        start_state, out_shardings=state_shardings(mesh, shapes), donate_argnums=0, static_argnames=tuple(options)
    )
    return start(params, **options)


def held_shapes(arch: Architecture) -> dict:
    """Returns the shapes and dtypes in which a run holds its parameters."""
    shapes = parameter_shapes(arch)
    if not arch.lora_rank:
        return shapes
    frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, arch.dtype), shapes)
    return lora.replace(frozen, lora.trained(shapes))  # what is not trained has the dtype of the computation


def state_shapes(arch: Architecture, optimizer: optax.GradientTransformation, references: Sequence[str] = ()) -> State:
    """Returns the shapes and dtypes of the state of a run that holds these references."""
    make = functools.partial(start_state, optimizer=optimizer, references=references, dtype=arch.dtype)
    return jax.eval_shape(make, held_shapes(arch))
