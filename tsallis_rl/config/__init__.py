"""Settings of an experiment, from config files and command lines."""

from collections.abc import Callable

from tsallis_rl.config.argument import ESTIMATOR_ARGUMENTS, Choice, parse_argument, set_estimator
from tsallis_rl.config.schema import base_config

__all__ = ["ESTIMATOR_ARGUMENTS", "Choice", "base_config", "parse_argument", "set_estimator"]


def __getattr__(name: str) -> Callable:
    """Takes `answers_config` and `paper_config` from configs/question_answers.py.

    Config files, and copies of them, can thus import them from any folder: configs/ is not on Python's path. Like every
    config file, that file is loaded by path, on demand, and imports this package.
    """
    if name not in ("answers_config", "paper_config"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tsallis_rl.config.files import CONFIGS, load_module  # here, because only some config files need them

    return getattr(load_module(CONFIGS / "question_answers.py"), name)
