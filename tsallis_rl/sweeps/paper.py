"""Blocks of the paper's experiment, with the settings that all of its grids share.

Model, data sets, starts, rollouts and samples are the paper's (docs/method.md §6). It names no learning rate, batch or
number of steps, and no seeds: 300 steps, three seeds and the subset of validation are ours, the rest is what
configs/question_answers.py chooses. The paper shows curves with a point every 50 steps or so, which end well past 150.
"""

from collections.abc import Mapping, Sequence

from tsallis_rl.sweeps.grid import Block

CONFIGS = {"finqa": "finq", "hotpotqa": "hotpotqa", "musique": "musique"}
SHARED = {"train.steps": 300, "evaluate.every": 50, "evaluate.examples": 128, "model.dtype": "bfloat16"}


def paper_block(task: str, start: str, estimators: Mapping[str, Sequence[float]]) -> Block:
    """Makes a block of Qwen3-0.6B.

    Args:
      task: a key of CONFIGS.
      start: cold or warm.
      estimators: name → values of q.
    """
    return Block(f"{CONFIGS[task]}:start={start},model=Qwen/Qwen3-0.6B", estimators, fields=SHARED)
