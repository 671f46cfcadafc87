"""Dynamic sampling: which groups replace which, and that a step with replaced groups is that of the same prompts."""

import itertools
import json

import jax
import numpy as np
import pytest

from tests.support.runs import small, without_clocks
from tsallis_rl.objectives import ESTIMATORS, Coefficients, coefficients
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import json_lines
from tsallis_rl.sampler import roll_out
from tsallis_rl.sampler.batch import batch_at
from tsallis_rl.sampler.keys import TRAIN, example_keys
from tsallis_rl.training.checks import check
from tsallis_rl.training.control import initial_control
from tsallis_rl.training.data_order import Lengths, batch_indices, further_batches
from tsallis_rl.training.loop import train
from tsallis_rl.training.packing import one_row_each
from tsallis_rl.training.refill import idle_groups, refilled, replacements
from tsallis_rl.training.regeneration import regenerate
from tsallis_rl.training.setup import initial_state, prepare
from tsallis_rl.training.step import TrainingStep


def refilling(estimator: str = "grpo", **changes):
    """A run of which some groups are without signal: answers of an untrained model behind three tokens at most."""
    return small(f"estimator={estimator},start=warm", **{"train__refill": 2, "task__train_examples": 30} | changes)


def test_try(tmp_path):
    records = train(refilling(), tmp_path)
    for r in records:
        if "train/loss" in r:
            print({k: v for k, v in r.items() if "refill" in k or "idle" in k or "reward" in k})
    rows = json_lines(tmp_path / "rollouts" / "step_000000.jsonl")
    print([(row["example"], row["position"], row["reward"]) for row in rows])
