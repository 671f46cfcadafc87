"""From examples to arrays of token ids, once per run: the same tokens for every rollout of an example."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from tsallis_rl.tasks.base import Example, Split
from tsallis_rl.tasks.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """A split as the model sees it; n examples, right-padded.

    Attributes:
      prompt: int32 [n, T0] prompt ids.
      prompt_length: int32 [n].
      answer: int32 [n, A] gold answer ids, each followed by the end-of-sequence id that is scored with it.
      answer_length: int32 [n], the end-of-sequence id counted.
      examples: the n examples, in the same order.
      dropped: reason -> number of examples left out.
    """

    prompt: np.ndarray
    prompt_length: np.ndarray
    answer: np.ndarray
    answer_length: np.ndarray
    examples: Sequence[Example]
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.examples)


def _pad(rows: Sequence[Sequence[int]], width: int, value: int) -> tuple[np.ndarray, np.ndarray]:
    padded = np.full((len(rows), width), value, np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded, np.array([len(row) for row in rows], np.int32)


def encode_split(split: Split, tokenizer: Tokenizer, *, max_prompt: int, max_answer: int) -> EncodedSplit:
    """Tokenises a split to arrays of width `max_prompt` and `max_answer`; what does not fit is dropped and counted.

    The answer is tokenised on its own, so that its ids do not depend on what stands before it (METHOD §4).
    """
    dropped = Counter(split.dropped)
    prompts, answers, kept = [], [], []
    for example in split.examples:
        prompt = tokenizer.encode_prompt(example.prompt)
        answer = [*tokenizer.encode(example.answer), tokenizer.end_of_sequence[0]]
        if len(prompt) > max_prompt:
            dropped[f"prompt longer than {max_prompt} tokens"] += 1
        elif len(answer) > max_answer:
            dropped[f"answer longer than {max_answer} tokens"] += 1
        else:
            prompts.append(prompt)
            answers.append(answer)
            kept.append(example)
    prompt, prompt_length = _pad(prompts, max_prompt, tokenizer.pad)
    answer, answer_length = _pad(answers, max_answer, tokenizer.pad)
    return EncodedSplit(prompt, prompt_length, answer, answer_length, tuple(kept), dict(dropped))
