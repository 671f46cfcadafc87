"""Tokenisers behind one small interface: text to ids and back, and the ids that structure a rollout."""

from collections.abc import Sequence
from typing import Protocol

from tsallis_rl.tasks.base import Message


class Tokenizer(Protocol):
    """What the rest of the project asks of a tokeniser.

    Attributes:
      vocab_size: number of ids, V.
      pad: id that fills unused positions; never read by attention.
      end_of_think: id that closes a rationale.
      end_of_sequence: the ids that end an answer; the first is the one scored behind gold answers.
    """

    vocab_size: int
    pad: int
    end_of_think: int
    end_of_sequence: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are left out."""
        ...

    def encode_prompt(self, prompt: str | tuple[Message, ...]) -> list[int]:
        """The ids that the model reads before its rationale, from plain text or rendered chat messages."""
        ...


class WordTokenizer:
    """One id per word of a closed vocabulary; words are separated by single spaces.

    Ids 0 to 3 are <pad>, <bos>, </think> and <eos>; `words` follow in order.
    """

    SPECIAL = ("<pad>", "<bos>", "</think>", "<eos>")

    def __init__(self, words: Sequence[str]):
        self.words = (*self.SPECIAL, *words)
        self._ids = {word: i for i, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            raise ValueError("a WordTokenizer's words must be unique")
        self.vocab_size = len(self.words)
        self.pad, self.bos, self.end_of_think = 0, 1, 2
        self.end_of_sequence = (3,)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; raises KeyError on a word outside the vocabulary."""
        return [self._ids[word] for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """The words of `ids` joined by spaces; special tokens are left out."""
        return " ".join(self.words[i] for i in ids if i >= len(self.SPECIAL))

    def encode_prompt(self, prompt: str | tuple[Message, ...]) -> list[int]:
        """<bos>, then the words of a plain-text prompt."""
        if not isinstance(prompt, str):
            raise ValueError("a WordTokenizer has no chat template; give it plain text")
        return [self.bos, *self.encode(prompt)]
