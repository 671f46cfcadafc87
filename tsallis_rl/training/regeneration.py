"""Regenerates one rollout of a run, alone, from the nearest sound checkpoint before its step."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tsallis_rl.config.saved import run_config
from tsallis_rl.models.sharding import fit_mesh, prompt_shards
from tsallis_rl.runs.checkpoints import Checkpoints, read_chosen
from tsallis_rl.runs.errors import UserError, as_name, visible
from tsallis_rl.runs.fingerprints import other_code, other_inputs
from tsallis_rl.runs.paths import plain_number
from tsallis_rl.tasks.markers import other_markers
from tsallis_rl.training.checks import check
from tsallis_rl.training.control import (
    ControlState,
    after_evaluation,
    after_step,
    control_from_dict,
    evaluation_is_due,
    initial_control,
)
from tsallis_rl.training.earlier_run import find_origin
from tsallis_rl.training.inputs import inputs, own_code
from tsallis_rl.training.micro_batches import device_limit, fit_memory
from tsallis_rl.training.optimizer import State
from tsallis_rl.training.setup import Setup, initial_state, prepare, saved_state
from tsallis_rl.training.step import TrainingStep


def regenerate(folder: Path, step: int, example: str | int, rollout: int) -> dict[str, Any]:
    """Samples a rollout of a run again; returns its record, as in the run's rollouts/.

    Args:
      folder: of the run.
      step: updates made before it.
      example: its id; or, if none has that id, its position in the step's batch and further ones.
      rollout: which of the group.

    Raises:
      UserError: there is no such run or rollout, or the run went back to its best checkpoint in between.
    """
    config = run_config(folder, "--run")
    for flag, limit, given in (("step", config.train.steps, step), ("rollout", config.rollouts.num_rollouts, rollout)):
        if not 0 <= given < limit:
            raise UserError(f"--{flag}={given}: the run has {limit}, counted from 0")
    _fit_devices(config)
    setup = prepare(config)
    if other := other_markers(setup.markers, setup.tokenizer, folder):
        raise UserError(f"{other}; put the model's files back, or the rollout is another one")
    if other := other_inputs(inputs(setup), folder):
        raise UserError(f"{folder}: no rollout can be made again here {other}, or it is another one")
    if other := other_code(own_code(setup), folder):
        print(f"WARNING: {folder}: {other}; the rollout may be another one", file=sys.stderr)
    setup = fit_memory(setup, device_limit(), folder, writes=False)
    start, state, control = _last_checkpoint(folder, setup, step)
    one_step = TrainingStep(setup, state)
    ids = [setup.splits["train"].examples[i].id for i in one_step.batches(step).ravel()]
    place = position(ids, example, step)
    for at in range(start, step + 1):
        control = _evaluated(setup, state, control, at)
        if at < step:
            output = one_step(state, at, control)
            state, control = output.state, after_step(control, config, at, output.measured)
    if config.proposal.name == "prior":
        shards = prompt_shards(setup.mesh.shape)  # over which prompts are split: each computes it
        positions, row = np.full(shards, place), rollout
    else:  # scores have the same bits only by the step's own programs
        positions, row = np.arange(config.train.prompts), place * config.rollouts.num_rollouts + rollout
    weighed = one_step.sample_and_weigh(state, step, positions, control)
    return one_step.transcript(weighed, step, np.arange(row // config.rollouts.num_rollouts + 1), control)[row]


def _fit_devices(config: ConfigDict) -> None:
    """Splits prompts over all devices if the run's mesh does not fit them.

    Raises:
      UserError: they do not share the run's prompts equally.
    """
    if not fit_mesh(config.mesh, devices := jax.device_count()):
        return
    try:
        check(config, devices)
    except UserError as error:
        raise UserError(
            f"--run: {error}; show this command as many devices as the run had, or one (CUDA_VISIBLE_DEVICES=0)"
        ) from error


def position(ids: Sequence[str], example: str | int, step: int) -> int:
    """Finds an example in a step's batch, by its id or else by its position, which is then printed.

    Args:
      ids: of the batch, in order.
      example: the id or the position, as --example gives it.
      step: of the batch.

    Raises:
      UserError: the batch does not have it, or has two of that id.
    """
    places = [i for i, id in enumerate(ids) if isinstance(example, str) and example in (id, visible(id))]
    last = len(ids) - 1
    if len(places) > 1:
        raise UserError(
            f"--example={example}: step {step} trained on it {len(places)} times; give its place from 0 to {last}"
        )
    place = places[0] if places else plain_number(str(example))
    if place is None or place >= len(ids):
        listed = ", ".join(map(as_name, ids[:4])) + ", …" * (len(ids) > 4)
        raise UserError(
            f"--example={as_name(str(example))}: step {step} trained on {listed}; give one of its ids, as the page of "
            f"its rollouts has them, or a place from 0 to {last}"
        )
    if isinstance(example, str) and not places:
        print(
            f"--example={example}: step {step} trained on no example of this id; at place {place} of its batch is "
            f"{as_name(ids[place])}",
            file=sys.stderr,
        )
    return place


def _last_checkpoint(folder: Path, setup: Setup, step: int) -> tuple[int, State, ControlState]:
    """Restores the newest sound checkpoint of `step` or before; makes the initial state if there is none."""

    def choose(checkpoints: Checkpoints) -> int | None:
        return max((saved for saved in checkpoints.sound_steps if saved <= step), default=None)

    def read(checkpoints: Checkpoints, start: int | None) -> tuple[int, State, ControlState] | None:
        if start is None:
            return None
        return start, saved_state(setup, checkpoints, start), control_from_dict(checkpoints.control(start))

    if found := read_chosen(folder / "checkpoints", choose, read):
        return found
    origin = find_origin(setup.config.train.init, folder)
    return 0, initial_state(setup, origin), initial_control(setup.config)


def _evaluated(setup: Setup, state: State, control: ControlState, step: int) -> ControlState:
    """Evaluates if the run did here and a guard could have acted on it; returns the run's control after that.

    Raises:
      UserError: the run went back to its best checkpoint here, which is not kept.
    """
    config = setup.config
    if config.guards.on_collapse == "say" or not evaluation_is_due(control, config, step):
        return control
    scores = setup.validate(state).scores
    control, fallen = after_evaluation(control, config, step, scores)
    if fallen and config.guards.on_collapse == "best":
        raise UserError(f"--step: at step {step} the run went back to a checkpoint that is not kept ({fallen})")
    return control
