"""FinQA from answers alone (docs/method.md §6: p@1 and m@16 by substring match).

    python -m tsallis_rl.tasks --config=configs/finq.py --download
    python -m tsallis_rl.main --config=configs/finq.py:q=0.75,model=Qwen/Qwen3-0.6B --workdir=runs/finq

The first command fetches the official files (about 100 MB); --config.task.folder names files that you have. The
second needs an accelerator: 4k − 128 rationale tokens, 32 rollouts a prompt. Learning rate, batch and steps are
not the paper's, which gives none.

model=tiny (the default) is a small decoder from random initialisation with 24 rationale tokens and prompts trimmed to
2,048. It shows the whole way from files to figures: ten steps and their evaluations take three to five minutes on two
CPU cores. It learns nothing to speak of, and scores only where random text contains a short answer by chance.
"""

from ml_collections import ConfigDict

from tsallis_rl.config import paper_config


def get_config(argument: str | None = None) -> ConfigDict:
    """Makes the config of the run.

    Args:
      argument: q=…, or tau=… and commitment=floor|mixture; estimator=…, start=cold|chat|warm, model=tiny|qwen3-0.6b|
        owner/name of the hub|<folder>.
    """
    config = paper_config(argument, where=__file__, task="finqa", examples=(6145, 872, 1132), max_rationale=3968)
    config.task.gold = "exe_ans"  # the program's result; answer: as annotators wrote it
    return config
