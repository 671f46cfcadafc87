"""Blocks of the paper's experiment, with the settings that all of its grids share.

Model, data sets, starts, rollouts and samples are the paper's (docs/method.md §6). The paper gives no learning rate,
batch size, number of steps or seeds. The 300 steps, three seeds and the validation subset are our choice; the rest
comes from configs/question_answers.py. The paper's curves have a point about every 50 steps and end well past 150.
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
