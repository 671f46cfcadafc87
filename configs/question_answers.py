"""Makes the configs of tasks of question-answer pairs; no experiment of its own."""

from ml_collections import ConfigDict

from tsallis_rl.config import ESTIMATOR_ARGUMENTS, Choice, base_config, parse_argument, set_estimator


def answers_config(argument: str | None, *, where: str) -> tuple[ConfigDict, bool]:
    """Makes a config of question-answer pairs: q or tau, estimator, start and model may follow the colon.

    Args:
      argument: the text after the colon, or None.
      where: the config file's name, for messages.

    Returns:
      The config, and whether its model is the tiny one, which runs the whole way on a CPU.
    """
    accepted = ESTIMATOR_ARGUMENTS | {"start": Choice(("cold", "chat", "warm")), "model": "tiny"}
    arg = parse_argument(argument, accepted, where=where)
    config = base_config()
    config.task.start = arg["start"]
    config.model.size = arg["model"]
    set_estimator(config, arg, where=where)
    config.rollouts.unclosed = "close"  # so that every rationale has a weight, as the paper assumes (docs/method.md §4)
    config.optimizer.learning_rate = 1e-6
    tiny = arg["model"] == "tiny"
    if tiny:
        config.optimizer.learning_rate = 1e-3
    return config, tiny


def paper_config(
    argument: str | None, *, where: str, task: str, examples: tuple[int, int, int], max_rationale: int
) -> ConfigDict:
    """Makes the config of a data set of the paper, read from its official files (docs/method.md §6).

    Args:
      argument: the text after the colon, or None.
      where: the config file's name, for messages.
      task: config.task.name.
      examples: numbers of training, validation and test examples.
      max_rationale: config.rollouts.max_rationale, in tokens.
    """
    config, tiny = answers_config(argument, where=where)
    config.task.name = task
    config.task.folder = ""  # of the official files; empty = where --download puts them
    config.task.prompt_overflow = "trim" if tiny else "drop"  # for prompts that are too long: trim leaves passages out
    config.task.max_prompt = 2048 if tiny else 4096
    config.task.max_answer = 32 if tiny else 128
    config.task.vocab_size = 4096  # of the tokeniser that is trained for a model without one
    train, validation, test = (200, 16, 16) if tiny else examples
    config.task.update(train_examples=train, validation_examples=validation, test_examples=test)
    config.rollouts.max_rationale = 24 if tiny else max_rationale
    if tiny:
        config.train.steps = 10
        config.train.prompts = 2
        config.rollouts.prompt_widths = 1  # compiling another takes longer than 10 steps
        config.evaluate.every = 5
        config.evaluate.prompts = 8
    return config
