"""Encoding of examples into arrays of token ids, once per run: all rollouts of an example share them."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Example, Split, Task, count_reasons
from tsallis_rl.tasks.chat_template import UnrenderedPrompt
from tsallis_rl.tasks.markers import Markers
from tsallis_rl.tasks.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """A split as the model reads it: P examples, right-padded.

    Attributes:
      prompt: int32 [P, T0] prompt ids.
      prompt_length: int32 [P].
      answer: int32 [P, A] gold answer ids, each followed by the id that is scored with it.
      answer_length: int32 [P], with that id.
      examples: the P examples, in the same order, with their prompts as trimmed.
      dropped: reason -> number of examples left out.
      trimmed: number of examples whose prompt was shortened.
      widths: of prompts that batches are padded to, in rising order, the last at most T0; none: T0 alone.
    """

    prompt: np.ndarray
    prompt_length: np.ndarray
    answer: np.ndarray
    answer_length: np.ndarray
    examples: Sequence[Example]
    dropped: Mapping[str, int]
    trimmed: int = 0
    widths: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def parts(self) -> list[str]:
        """Lists each example's part."""
        return [example.part for example in self.examples]

    def width(self, indices: np.ndarray) -> int:
        """Returns the smallest width that holds the prompts of the examples at `indices` [P]."""
        longest = self.prompt_length[indices].max()
        return min(width for width in (*self.widths, self.prompt.shape[1]) if width >= longest)


def fingerprint(split: EncodedSplit) -> str:
    """Hashes what a run trains on or is graded by: every id of prompts and answers, and the examples' texts of answers.

    Widths and padding are no part of it. Splits with one fingerprint have the same examples in the same order.
    """
    digest = hashlib.sha256()
    for rows, lengths in ((split.prompt, split.prompt_length), (split.answer, split.answer_length)):
        digest.update(lengths.astype("<i4").tobytes())
        digest.update(rows[np.arange(rows.shape[1]) < lengths[:, None]].astype("<i4").tobytes())
    for example in split.examples:
        digest.update(json.dumps([example.id, example.answer, example.aliases, example.part]).encode() + b"\n")
    return digest.hexdigest()[:16]


def _pad(rows: Sequence[Sequence[int]], width: int, value: int) -> tuple[np.ndarray, np.ndarray]:
    padded = np.full((len(rows), width), value, np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded, np.array([len(row) for row in rows], np.int32)


def encode_answer(example: Example, tokenizer: Tokenizer, markers: Markers) -> list[int]:
    """Encodes the gold answer and its end, independently of the text before it (docs/method.md §4)."""
    return [*tokenizer.encode(example.answer), markers.end_of_answer]


def _fit(example: Example, tokenizer: Tokenizer, markers: Markers, max_prompt: int) -> tuple[Example, list[int]] | None:
    """Trims an example to a prompt of `max_prompt` tokens → it and its prompt ids; None if it cannot fit."""
    ids = tokenizer.encode_prompt(example.prompt, markers.think_prefix)
    shortened = 0
    while len(ids) > max_prompt:
        shortened += 1
        prompt = example.shorten(shortened) if example.shorten else None
        if prompt is None:
            return None
        ids = tokenizer.encode_prompt(prompt, markers.think_prefix)
    return (dataclasses.replace(example, prompt=prompt) if shortened else example), ids


def encode_split(
    split: Split, tokenizer: Tokenizer, markers: Markers, *, max_prompt: int, max_answer: int
) -> EncodedSplit:
    """Encodes a split into arrays of width `max_prompt` and `max_answer`.

    A prompt that is too long is trimmed if its example allows it. Examples that still do not fit are dropped, counted,
    as are those whose prompt has no token, behind which nothing can be predicted.

    Raises:
      UserError: the model's chat template cannot render the messages of an example, which is named.
    """
    left_out: dict[str, list[str]] = {}
    prompts, answers, kept = [], [], []
    trimmed = 0
    for example in split.examples:
        answer = encode_answer(example, tokenizer, markers)
        if len(answer) > max_answer:
            left_out.setdefault(f"answer longer than task.max_answer={max_answer} tokens", []).append(example.id)
            continue
        try:
            fitted = _fit(example, tokenizer, markers, max_prompt)
        except UnrenderedPrompt as error:
            raise UserError(f"example {example.id!r}: {error}; change its messages, or leave it out") from None
        if fitted is None:
            left_out.setdefault(f"prompt longer than task.max_prompt={max_prompt} tokens", []).append(example.id)
            continue
        as_trimmed, ids = fitted
        if not ids:  # of a tokeniser that puts nothing before a sequence
            left_out.setdefault("prompt without any token", []).append(example.id)
            continue
        trimmed += as_trimmed is not example
        kept.append(as_trimmed)
        prompts.append(ids)
        answers.append(answer)
    prompt, prompt_length = _pad(prompts, max_prompt, tokenizer.pad)
    answer, answer_length = _pad(answers, max_answer, tokenizer.pad)
    dropped = {**split.dropped, **count_reasons(left_out)}
    return EncodedSplit(
        prompt=prompt,
        prompt_length=prompt_length,
        answer=answer,
        answer_length=answer_length,
        examples=tuple(kept),
        dropped=dropped,
        trimmed=trimmed,
    )


def unattainable_golds(encoded: EncodedSplit, tokenizer: Tokenizer, markers: Markers, task: Task) -> dict[str, int]:
    """Counts gold answers that a model cannot be credited for though it says them token by token: reason → number.

    Each is graded against its own decoded tokens, and may hold no token that ends an answer.
    """
    found: dict[str, list[str]] = collections.defaultdict(list)
    for example, row, length in zip(encoded.examples, encoded.answer, encoded.answer_length, strict=True):
        gold = row[: length - 1].tolist()
        if set(gold) & set(markers.stop_ids):
            found["gold answers that hold a token that ends an answer"].append(example.id)
            continue
        grades = task.grade(tokenizer.decode(gold), example)
        for metric in dict.fromkeys((task.metric, *({"exact"} & grades.keys()))):
            if grades.get(metric, 0.0) < 1:
                found[f"gold answers that {metric!r} grades as wrong"].append(example.id)
    return count_reasons(found)
