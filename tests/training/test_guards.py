"""Guards in whole runs: updates that are not finite, and collapse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.checkpoints import saved_state
from tests.support.rollouts import ARCH, PARAMS, coefficients, sample
from tests.support.runs import small
from tsallis_rl.report.summary import summary
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_directory import RunDirectory
from tsallis_rl.training.learner import update
from tsallis_rl.training.loop import train
from tsallis_rl.training.optimizer import make_optimizer, start_state
from tsallis_rl.training.packing import one_row_each


@functools.cache
def compiled(learning_rate: float):
    """An optimiser, and an update by it."""
    config = small().optimizer
    config.learning_rate = learning_rate
    optimizer = make_optimizer(config, 10)
    return optimizer, jax.jit(functools.partial(update, arch=ARCH, optimizer=optimizer))


@pytest.mark.parametrize("broken", ["coefficient", "weight", "update", "nothing"])
def test_an_update_that_is_not_finite_changes_nothing(broken):
    optimizer, step = compiled(1e39 if broken == "update" else 1e-3)  # infinite in float32
    rollouts = sample(num_rollouts=3)
    weights = coefficients(rollouts.log_w.shape)
    params = PARAMS
    if broken == "coefficient":
        weights = weights._replace(score=weights.score.at[1, 2].set(jnp.nan))
    if broken == "weight":
        params = PARAMS | {"embed": PARAMS["embed"].at[0, 0].set(jnp.inf)}
    before = start_state(params, optimizer)
    after, metrics = step(before, one_row_each(rollouts, weights))
    same = [np.array_equal(x, y) for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]
    assert metrics["skipped"] == (broken != "nothing")
    assert all(same) if broken != "nothing" else not any(same[: len(jax.tree.leaves(params))])


def test_a_run_of_updates_left_out_stops_and_keeps_the_checkpoint_from_before(tmp_path, capfd):
    config = small(optimizer__learning_rate=1e39, guards__max_skipped=3)
    with pytest.raises(UserError, match=r"steps 0 to 2: .*not finite.*examples of the last: \S+, .*from before"):
        train(config, tmp_path)
    records = RunDirectory(tmp_path, config).records()
    assert [len(r["skipped_examples"]) for r in records if r.get("train/skipped")] == [4, 4, 4]
    told = capfd.readouterr().err
    assert told.count("WARNING: step 0: the update is left out") == told.count("update is left out") == 1
    assert "3 of 3 updates were left out, the first at step 0: a loss, gradient or parameter was" in summary(records)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest == 2
    assert not (tmp_path / "owner.lock").read_text()


def test_a_collapse_goes_back_to_the_best_checkpoint(tmp_path):
    config = small(
        "estimator=sft,start=warm", base__steps=0, optimizer__learning_rate=100.0, rollouts__max_rationale=30
    )
    config.evaluate.rationale = "sampled"  # of which fewer then close by themselves
    config.update_from_flattened_dict({"guards.on_collapse": "best", "guards.collapse_share": 0.2, "evaluate.every": 4})
    records = train(config, tmp_path)
    assert [record["step"] for record in records if "guard/collapse" in record] == [4]
    before, after = (saved_state(tmp_path, step) for step in (0, 4))
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x, y)
