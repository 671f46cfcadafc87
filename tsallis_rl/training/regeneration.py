"""Regenerates one rollout of a run, alone, from the nearest sound checkpoint before its step."""

from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tsallis_rl.config.saved import run_config
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.markers import other_markers
from tsallis_rl.training.control import (
    ControlState,
    after_evaluation,
    after_step,
    control_from_dict,
    evaluation_is_due,
    initial_control,
)
from tsallis_rl.training.earlier_run import find_origin
from tsallis_rl.training.inputs import inputs, other_inputs
from tsallis_rl.training.micro_batches import device_limit, fit_update
from tsallis_rl.training.optimizer import State
from tsallis_rl.training.setup import Setup, initial_state, prepare, saved_state
from tsallis_rl.training.step import TrainingStep


def regenerate(folder: Path, step: int, example: int, rollout: int) -> dict[str, Any]:
    """Samples a rollout of a run again; returns its record, as in the run's rollouts/.

    Args:
      folder: of the run.
      step: updates made before it.
      example: its position in the step's batch; with config.train.refill the `position` that its record has.
      rollout: which of the group.

    Raises:
      UserError: there is no such run or rollout, or the run went back to its best checkpoint in between.
    """
    config = run_config(folder, "--run")
    limits = {"step": config.train.steps, "example": _positions(config), "rollout": config.rollouts.num_rollouts}
    for (flag, limit), given in zip(limits.items(), (step, example, rollout), strict=True):
        if not 0 <= given < limit:
            raise UserError(f"--{flag}={given}: the run has {limit}, counted from 0")
    config.mesh.update({"data": 0, "fsdp": 1, "tensor": 1})
    setup = prepare(config)
    if other := other_markers(setup.markers, setup.tokenizer, folder):
        raise UserError(f"{other}; put the model's files back, or the rollout is another one")
    if other := other_inputs(inputs(setup), folder):
        raise UserError(f"{other}, or the rollout is another one")
    setup = fit_update(setup, device_limit(), folder, writes=False)
    start, state, control = _last_checkpoint(folder, setup, step)
    one_step = TrainingStep(setup, state)
    for at in range(start, step + 1):
        control = _evaluated(setup, state, control, at)
        if at < step:
            output = one_step(state, at, control)
            state, control = output.state, after_step(control, config, at, output.measured)
    if config.proposal.name == "prior":
        positions, row = np.full(jax.device_count(), example), rollout  # prompts are split: every device computes it
    else:  # whose scores have the same bits by the step's own programs alone
        positions, row = np.arange(config.train.prompts), example * config.rollouts.num_rollouts + rollout
    if (there := one_step.batches(step).size) <= example:
        raise UserError(f"--example={example}: step {step} of the run has {there}, counted from 0")
    weighed = one_step.sample_and_weigh(state, step, positions, control)
    return one_step.transcript(weighed, step, np.arange(row // config.rollouts.num_rollouts + 1), control)[row]


def _positions(config: ConfigDict) -> int:
    """Counts the positions that a step may have, those of its further batches included."""
    return config.train.prompts * (1 + config.train.refill)


def _last_checkpoint(folder: Path, setup: Setup, step: int) -> tuple[int, State, ControlState]:
    """Restores the newest sound checkpoint of `step` or before; begins anew where there is none."""
    with closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        start = max((saved for saved in checkpoints.sound_steps if saved <= step), default=None)
        if start is not None:
            return start, saved_state(setup, checkpoints, start), control_from_dict(checkpoints.control(start))
    origin = find_origin(setup.config.train.init, folder)
    return 0, initial_state(setup, origin), initial_control(setup.config)


def _evaluated(setup: Setup, state: State, control: ControlState, step: int) -> ControlState:
    """Evaluates where the run did and a guard could have acted on it; returns control as the run had it after that.

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
