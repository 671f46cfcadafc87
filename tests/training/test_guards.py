"""Guards: updates that are not finite, and collapse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.checkpoints import saved_state
from tests.support.rollouts import ARCH, PARAMS, coefficients, sample
from tests.support.runs import small
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_directory import RunDirectory
from tsallis_rl.training import guards
from tsallis_rl.training.learner import make_optimizer, start_state, update
from tsallis_rl.training.loop import train
from tsallis_rl.training.packing import streams


@pytest.mark.parametrize("broken", ["coefficient", "weight", "update", "nothing"])
def test_an_update_that_is_not_finite_changes_nothing(broken):
    config = small().optimizer
    config.learning_rate = 1e39 if broken == "update" else 1e-3  # infinite in float32
    optimizer = make_optimizer(config, 10)
    rollouts = sample(num_rollouts=3)
    weights = coefficients(rollouts.log_w.shape)
    params = PARAMS
    if broken == "coefficient":
        weights = weights._replace(score=weights.score.at[1, 2].set(jnp.nan))
    if broken == "weight":
        params = PARAMS | {"embed": PARAMS["embed"].at[0, 0].set(jnp.inf)}
    before = start_state(params, optimizer)
    step = jax.jit(functools.partial(update, arch=ARCH, optimizer=optimizer))
    after, metrics = step(before, streams(rollouts, weights))
    same = [np.array_equal(x, y) for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]
    assert metrics["skipped"] == (broken != "nothing")
    assert all(same) if broken != "nothing" else not any(same[: len(jax.tree.leaves(params))])


def test_a_run_of_updates_left_out_stops_and_keeps_the_checkpoint_from_before(tmp_path):
    config = small(optimizer__learning_rate=1e39, guards__max_skipped=3)
    with pytest.raises(UserError, match=r"steps 0 to 2: .*not finite.*examples of the last: \S+, .*from before"):
        train(config, tmp_path)
    records = RunDirectory(tmp_path, config).records()
    assert [len(r["skipped_examples"]) for r in records if r.get("train/skipped")] == [4, 4, 4]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest == 2
    assert not (tmp_path / "owner.lock").read_text()


def evaluated(*figures: tuple[float, float]) -> list[dict]:
    names = ("eval/validation/maj@4", "eval/validation/closed_sampled")
    return [
        {"step": step, "eval/validation/pass@1": 0.0} | dict(zip(names, pair, strict=True))
        for step, pair in enumerate(figures)
    ]


def test_a_collapse_is_a_set_share_lost_from_the_best_since_the_last_one():
    config = small()
    assert guards.collapse(config, evaluated((0.8, 1.0), (0.4, 1.0))) is None
    told = guards.collapse(config, evaluated((0.2, 1.0), (0.8, 1.0), (0.39, 1.0)))
    assert told == "eval/validation/maj@4 fell from 0.800 at step 1 to 0.390"
    assert "closed_sampled fell from 1.000 at step 0" in guards.collapse(config, evaluated((0.0, 1.0), (0.0, 0.4)))
    assert guards.collapse(config, evaluated((0.09, 0.0), (0.0, 0.0))) is None
    told_already = [*evaluated((0.8, 1.0), (0.3, 1.0)), {"step": 1, guards.COLLAPSE: "…"}]
    assert guards.collapse(config, told_already + evaluated((0.2, 1.0))) is None
    assert guards.collapse(config, told_already + evaluated((0.1, 1.0)))


def test_a_collapse_changes_the_settings_from_its_step_on():
    records = [{"step": 4, guards.COLLAPSE: "…"}, {"step": 8, guards.COLLAPSE: "…"}]
    lower, paft = small(guards__on_collapse="lower_q"), small(guards__on_collapse="paft")
    assert [guards.in_force(lower, records, step).estimator.q for step in (3, 4, 8)] == [0.75, 0.375, 0.1875]
    assert [guards.in_force(paft, records, step).estimator.name for step in (3, 4)] == ["garl", "paft"]
    assert guards.in_force(small(), records, 9).to_json() == small().to_json()


def test_a_collapse_goes_back_to_the_best_checkpoint(tmp_path):
    config = small(
        "estimator=sft,start=warm", base__steps=0, optimizer__learning_rate=100.0, rollouts__max_rationale=30
    )
    config.update_from_flattened_dict({"guards.on_collapse": "best", "guards.collapse_share": 0.2, "evaluate.every": 4})
    records = train(config, tmp_path)
    assert [record["step"] for record in records if guards.COLLAPSE in record] == [4]
    before, after = (saved_state(tmp_path, step) for step in (0, 4))
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x, y)
