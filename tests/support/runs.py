"""Shared by tests of whole runs: small settings, and the parts of a run's files that must agree between runs."""

import json
from pathlib import Path

from configs import hops as config_file

SMALL = {
    "base.steps": 2,
    "base.batch": 4,
    "task.train_examples": 10,
    "task.validation_examples": 6,
    "task.test_examples": 6,
    "rollouts.num_rollouts": 4,
    "train.steps": 4,
    "train.prompts": 4,
    "train.micro_batch": 2,
    "train.save_rollouts_every": 3,
    "train.save_rollouts_prompts": 2,
    "evaluate.every": 2,
    "evaluate.samples": 4,
    "evaluate.prompts": 4,
}
# Between meshes and process counts. A log_w near −26 has its last place at 2e-6, which is the relative error of its
# weight. Measured over 6 steps: 5e-6, and 7e-7 absolute in leading_bias, a difference that is nearly zero.
ROUNDING = {"rel": 2e-5, "abs": 2e-6}


def small(argument: str = "", **changes):
    config = config_file.get_config(argument)
    config.update_from_flattened_dict(SMALL | {name.replace("__", "."): value for name, value in changes.items()})
    return config


def without_clocks(records: list[dict]) -> list[dict]:
    """Keeps what is a function of config, data and step: no seconds, no peak of a device's memory."""
    return [{name: x for name, x in r.items() if "second" not in name and "peak_memory" not in name} for r in records]


def rollout_texts(folder: Path) -> dict[str, list]:
    """Reads the examples and texts of the saved rollouts, by file."""
    names = ("example", "rollout", "prompt", "rationale", "closed", "gold", "answer")
    return {
        file.name: [[json.loads(line)[name] for name in names] for line in file.open()]
        for file in (folder / "rollouts").iterdir()
    }
