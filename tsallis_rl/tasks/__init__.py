"""Tasks: examples of (prompt, answer), graders, and the tokenisers that turn examples into ids.

A task is a row of `LOADERS`: a module with `load(task_config, seed) -> Task`.
"""

import importlib
from pathlib import Path

from ml_collections import ConfigDict

from tsallis_rl.errors import UserError
from tsallis_rl.tasks.base import Example, Message, Split, Task
from tsallis_rl.tasks.encoding import EncodedSplit, encode_split
from tsallis_rl.tasks.tokenizers import Tokenizer, pretrained_tokenizer, trained_tokenizer

__all__ = [
    "EncodedSplit",
    "Example",
    "Message",
    "Split",
    "Task",
    "Tokenizer",
    "encode_split",
    "load_task",
    "load_tokenizer",
]

# config.task.name -> module, imported when it is asked for
LOADERS = {
    "finqa": "tsallis_rl.tasks.finqa",
    "hops": "tsallis_rl.tasks.hops",
    "hotpotqa": "tsallis_rl.tasks.hotpotqa",
    "musique": "tsallis_rl.tasks.musique",
}


def load_task(task: ConfigDict, seed: int) -> Task:
    """Loads config.task; raises UserError when its name, a field or a file is not right."""
    if task.name not in LOADERS:
        raise UserError(f"config.task.name={task.name!r} is not a task; choose from {', '.join(sorted(LOADERS))}")
    return importlib.import_module(LOADERS[task.name]).load(task, seed)


def load_tokenizer(config: ConfigDict, task: Task, cache: Path) -> Tokenizer:
    """The tokeniser of a run.

    A pretrained model brings its own (config.model.size is its folder). A task with a closed vocabulary supplies one
    as its module's `tokenizer()`. Otherwise a sentencepiece model of config.task.vocab_size pieces is trained on the
    task's training text and kept under `cache`.
    """
    folder = Path(config.model.size)
    if folder.is_dir():
        return pretrained_tokenizer(folder)
    own = getattr(importlib.import_module(LOADERS[task.name]), "tokenizer", None)
    return own() if own else trained_tokenizer(task.splits["train"], config.task.vocab_size, cache)
