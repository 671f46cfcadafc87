"""Regenerates one rollout of a run, alone, from the nearest sound checkpoint before its step."""

from pathlib import Path
from typing import Any

from tsallis_rl.runs.errors import UserError


def regenerate(folder: Path, step: int, example: int, rollout: int) -> dict[str, Any]:
    """The rollout's record, as in the run's rollouts/.

    Raises:
      UserError: there is no such run or rollout, or the run went back to its best checkpoint in between.
    """
    import dataclasses

    import jax
    import numpy as np

    from tsallis_rl.config.saved import run_config
    from tsallis_rl.runs.checkpoints import Checkpoints
    from tsallis_rl.runs.run_directory import RunDirectory
    from tsallis_rl.training import guards
    from tsallis_rl.training.loop import Step, initial_state, prepare

    if not (folder / "config.json").exists():
        raise UserError(f"--run: {folder} is not the folder of a run")
    config = run_config(folder)
    limits = {"step": config.train.steps, "example": config.train.prompts, "rollout": config.rollouts.num_rollouts}
    for (flag, limit), given in zip(limits.items(), (step, example, rollout), strict=True):
        if not 0 <= given < limit:
            raise UserError(f"--{flag}={given}: the run has {limit}, counted from 0")
    records = RunDirectory(folder, config).records()
    config.mesh.update({"data": 0, "fsdp": 1, "tensor": 1})
    setup = prepare(config)
    state = initial_state(setup)
    checkpoints = Checkpoints(folder / "checkpoints")
    sound = checkpoints.sound_steps
    start = max((saved for saved in sound if saved <= step), default=0)
    went_back = [record["step"] for record in records if guards.COLLAPSE in record and start < record["step"] <= step]
    if config.guards.on_collapse == "best" and went_back:
        raise UserError(f"--step={step}: at step {went_back[-1]} the run went back to a checkpoint that is not kept")
    if start in sound:
        state = checkpoints.restore(start, state)
    checkpoints.close()

    train_records = {record["step"]: record for record in records if "train/loss" in record}
    one_step = None
    for at in range(start, step + 1):
        changed = guards.in_force(config, records, at)
        if one_step is None or changed.estimator != one_step.setup.config.estimator:
            one_step = Step(dataclasses.replace(setup, config=changed), state)
        if at < step:
            state = one_step(state, at, train_records.get(at - 1, {}))[0]
    slots = np.full(jax.device_count(), example)  # the mesh splits prompts: every device computes the same one
    rolled = one_step.roll_out(state.params, step, slots, train_records.get(step - 1, {}))[:2]
    return one_step.transcript(step, slots[:1], *rolled, train_records.get(step, {}))[rollout]
