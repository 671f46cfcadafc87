"""Tasks of users' own modules: calls what they define, and checks once, field by field, what that returns."""

import inspect
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any

from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.own_code import own_failures
from tsallis_rl.tasks.base import Example, Split, Task
from tsallis_rl.tasks.tokenizers import Tokenizer

SPLITS = ("train", "validation", "test")
_TEXTS = ("name", "metric", "reward")  # fields of a Task
_FUNCTIONS = ("grade", "vote_key")
_OPTIONAL_FUNCTIONS = ("supervised", "show_answer")
_TOKENIZER = (*Tokenizer.__annotations__, "encode", "decode", "encode_prompt", "absent_ids")
_LOAD = "a function load(task_config, seed), or load(task_config) if the seed changes nothing"


def takes(function: Callable[..., Any], *arguments: Any) -> bool:
    """Returns whether a function can be called with these arguments; True if its signature cannot be inspected."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def check_module(module: ModuleType, where: str) -> None:
    """Checks the names that a task's module defines, before anything is loaded.

    Args:
      module: the module.
      where: the beginning of messages, as in config.task.name='my_module.my_task'.

    Raises:
      UserError: `load`, `tokenizer` or GRADES is not what it has to be.
    """
    load, grades = getattr(module, "load", None), getattr(module, "GRADES", ())
    tokenizer = getattr(module, "tokenizer", None)
    if load is None:
        raise UserError(f"{where}: the module has no function load(task_config, seed)")
    if not callable(load):
        raise UserError(f"{where}: its load is {_found(load)}; write {_LOAD}")
    if not takes(load, "task") and not takes(load, "task", "seed"):
        raise UserError(f"{where}: its load takes ({_parameters(load)}); write {_LOAD}")
    if isinstance(grades, str) or not isinstance(grades, Collection) or any(_text_fault(name) for name in grades):
        raise UserError(f"{where}: its GRADES is {grades!r:.60}; list the names of its grades, as in ('exact',)")
    if tokenizer is not None and not callable(tokenizer):
        raise UserError(f"{where}: its tokenizer is {_found(tokenizer)}; write a function without arguments")


def call_load(load: Callable[..., Any], arguments: tuple[Any, ...], where: str) -> Task:
    """Calls a module's `load` and checks what it returns.

    Raises:
      UserError: it fails, or returns no task that can be used; names the split and the example.
    """
    with own_failures(where):
        task = load(*arguments)
        if not isinstance(task, Task):
            raise UserError(f"{where}: its load returns {_found(task)}; return a Task of tsallis_rl.tasks")
        if fault := _task_fault(task):
            raise UserError(f"{where}: the task's {fault}")
        for name, split in task.splits.items():
            _check_split(split, f"{where}, split {name}")
    return task


def call_tokenizer(tokenizer: Callable[[], Any], where: str) -> Tokenizer:
    """Calls a module's `tokenizer` and checks what it returns.

    Raises:
      UserError: it fails, or returns no tokeniser.
    """
    with own_failures(where):
        made = tokenizer()
        if missing := [name for name in _TOKENIZER if not hasattr(made, name)]:
            lacking = "" if made is None else f" without {missing[0]}"
            raise UserError(
                f"{where}: its tokenizer returns {_found(made)}{lacking}; return a tokeniser such as "
                "tsallis_rl.tasks.tokenizers.WordTokenizer"
            )
    return made


def _task_fault(task: Task) -> str:
    """Says what is wrong with a task, apart from its examples; "" if nothing is."""
    for name in _TEXTS:
        if fault := _text_fault(getattr(task, name)):
            return f"{name} {fault}"
    for name in (*_FUNCTIONS, *_OPTIONAL_FUNCTIONS):
        function = getattr(task, name)
        if not callable(function) and not (function is None and name in _OPTIONAL_FUNCTIONS):
            return f"{name} is {_found(function)}; give a function"
    if not isinstance(task.notes, tuple | list) or any(_text_fault(note) for note in task.notes):
        return f"notes are {_found(task.notes)}; give a tuple of sentences"
    grades = task.more_grades
    if not isinstance(grades, Mapping) or not all(isinstance(n, str) and callable(f) for n, f in grades.items()):
        return f"more_grades are {_found(grades)}; give a mapping from names to functions"
    if not isinstance(task.splits, Mapping):
        return f"splits are {_found(task.splits)}; give a mapping from {', '.join(SPLITS)} to a Split each"
    if missing := [name for name in SPLITS if name not in task.splits]:
        return f"splits lack {' and '.join(missing)}; give it {', '.join(SPLITS)}, a Split each"
    return ""


def _check_split(split: Any, where: str) -> None:
    """Checks a split and each of its examples.

    Raises:
      UserError: names the first example with a fault, by index and id.
    """
    if not isinstance(split, Split):
        raise UserError(f"{where}: it is {_found(split)}; write Split(EXAMPLES)")
    if not _is_sequence(split.examples):
        raise UserError(f"{where}: its examples are {_found(split.examples)}; give a list of them")
    if not isinstance(split.dropped, Mapping):
        raise UserError(f"{where}: its dropped is {_found(split.dropped)}; give a mapping from reasons to numbers")
    if fault := _text_fault(split.advice):
        raise UserError(f"{where}: its advice {fault}")
    first: dict[str, int] = {}
    for i in range(len(split.examples)):
        example = split.examples[i]
        fault = _example_fault(example)
        if not fault and first.setdefault(example.id, i) != i:
            fault = f"example {first[example.id]} has the same id; give each example of a split its own"
        if fault:
            id = f" (id {example.id!r:.60})" if isinstance(example, Example) else ""
            raise UserError(f"{where}, example {i}{id}: {fault}")


def _is_sequence(examples: Any) -> bool:
    """Returns whether examples have a length, indices and slices, as lists and NumPy arrays do."""
    try:
        return len(examples[:1]) <= len(examples)
    except (TypeError, KeyError):  # a generator, a set, a dict
        return False


def _example_fault(example: Any) -> str:
    """Says what is wrong with an example; "" if nothing is."""
    if not isinstance(example, Example):
        return f"it is {_found(example)}; write Example(ID, PROMPT, ANSWER)"
    for name, text in (("id", example.id), ("answer", example.answer), ("part", example.part)):
        if fault := _text_fault(text):
            return f"its {name} {fault}"
    if not isinstance(example.aliases, tuple | list):
        return f"its aliases are {_found(example.aliases)}; give a tuple of texts"
    for alias in example.aliases:
        if fault := _text_fault(alias):
            return f"its alias {fault}"
    if example.shorten is not None and not callable(example.shorten):
        return f"its shorten is {_found(example.shorten)}; give a function, or None"
    return _prompt_fault(example.prompt)


def _prompt_fault(prompt: Any) -> str:
    """Says what is wrong with a prompt, a text or chat messages; "" if nothing is."""
    if isinstance(prompt, str):
        fault = _text_fault(prompt)
        return fault and f"its prompt {fault}"
    if not isinstance(prompt, tuple | list) or not prompt:
        return f"its prompt is {_found(prompt)}; write text, or a tuple of chat messages"
    for i, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            return f"message {i} of its prompt is {_found(message)}; write {{'role': 'user', 'content': TEXT}}"
        for key in ("role", "content"):
            if key not in message:
                return f"message {i} of its prompt has no {key}; write {{'role': 'user', 'content': TEXT}}"
            if fault := _text_fault(message[key]):
                return f"{key} of message {i} of its prompt {fault}"
    return ""


def _text_fault(text: Any) -> str:
    """Says what is wrong with a value that has to be text; "" if nothing is."""
    if not isinstance(text, str):
        return f"is {_found(text)}; write it as text"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair; the text was cut inside a character, write it again"
    return ""


def _found(value: Any) -> str:
    """Tells a value that was found: a short one itself, otherwise its type."""
    is_empty = isinstance(value, tuple | list) and not value
    if value is None or is_empty or isinstance(value, bool | int | float | str | bytes):
        return f"{value!r:.60}"
    return f"an object of type {type(value).__name__}"


def _parameters(function: Callable[..., Any]) -> str:
    return str(inspect.signature(function)).partition(" ->")[0].strip("()")
