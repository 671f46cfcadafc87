"""What a task is: examples of (prompt, answer), and a grader for predicted answers. A task knows no model."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclasses.dataclass(frozen=True)
class Example:
    """One supervised example (x*, y*); there is no rationale in it.

    Attributes:
      id: unique within its split.
      prompt: x* as plain text (cold start), or chat messages for the model's chat template (warm start).
      answer: y*, the gold answer that is scored behind every rationale.
      aliases: other strings that the task's official metric accepts.
    """

    id: str
    prompt: str | tuple[Message, ...]
    answer: str
    aliases: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of one split, and how many records were left out of it for which reason."""

    examples: Sequence[Example]
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Task:
    """Examples and their grader.

    Attributes:
      name: as in config.task.name.
      splits: "train", "validation" and "test".
      grade: (prediction, example) -> {metric name: score in [0, 1]}, a pure function; `prediction` is the decoded
        answer without special tokens.
      metric: the name in `grade`'s result that pass@k and maj@k count as correct (a score of 1).
      vote_key: prediction -> the string under which it is counted in a majority vote.
      joint: fixed text between the end-of-think token and the answer; "" for none.
    """

    name: str
    splits: Mapping[str, Split]
    grade: Callable[[str, Example], dict[str, float]]
    metric: str
    vote_key: Callable[[str], str] = str.strip
    joint: str = ""
