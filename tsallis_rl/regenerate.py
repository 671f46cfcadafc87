"""One rollout of a run again, alone: python -m tsallis_rl.regenerate --run=runs/finq --step=7 --example=3 --rollout=11

--example is the place in the step's batch. The parameters of the step come from the nearest sound checkpoint before
it, by replaying the steps between (from the base model, where no checkpoint is that old). Prints the rollout as JSON.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from tsallis_rl.runs.errors import UserError, one_sentence
from tsallis_rl.runs.object_store import fetched


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rollout."""
    parser = argparse.ArgumentParser(prog="python -m tsallis_rl.regenerate", allow_abbrev=False)
    parser.add_argument("--run", required=True, help="folder of the run")
    parser.add_argument("--step", type=int, required=True, help="training step")
    parser.add_argument("--example", type=int, required=True, help="place in the step's batch, from 0")
    parser.add_argument("--rollout", type=int, required=True, help="which of the group, from 0")
    given = parser.parse_args(arguments)
    logging.set_verbosity(logging.WARNING)
    with one_sentence():
        row = regenerate(fetched(given.run), given.step, given.example, given.rollout)
        print(json.dumps(row, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
