"""FinQA from answers alone.

    python -m tsallis_rl.main --config=configs/finq.py:q=0.75,model=tiny --config.task.folder=<official files> \
        --workdir=runs/finqa

The folder holds the official release's train.json, dev.json and test.json. model=tiny is for trying things out on a
CPU: a small decoder from random initialisation with 24 rationale tokens, which will not learn to compute. For results,
give the folder of a pretrained model (`model=<folder of Qwen3-0.6B>`), an accelerator, and the paper's budget of
4k−128 rationale tokens, which is then the default.
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
    config.task.folder = ""
    config.task.gold = "exe_ans"  # or answer: as annotators wrote it, with units and percent signs
    config.task.start = arg["start"]
    config.task.train_examples = 6145
    config.task.validation_examples = 872
    config.task.test_examples = 1132
    config.task.prompt_overflow = "drop"  # or trim: leave out sentences that are no evidence
    config.task.vocab_size = 4096
    config.model.size = arg["model"]
    config.estimator.name = arg["estimator"]
    config.estimator.q = arg["q"]
    config.rollouts.num_rollouts = 32
    if arg["model"] == "tiny":
        config.task.max_prompt = 2048
        config.task.max_answer = 24
        config.task.validation_examples = 16
        config.task.test_examples = 16
        config.rollouts.max_rationale = 24
        config.train.prompts = 2
        config.evaluate.prompts = 8
    else:
        config.task.max_prompt = 4096
        config.rollouts.max_rationale = 4096 - 128
        config.optimizer.learning_rate = 1e-6
    return config
