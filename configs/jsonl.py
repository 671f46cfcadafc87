"""Your own task, from a file of {"prompt": "…", "answer": "…", "aliases": ["…"]} lines.

    python -m tsallis_rl.tasks --config=configs/jsonl.py --config.task.path=mine.jsonl --show=3
    python -m tsallis_rl.main --config=configs/jsonl.py:q=0.75,model=<owner/name of the hub, or a folder> \\
        --config.task.path=mine.jsonl

The first command shows the examples as the model will see them, and how long they are: set max_prompt, max_answer and
max_rationale accordingly. config.task.path may also be CSV or parquet, a folder with a file per split, or
hf:owner/name.
model=tiny is a small decoder from random initialisation, which shows on a CPU that everything works.
"""

from ml_collections import ConfigDict

from tsallis_rl.config import answers_config


def get_config(argument: str | None = None) -> ConfigDict:
    """Makes the config of the run.

    Args:
      argument: q=…, or tau=… and commitment=floor|mixture; estimator=…, start=cold|chat|warm, model=tiny|qwen3-0.6b|
        owner/name of the hub|<folder>.
    """
    config, tiny = answers_config(argument, where=__file__)
    config.task.name = "jsonl"
    config.task.path = ""  # a file, a folder with train.jsonl, validation.jsonl and test.jsonl, or hf:owner/name
    config.task.columns = ""  # other names of columns, as in question:prompt,solution:answer
    config.task.answer_after = ""  # text before the answer, such as GSM8K's ####
    config.task.train_split = "train"  # of the hub, or of the files in a folder
    config.task.validation_split = "auto"  # validation, dev, valid or val; if there is none: a tenth of training
    config.task.test_split = "auto"  # test; if there is none: a tenth of training
    config.task.metric = "exact"  # what pass@k and maj@k count: exact, substring, substring_bounded, em, numeric, math
    config.task.tolerance = 0.0  # relative difference that numeric accepts
    config.task.max_prompt = 512
    config.task.max_answer = 32
    config.task.vocab_size = 1024  # of the tokeniser that is trained for a model without one
    if tiny:
        config.rollouts.max_rationale = 16
        config.train.prompts = 8
        config.evaluate.prompts = 16
    return config
