"""Makes the prompt of a record for each start, and shortens a long one."""

from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Message
from tsallis_rl.tasks.markers import AUTO

# cold: the record alone; chat: in the model's chat template; warm: the same, after an instruction
STARTS = ("cold", "chat", "warm")


def check_choice(field: str, value: str, choices: Sequence[str]) -> None:
    """Checks that config.FIELD has one of its choices.

    Raises:
      UserError: it does not.
    """
    if value not in choices:
        raise UserError(f"config.{field}={value!r} is not accepted; choose from {', '.join(choices)}")


def think_then(task: ConfigDict, answer: str) -> str:
    """Writes the end of an instruction: it asks for a rationale and then for what `answer` says.

    It names the text that closes the rationale, unless it is the model's own </think>, which it writes unasked.
    """
    closing = "" if task.end_of_think == AUTO else f'write "{task.end_of_think.strip()}" and '
    return f"Think step by step. Then {closing}{answer}"


def as_prompt(text: str, instruction: str, start: str) -> str | tuple[Message, ...]:
    """Makes a record's prompt: its text alone (cold), or a chat message of it (chat), after the instruction (warm)."""
    if start == "cold":
        return text
    return ({"role": "user", "content": f"{instruction}\n\n{text}" if start == "warm" else text},)


def trimmer(
    passages: Sequence[bool], render: Callable[[frozenset[int]], str | tuple[Message, ...]]
) -> Callable[[int], str | tuple[Message, ...] | None]:
    """Makes an Example's `shorten` for a record of passages; the last passages are left out first.

    Args:
      passages: whether each passage supports the answer and must stay.
      render: indices of the passages to leave out -> prompt.
    """
    expendable = [i for i, supporting in enumerate(passages) if not supporting][::-1]
    return lambda n: render(frozenset(expendable[:n])) if n <= len(expendable) else None
