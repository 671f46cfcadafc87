"""Templates that make a cold-start or a warm-start prompt of one record, and how a long prompt is shortened."""

from collections.abc import Callable, Sequence

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Message

# Text between </think> and the answer; the chat templates of thinking models put an empty line there.
JOINT = {"cold": "", "warm": "\n\n"}


def check_choice(field: str, value: str, choices: Sequence[str]) -> None:
    """Checks that config.FIELD has one of its choices.

    Raises:
      UserError: it has not.
    """
    if value not in choices:
        raise UserError(f"config.{field}={value!r} is not accepted; choose from {', '.join(choices)}")


def as_prompt(text: str, instruction: str, start: str) -> str | tuple[Message, ...]:
    """Makes a record's prompt: its text alone (cold start), or a chat message with the instruction (warm start)."""
    return text if start == "cold" else ({"role": "user", "content": f"{instruction}\n\n{text}"},)


def trimmer(
    passages: Sequence[bool], render: Callable[[frozenset[int]], str | tuple[Message, ...]]
) -> Callable[[int], str | tuple[Message, ...] | None]:
    """Makes an Example's `shorten` for a record of passages; the last passages are left out first.

    Args:
      passages: for each, whether it supports the answer and must stay.
      render: indices of the passages to leave out -> prompt.
    """
    expendable = [i for i, supporting in enumerate(passages) if not supporting][::-1]
    return lambda n: render(frozenset(expendable[:n])) if n <= len(expendable) else None
