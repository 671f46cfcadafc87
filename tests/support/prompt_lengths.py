"""Draws prompt lengths as in the official files of FinQA, HotPotQA and MuSiQue."""

import numpy as np

from configs import finq, hotpotqa, musique
from tests.support.paths import OFFICIAL
from tsallis_rl.tasks import load_task

TASKS = {"finqa": finq, "hotpotqa": hotpotqa, "musique": musique}
EXAMPLES = 4000  # the official training splits have 6,251, 90,447 and 19,938
CHARACTERS = 3.95  # per token of SmolLM2's tokeniser; 3.90 on FinQA, 3.99 on HotPotQA, 4.05 on MuSiQue
LONGEST = 4096


def official_lengths(task: str, start: str = "cold") -> np.ndarray:
    """Draws prompt lengths in tokens [EXAMPLES] of a training split, from those of the excerpts."""
    config = TASKS[task].get_config(f"start={start}").task
    config.update(folder=str(OFFICIAL / task), train_examples=0, validation_examples=0, test_examples=0)
    texts = [example.prompt for split in load_task(config, 0).splits.values() for example in split.examples]
    lengths = np.array([len(text) / CHARACTERS for text in texts]).astype(int)
    return np.random.default_rng(0).choice(lengths[lengths <= LONGEST], EXAMPLES)
