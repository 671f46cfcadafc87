"""Finds the turns of a chat in text that shows its special tokens."""

import re
from typing import NamedTuple

# The beginning of a turn, with its role, and its end: ChatML (Qwen, SmolLM), Gemma 2 and 3, Gemma 4, Llama 3.
_OPENING = re.compile(
    r"<\|im_start\|>([^\n<>]{1,30})\n"
    r"|<start_of_turn>([^\n<>]{1,30})\n"
    r"|<\|turn>([^\n<>]{1,30})\n"
    r"|<\|start_header_id\|>([^\n<>]{1,30})<\|end_header_id\|>\n{0,2}"
)
_CLOSING = re.compile(r"(<\|im_end\|>|<end_of_turn>|<turn\|>|<\|eot_id\|>|<\|eom_id\|>)\s*$")
_BEFORE = re.compile(r"(<bos>|<s>|<\|begin_of_text\|>|\s)*")


class Turn(NamedTuple):
    """A turn of a chat.

    Attributes:
      role: the role as written in the text; "" for text before the first turn.
      text: the turn's text, without the special tokens around it.
    """

    role: str
    text: str


def chat_turns(prompt: str) -> list[Turn]:
    """Splits a prompt into its turns; an empty list if no special token opens one."""
    openings = list(_OPENING.finditer(prompt))
    if not openings:
        return []
    before = prompt[_BEFORE.match(prompt).end() : openings[0].start()].strip()
    ends = [opening.start() for opening in openings[1:]] + [len(prompt)]
    turns = [
        Turn(next(filter(None, opening.groups())).strip(), _CLOSING.sub("", prompt[opening.end() : end]).rstrip("\n"))
        for opening, end in zip(openings, ends, strict=True)
    ]
    return [Turn("", before)] * bool(before) + turns
