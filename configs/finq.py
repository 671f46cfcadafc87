"""FinQA from answers alone (METHOD §6: p@1 and m@16 by substring match).

    python -m tsallis_rl.tasks --config=configs/finq.py --download
    python -m tsallis_rl.main --config=configs/finq.py:q=0.75,model=<folder of Qwen3-0.6B> --workdir=runs/finq

The first command fetches the official files (about 100 MB); files that you have are named by --config.task.folder. The
second needs an accelerator: 4k − 128 rationale tokens, 32 rollouts a prompt. Learning rate, batch and steps are
not the paper's, which gives none.

model=tiny (the default) is a small decoder from random initialisation with 24 rationale tokens and prompts trimmed to
2,048, to see the whole way from files to figures: ten steps and their evaluations in three to five minutes on two CPU
cores. It learns nothing to speak of; what it scores are short answers that random text contains by chance.
"""

from ml_collections import ConfigDict

from tsallis_rl.config import Choice, base_config, parse_argument


def get_config(argument: str | None = None) -> ConfigDict:
    """`argument`: q=…, estimator=…, start=cold|warm, model=tiny|qwen3-0.6b|<folder of a pretrained model>."""
    arg = parse_argument(
        argument, {"q": 0.75, "estimator": "garl", "start": Choice(("cold", "warm")), "model": "tiny"}, where=__file__
    )
    config = base_config()
    config.task.name = "finqa"
    config.task.folder = ""  # of the official files; empty = where --download puts them
    config.task.gold = "exe_ans"  # the program's result; answer: as annotators wrote it
    config.task.start = arg["start"]
    config.task.prompt_overflow = "drop"  # prompts that are too long; trim: leave out sentences that are no evidence
    config.task.train_examples = 6145  # METHOD §6
    config.task.validation_examples = 872
    config.task.test_examples = 1132
    config.task.max_prompt = 4096
    config.task.max_answer = 128
    config.task.vocab_size = 4096  # of the tokeniser that is trained for a model without one
    config.model.size = arg["model"]
    config.estimator.name = arg["estimator"]
    config.estimator.q = arg["q"]
    config.rollouts.num_rollouts = 32
    config.rollouts.max_rationale = 4 * 1024 - 128
    config.optimizer.learning_rate = 1e-6  # the paper gives none
    if arg["model"] == "tiny":
        config.task.max_prompt = 2048
        config.task.prompt_overflow = "trim"
        config.task.max_answer = 32
        config.task.train_examples = 200
        config.task.validation_examples = 16
        config.task.test_examples = 16
        config.rollouts.max_rationale = 24
        config.optimizer.learning_rate = 1e-3
        config.train.steps = 10
        config.train.prompts = 2
        config.evaluate.every = 5
        config.evaluate.prompts = 8
    return config
