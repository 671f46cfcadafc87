"""Checkpoints by orbax: the best by validation and the latest are kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

UNMEASURED = (-1.0, -1.0)  # the quality of a checkpoint that was saved between evaluations: never the best


def _quality(metrics: Mapping[str, list[float]]) -> tuple[float, ...]:
    return tuple(metrics["quality"])


class Checkpoints:
    """The folder `checkpoints/` of a run. Saving is in the background; `close` waits for it."""

    def __init__(self, folder: Path):
        policies = [
            checkpoint_managers.LatestN(1),
            checkpoint_managers.BestN(get_metric_fn=_quality, reverse=False, n=1),
        ]
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies), best_fn=_quality
            ),
        )

    @property
    def latest(self) -> int | None:
        """The newest complete step, None if there is none."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step with the best quality; of equals the latest."""
        return self._manager.best_step()

    @property
    def steps(self) -> list[int]:
        """The steps that are there."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, quality: tuple[float, ...]) -> None:
        """Starts saving; `quality` is compared from left to right, the step behind it. A step that exists stays."""
        if step not in self._manager.all_steps():
            metrics = {"quality": [*quality, step]}
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=metrics)

    def restore(self, step: int, like: Any) -> Any:
        """The state of `step`, in the tree structure, dtypes and shardings of `like`."""
        self._manager.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))
        return restored["state"]

    def restore_params(self, step: int, like: dict) -> dict:
        """The parameters of `step` alone, into the shapes, dtypes and shardings of `like`; nothing else is read."""
        self._manager.wait_until_finished()
        item = {"params": like}
        restore_args = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        # Not through the manager: one that has saved whole states reads nothing less.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(self._manager.directory / str(step) / "state", args=args)["params"]

    def close(self) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()
