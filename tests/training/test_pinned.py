"""Pins what two steps of training compute, so that no refactoring changes a number unnoticed.

GARL, PAFT and GRPO run on the embedded task from the fixed small base model of tests/data, cold and warm. One prompt is
rolled out at a time. GARL's and PAFT's rationales have up to 130 tokens and uneven lengths, so that finished rows are
retired, and batches are compacted and merged. GRPO's have up to 60, and every rollout keeps its row.

All tokens must be the same; losses, coefficients, gradient norms and log-weights must agree to 1e-6 of their size.
When a change is meant to change them, write the new numbers with

    python -m tests.training.test_pinned

and say in the commit which numbers changed, by how much and why. Another kind of processor may round differently: if
only rounding differs there, numbers differ in their last digits and the tokens are the same up to some step.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from configs import hops
from tests.support.backends import only_on_cpu
from tsallis_rl.training.control import after_step, initial_control
from tsallis_rl.training.optimizer import make_optimizer, start_state
from tsallis_rl.training.setup import prepare
from tsallis_rl.training.step import TrainingStep

DATA = Path(__file__).parents[1] / "data"
BASE_MODEL, PINNED = DATA / "pinned_base_model.npz", DATA / "pinned.json"
STEPS = 2
SETTINGS = {
    "base.steps": 0,
    "task.train_examples": 12,
    "task.validation_examples": 2,
    "task.test_examples": 2,
    "rollouts.num_rollouts": 4,
    "rollouts.max_rationale": 130,
    "rollouts.at_once": 1,
    "train.prompts": 2,
    "train.micro_batch": 1,
    "train.steps": STEPS,
    "optimizer.eps": 1e-4,
}
# GRPO's: too short to retire rows, which takes many more programs, and so many that some are right.
SHORT = {"rollouts.max_rationale": 60, "rollouts.num_rollouts": 8, "train.prompts": 4, "train.micro_batch": 2}
CASES = [f"{estimator}, {start}" for estimator in ("garl", "paft", "grpo") for start in ("cold", "warm")]


def measured(case: str) -> list[dict]:
    """Runs the steps of a case; returns what is pinned of each."""
    estimator, start = case.split(", ")
    config = hops.get_config(f"estimator={estimator},start={start}")
    config.update_from_flattened_dict(SETTINGS | (SHORT if estimator == "grpo" else {}))
    setup = prepare(config)
    arch = dataclasses.replace(setup.arch, width=32, heads=4, kv_heads=2, head_dim=8, ffn=64)
    setup = dataclasses.replace(setup, arch=arch)
    with np.load(BASE_MODEL) as arrays:
        params = unflatten_dict({tuple(name.split("/")): jnp.asarray(x, jnp.float32) for name, x in arrays.items()})
    state = start_state(params, make_optimizer(config.optimizer, config.train.steps))
    one_step, control, found = TrainingStep(setup, state), initial_control(config), []
    for step in range(STEPS):
        output = one_step(state, step, control)
        state, metrics = output.state, output.metrics
        control = after_step(control, config, step, output.measured)
        rollouts, coefficients = jax.device_get((output.weighed.rollouts, output.weighed.coefficients))
        tokens = np.ascontiguousarray(rollouts.targets.astype(np.int32))
        found.append(
            {
                "tokens": hashlib.sha256(tokens.tobytes()).hexdigest(),
                "lengths": rollouts.rationale_length.tolist(),
                "log_w": rollouts.log_w.astype(float).tolist(),
                "score": coefficients.score.astype(float).tolist(),
                "path": coefficients.path.astype(float).tolist(),
                **{name: metrics[f"train/{name}"] for name in ("loss", "surrogate", "grad_norm", "rollout_occupancy")},
            }
        )
    return found


@only_on_cpu
@pytest.mark.parametrize("case", CASES)
def test_steps_compute_what_they_computed(case):
    pinned = json.loads(PINNED.read_text())[case]
    for step, (now, then) in enumerate(zip(measured(case), pinned, strict=True)):
        where = (
            f"{case}, step {step}; if that is meant: python -m tests.training.test_pinned, and say why in the commit"
        )
        assert now["tokens"] == then["tokens"], where
        assert now["lengths"] == then["lengths"], where
        for name in ("log_w", "score", "path", "loss", "surrogate", "grad_norm", "rollout_occupancy"):
            # A score is a difference: its rounding is that of its terms, of which the path coefficient is one. A
            # surrogate is a sum whose terms nearly cancel in one step and not in the other.
            size = max(np.abs(of_step["path" if name == "score" else name]).max() for of_step in pinned)
            share = 1e-6
            if name in ("score", "path"):  # of w^(1 − q) and w/w̄^q: what log w may differ by, they do by twice that
                share += 2 * np.abs(np.subtract(now["log_w"], then["log_w"])).max()
            np.testing.assert_allclose(now[name], then[name], rtol=1e-6, atol=share * size, err_msg=f"{name}, {where}")


if __name__ == "__main__":
    PINNED.write_text(json.dumps({case: measured(case) for case in CASES}, indent=1) + "\n")
