"""Grades answers once for all processes.

A grader with a limit of time, or a judge, may grade differently in each process. Processes that disagreed would take
different decisions, and then wait for each other.
"""

from collections.abc import Sequence

from tsallis_rl.runs.processes import from_first
from tsallis_rl.tasks.base import Example, Task

Answers = Sequence[Sequence[str | None]]  # [P][M]; None where there is none


def grade_answers(task: Task, examples: Sequence[Example], answers: Answers) -> list[list[dict[str, float] | None]]:
    """Grades the answers [P][M] of examples [P] on the first process; None for a missing answer."""
    return from_first(
        lambda: [
            [None if text is None else task.grade(text, example) for text in texts]
            for example, texts in zip(examples, answers, strict=True)
        ]
    )


def vote_keys(task: Task, answers: Answers) -> list[list[str | None]]:
    """Makes the vote keys of answers [P][M] on the first process; None for a missing answer."""
    return from_first(lambda: [[None if text is None else task.vote_key(text) for text in texts] for texts in answers])
