"""Your own task from records of {"prompt": …, "answer": …, "aliases": […]}, without writing code.

They come from a file of JSON, CSV or parquet, from a folder of such files, or from a data set of the Hugging Face hub.
"""

from collections.abc import Mapping
from functools import partial

from ml_collections import ConfigDict

from tsallis_rl.config.schema import TASK_FIELDS
from tsallis_rl.tasks import graders, math_equivalence
from tsallis_rl.tasks.base import Split, Task, count_reasons
from tsallis_rl.tasks.own_records import WORKED, OwnExamples, own_examples
from tsallis_rl.tasks.own_sources import Source, find_source
from tsallis_rl.tasks.subsets import choose, split_sizes
from tsallis_rl.tasks.templates import STARTS, check_choice

_TENTHS = {"validation": 0, "test": 1}  # split -> last decimal digit of the hashes of the prompts that it is given


def _carve(read: dict[str, OwnExamples]) -> None:
    """Gives validation and test a tenth of the training records each, if nothing was read for them."""
    train = read["train"]
    tenths = [prompt % 10 for prompt in train.prompts]
    missing = {name: tenth for name, tenth in _TENTHS.items() if name not in read}
    for name, tenth in missing.items():
        read[name] = train.select(i for i, found in enumerate(tenths) if found == tenth)
    if missing:
        rest = train.select(i for i, found in enumerate(tenths) if found not in missing.values())
        rest.left_out, rest.worked = train.left_out, train.worked
        read["train"] = rest


GRADES = ("exact", "substring", "substring_bounded", "em", "f1", "numeric", "math")

# config.task.metric -> the key under which answers are counted together
_VOTE_KEYS = {"em": graders.own_words, "numeric": graders.numeric_key, "math": math_equivalence.math_key}


def _split(made: OwnExamples, size: int, advice: str) -> Split:
    split = choose(
        [example.id for example in made.examples], range(len(made.examples)), made.examples.__getitem__, size
    )
    return Split(split.examples, count_reasons(made.left_out), advice)


def _notes(source: Source, carved: list[str], read: Mapping[str, OwnExamples], task: ConfigDict) -> tuple[str, ...]:
    """Writes the notes on how the splits were made and what their answers look like."""
    notes = []
    if carved:
        tenth = "a tenth each" if len(carved) > 1 else "a tenth"
        verb = "are" if len(carved) > 1 else "is"
        notes.append(f"{' and '.join(carved)} {verb} {tenth} of {source.train_name}, by the SHA-256 of the prompts")
    worked, examples = sum(made.worked for made in read.values()), sum(len(made.examples) for made in read.values())
    if 2 * worked > examples and not task.answer_after:
        notes.append(
            f"{worked} answers hold worked steps and then {WORKED!r}, and all of it is trained as the answer; "
            f"config.task.answer_after={WORKED!r} takes only what follows it"
        )
    return tuple(notes)


def load(task: ConfigDict) -> Task:
    """Loads examples from config.task.path: a file, a folder with a file per split, or hf:owner/name.

    Missing splits are carved from training: a tenth each for validation and test, by the SHA-256 of the prompts, so
    that equal prompts are in one split, the same one for every start. Every seed sees the same examples.

    Raises:
      UserError: a setting, a file or a record is not right; names it.
    """
    check_choice("task.start", task.start, STARTS)
    metric, reward = (task.get(name, "auto") for name in ("metric", "reward"))
    for name, choice in (("task.metric", metric), ("task.reward", reward)):
        if choice == "math":
            math_equivalence.check_installed(name)
    task = _with_defaults(task)
    source = find_source(task)
    read = {name: own_examples(records(), task) for name, records in source.splits.items()}
    total, different = len(read["train"].examples), len(set(read["train"].prompts))
    carved = [name for name in _TENTHS if name not in read]
    _carve(read)
    records = f"{total} records" + f" of {different} prompts" * (different < total)
    advice = (
        f"{source.train_name} has {records}, too few for a tenth of them to hold one; write train, validation and test "
        "files into a folder, and set config.task.path to it"
    )
    sizes = split_sizes(task)
    return Task(
        name="jsonl",
        splits={name: _split(read[name], sizes[name], advice if carved else "") for name in sizes},
        grade=partial(graders.own_task, tolerance=task.tolerance),
        metric="exact",
        vote_key=_VOTE_KEYS.get(metric, str.strip),
        notes=_notes(source, carved, read, task),
        more_grades={"math": math_equivalence.math},
    )


def _with_defaults(task: ConfigDict) -> ConfigDict:
    """Fills the fields that a config lacks, such as one of an earlier version."""
    own = {name.partition(".")[2]: field.default for name, field in TASK_FIELDS.items() if "jsonl" in field.tasks}
    return ConfigDict({**own, **task.to_dict()})
