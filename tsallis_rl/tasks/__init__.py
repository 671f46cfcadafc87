"""Tasks: examples of (prompt, answer), graders, and the tokenisers that turn examples into ids.

A task is a module with `load(task_config, seed) -> Task`, or `load(task_config)` if the seed changes nothing: a row of
`LOADERS`, or your own module by its dotted name. An optional `GRADES` lists what its grader returns, so that a wrong
config.task.metric is refused before anything is loaded.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ml_collections import ConfigDict

from tsallis_rl.config.schema import FIELDS, TASK_FIELDS, task_fields
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.hub import model_folder
from tsallis_rl.runs.own_code import is_dotted, own_module
from tsallis_rl.tasks.base import Example, Message, Split, Task
from tsallis_rl.tasks.encoding import EncodedSplit, encode_split
from tsallis_rl.tasks.grading import chosen_function, with_settings
from tsallis_rl.tasks.markers import Markers, find_markers, name_end_of_think
from tsallis_rl.tasks.noise import mislabel
from tsallis_rl.tasks.own_modules import call_load, call_tokenizer, check_module, takes
from tsallis_rl.tasks.pretrained_tokenizers import pretrained_tokenizer
from tsallis_rl.tasks.tokenizers import Tokenizer, trained_tokenizer

__all__ = [
    "EncodedSplit",
    "Example",
    "LoadedTask",
    "Markers",
    "Message",
    "Split",
    "Task",
    "Tokenizer",
    "encode_split",
    "load_task",
    "load_task_of_run",
    "load_with_tokenizer",
    "task_module",
]

# config.task.name -> module, imported on demand
LOADERS = {
    "finqa": "tsallis_rl.tasks.finqa",
    "hops": "tsallis_rl.tasks.hops",
    "jsonl": "tsallis_rl.tasks.jsonl",
    "hotpotqa": "tsallis_rl.tasks.hotpotqa",
    "musique": "tsallis_rl.tasks.musique",
}
# config.task.name -> its own fields for which its loader has no default
_RELEASE_FIELDS = ("folder", "prompt_overflow")
_NEEDED = {
    "finqa": (*_RELEASE_FIELDS, "gold"),
    "hotpotqa": _RELEASE_FIELDS,
    "musique": _RELEASE_FIELDS,
    "hops": ("cold_answer",),
}


def task_module(name: str) -> ModuleType:
    """Imports the module of a task: a row of LOADERS, or your own module by its dotted name.

    Raises:
      UserError: there is no such task or module, or your module cannot be imported or has no `load`.
    """
    if name in LOADERS:
        return importlib.import_module(LOADERS[name])
    if not is_dotted(name):
        raise UserError(
            f"config.task.name={name!r} is not a task; choose from {', '.join(sorted(LOADERS))}, or give the "
            "dotted name of a module with a function load(task_config, seed)"
        )
    module = own_module(name, _where(name))
    check_module(module, _where(name))
    return module


def _where(name: str) -> str:
    """Begins a message about a user's own task."""
    return f"config.task.name={name!r}"


def check_task_fields(task: ConfigDict) -> None:
    """Checks config.task against the table of settings; fields that only your own task has pass.

    Raises:
      UserError: a field is missing, of another type, or outside its limit or choices.
    """
    for name, field in (FIELDS | task_fields(task.name)).items():
        section, _, key = name.partition(".")
        if section != "task":
            continue
        if key in task:
            field.check(name, task[key])
        elif key in _NEEDED.get(task.name, ()):
            raise UserError(
                f"config.{name} is missing, and task {task.name} reads it ({field.meaning}); set it, or begin with "
                "this task's config in configs/"
            )


def _prompts(split: Split) -> list[str]:
    """Lists a split's prompts, chat messages as text."""
    return [example.prompt if isinstance(example.prompt, str) else repr(example.prompt) for example in split.examples]


def _shared_prompts(splits: Mapping[str, Split]) -> list[str]:
    """Writes a sentence for each split with prompts of one that comes before it: training, validation, test."""
    prompts = {name: getattr(split.examples, "prompts", None) or _prompts(split) for name, split in splits.items()}
    notes = []
    for name, earlier, called in (
        ("validation", "train", "training"), ("test", "train", "training"), ("test", "validation", "validation"),
    ):  # fmt: skip
        others, known = prompts.get(name, ()), set(prompts.get(earlier, ()))
        if count := sum(prompt in known for prompt in others):
            notes.append(
                f"{count} of {len(others)} {name} prompts are {called} prompts too, so that {name} figures are too "
                "high; take them out of one of the two"
            )
    return notes


def load_task(task: ConfigDict, seed: int) -> Task:
    """Loads config.task, with its share of wrong labels in the training split.

    Raises:
      UserError: the task's name, a field or a file is not right.
    """
    module = task_module(task.name)
    load, grades = module.load, getattr(module, "GRADES", ())
    check_task_fields(task)
    for setting in ("metric", "reward") if grades else ():  # before loading, which may take minutes
        chosen_function(f"config.task.{setting}", task.get(setting, "auto"), grades)
    arguments = (task, seed) if takes(load, task, seed) else (task,)
    made = load(*arguments) if task.name in LOADERS else call_load(load, arguments, _where(task.name))
    loaded = with_settings(made, task)
    loaded = dataclasses.replace(loaded, notes=(*loaded.notes, *_shared_prompts(loaded.splits)))
    if not task.label_noise:
        return loaded
    return dataclasses.replace(
        loaded,
        splits={**loaded.splits, "train": mislabel(loaded.splits["train"], task.label_noise, seed)},
        notes=(*loaded.notes, f"{task.label_noise:.0%} of the training labels are another example's"),
    )


class LoadedTask(NamedTuple):
    """A task as one model reads it.

    Attributes:
      task: examples and grader.
      tokenizer: the model's tokeniser.
      markers: the ids around rationales and answers.
    """

    task: Task
    tokenizer: Tokenizer
    markers: Markers


def load_with_tokenizer(config: ConfigDict, cache: Path) -> LoadedTask:
    """Loads the task of a run, its model's tokeniser, and the markers.

    A pretrained model brings its tokeniser (config.model.size is its folder). A task with a closed vocabulary supplies
    its own by its module's `tokenizer()`. Otherwise a sentencepiece model of config.task.vocab_size pieces is trained
    on the task's training text and kept under `cache`.

    Raises:
      UserError: the task's name, a field or a file is not right; the folder does not exist or holds no tokeniser that
        fits, or none can be trained.
    """
    task, tokenizer = load_task_of_run(config)
    tokenizer = tokenizer or _own_tokenizer(config, task, cache)
    return LoadedTask(task, tokenizer, find_markers(config.task, tokenizer))


def load_task_of_run(config: ConfigDict) -> tuple[Task, Tokenizer | None]:
    """Loads config.task with the instructions for its model, and the model's own tokeniser, if any.

    Raises:
      UserError: as `load_with_tokenizer`.
    """
    folder = model_folder(config.model.size)
    if not folder.is_dir():
        return load_task(config.task, config.seed), None
    tokenizer = pretrained_tokenizer(folder)
    return load_task(name_end_of_think(config.task, tokenizer), config.seed), tokenizer


def _own_tokenizer(config: ConfigDict, task: Task, cache: Path) -> Tokenizer:
    """Makes a task's tokeniser for a model that is not pretrained: the task's own, or a trained one."""
    if own := getattr(task_module(config.task.name), "tokenizer", None):
        is_ours = config.task.name in LOADERS
        return own() if is_ours else call_tokenizer(own, _where(config.task.name))
    if "vocab_size" not in config.task:
        raise UserError(
            f"config.model.size={config.model.size!r} is no folder, and the config lacks task.vocab_size to train a "
            "tokeniser with; name a model's folder, or set that field"
        )
    TASK_FIELDS["task.vocab_size"].check("task.vocab_size", config.task.vocab_size)
    return trained_tokenizer(task.splits["train"], config.task.vocab_size, cache)
