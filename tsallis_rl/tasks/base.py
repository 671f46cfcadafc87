"""Tasks: examples of (prompt, answer), and a grader for predicted answers. A task knows no model."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tsallis_rl.runs.errors import as_name

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclasses.dataclass(frozen=True)
class Example:
    """One supervised example (x*, y*), without a rationale.

    Attributes:
      id: unique within its split.
      prompt: x* as plain text (cold start), or chat messages for the model's chat template (warm start).
      answer: y*, the gold answer that is scored after every rationale.
      aliases: other strings that the task's official metric accepts.
      shorten: trims a prompt that is too long: n -> the prompt without its last n expendable passages, None if it has
        fewer. Without it, an example whose prompt is too long is dropped.
      part: the kind of example, where a split mixes several. Batches hold the parts in the split's proportions, and
        evaluation gives each part's figures beside the whole split's.
    """

    id: str
    prompt: str | tuple[Message, ...]
    answer: str
    aliases: tuple[str, ...] = ()
    shorten: Callable[[int], str | tuple[Message, ...] | None] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )
    part: str = ""


Score = Callable[[str, Example], float]  # (prediction, example) -> score in [0, 1]


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split.

    Attributes:
      examples: the split's examples.
      dropped: reason -> number of records left out (`count_reasons`).
      advice: what to do if no example can be used, or "".
    """

    examples: Sequence[Example]
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    advice: str = ""


def count_reasons(left_out: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Counts left-out records for a message: reason -> ids becomes "reason (first: id)" -> count."""
    return {f"{reason} (first: {as_name(ids[0])})": len(ids) for reason, ids in left_out.items() if ids}


class SupervisedBatch(NamedTuple):
    """P examples with rationales as right-padded ids; lengths are [P].

    Attributes:
      prompt: [P, T0].
      prompt_length: [P].
      rationale: [P, T], without end-of-think.
      rationale_length: [P].
      answer: [P, A], end-of-sequence included.
      answer_length: [P].
    """

    prompt: np.ndarray
    prompt_length: np.ndarray
    rationale: np.ndarray
    rationale_length: np.ndarray
    answer: np.ndarray
    answer_length: np.ndarray


@dataclasses.dataclass(frozen=True)
class Task:
    """Examples and their grader.

    Attributes:
      name: as in config.task.name.
      splits: "train", "validation" and "test".
      grade: (prediction, example) -> {metric name: score in [0, 1]}, a pure function; `prediction` is the decoded
        answer without special tokens. An answer on which it raises counts as wrong.
      metric: the name in `grade`'s result by which pass@k and maj@k count a prediction as correct (a score of 1).
        config.task.metric may choose another.
      vote_key: prediction -> the string under which it is counted in a majority vote.
      notes: sentences for the user about how the splits were made.
      supervised: (seed, step, n) -> examples with rationales, for a task that trains its own base model.
      reward: the name of the grade that estimators of sampled answers train on; auto: "exact", or `metric` if the
        grader has no such grade. config.task.reward may choose another.
      more_grades: grades that are computed only if config.task.metric or .reward names them.
      show_answer: example -> its prompt with its answer shown, for a task with its own form of it; None: a sentence is
        added (`hinting`).
    """

    name: str
    splits: Mapping[str, Split]
    grade: Callable[[str, Example], dict[str, float]]
    metric: str
    vote_key: Callable[[str], str] = str.strip
    notes: tuple[str, ...] = ()
    supervised: Callable[[int, int, int], SupervisedBatch] | None = None
    reward: str = "auto"
    more_grades: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    show_answer: Callable[[Example], str | tuple[Message, ...]] | None = None
