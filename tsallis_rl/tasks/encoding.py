"""Encodes examples into arrays of token ids, once per run; all rollouts of an example share them."""

import array
import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.progress import Bar
from tsallis_rl.tasks.base import Example, Split, Task, count_reasons
from tsallis_rl.tasks.chat_template import UnrenderedPrompt
from tsallis_rl.tasks.grading import is_correct
from tsallis_rl.tasks.markers import Markers
from tsallis_rl.tasks.token_rows import TokenRows
from tsallis_rl.tasks.tokenizers import Tokenizer

_BATCH = 256  # examples that are tokenised at once
_CHUNK = 1 << 20  # ids that are hashed at once


class Head(NamedTuple):
    """An example without its prompt: its id, and what its answers are graded by."""

    id: str
    answer: str
    aliases: tuple[str, ...]
    part: str


class EncodedExamples(Sequence):
    """Examples of an encoded split with their prompts as trimmed, each made on access.

    Args:
      source: examples of the split that was encoded.
      kept: int64 [P], the index of each in `source`.
      shortened: int32 [P], how many passages were left out of each.
    """

    def __init__(self, source: Sequence[Example], kept: np.ndarray, shortened: np.ndarray):
        self.source, self.kept, self.shortened = source, kept, shortened

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, i: int | slice) -> Example | list[Example]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        example, shortened = self.source[int(self.kept[i])], int(self.shortened[i])
        return dataclasses.replace(example, prompt=example.shorten(shortened)) if shortened else example


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """A split as the model reads it: P examples.

    Attributes:
      prompts: prompt ids.
      answers: gold answer ids, each row ending with the end-of-answer id, which is scored too.
      examples: the P examples, in the same order, with their prompts as trimmed.
      heads: one per example.
      dropped: reason -> number of examples left out.
      max_prompt: T0, the width of the longest batch.
      max_answer: A.
      pad: id that fills a row after its end.
      before: token counts of all prompts before trimming and of all answers, of left-out examples too.
      widths: prompt widths that batches are padded to, in rising order, the last at most T0; empty: T0 alone.
      digest: `fingerprint` of the split, or "" if not known yet.
    """

    prompts: TokenRows
    answers: TokenRows
    examples: Sequence[Example]
    heads: Sequence[Head]
    dropped: Mapping[str, int]
    max_prompt: int
    max_answer: int
    pad: int = 0
    before: tuple[np.ndarray, np.ndarray] = (np.zeros(0, np.int32), np.zeros(0, np.int32))
    widths: tuple[int, ...] = ()
    digest: str = ""

    def __len__(self) -> int:
        return len(self.heads)

    @functools.cached_property
    def prompt_length(self) -> np.ndarray:
        """Lengths of the prompts, int32 [P]."""
        return self.prompts.lengths

    @functools.cached_property
    def answer_length(self) -> np.ndarray:
        """Lengths of the answers with their end-of-answer id, int32 [P]."""
        return self.answers.lengths

    @functools.cached_property
    def parts(self) -> list[str]:
        """Lists each example's part."""
        return [head.part for head in self.heads]

    @property
    def trimmed(self) -> int:
        """Counts the examples whose prompt was shortened."""
        return int(np.count_nonzero(self.examples.shortened)) if isinstance(self.examples, EncodedExamples) else 0

    def width(self, indices: np.ndarray) -> int:
        """Returns the smallest width that holds the prompts of the examples at `indices` [P]."""
        longest = self.prompt_length[indices].max()
        return min(width for width in (*self.widths, self.max_prompt) if width >= longest)

    def prompt_at(self, indices: Sequence[int], width: int) -> np.ndarray:
        """Pads the prompts at `indices` [n] to a width: int32 [n, width]."""
        return self.prompts.padded(indices, width, self.pad)

    def answer_at(self, indices: Sequence[int]) -> np.ndarray:
        """Pads the answers at `indices` [n]: int32 [n, A]."""
        return self.answers.padded(indices, self.max_answer, self.pad)


def fingerprint(split: EncodedSplit) -> str:
    """Hashes what a run trains on or is graded by: all ids of prompts and answers, and the examples' heads.

    Widths and padding are left out. Splits with equal fingerprints have the same examples in the same order.
    """
    if split.digest:
        return split.digest
    digest = hashlib.sha256()
    for rows in (split.prompts, split.answers):
        digest.update(rows.lengths.astype("<i4").tobytes())
        for first in range(0, len(rows.ids), _CHUNK):
            digest.update(rows.ids[first : first + _CHUNK].astype("<i4").tobytes())
    for head in split.heads:
        digest.update(json.dumps(head).encode() + b"\n")
    return digest.hexdigest()[:16]


def encode_answer(example: Example, tokenizer: Tokenizer, markers: Markers) -> list[int]:
    """Encodes the gold answer and its end, independently of the text before it (docs/method.md §4)."""
    return [*tokenizer.encode(example.answer), markers.end_of_answer]


def encode_aliases(split: EncodedSplit, index: int, tokenizer: Tokenizer, markers: Markers) -> list[list[int]]:
    """Encodes an example's aliases, each with its end; leaves out the gold answer and aliases longer than A."""
    gold = tuple(split.answers.row(index).tolist())
    encoded = [(*tokenizer.encode(alias), markers.end_of_answer) for alias in split.heads[index].aliases]
    return [list(ids) for ids in dict.fromkeys(encoded) if ids != gold and len(ids) <= split.max_answer]


def _encode_prompts(examples: Sequence[Example], prompts: list, tokenizer: Tokenizer, prefix: str) -> list[list[int]]:
    """Encodes the prompts of some examples, in one batch if the tokeniser can; names one that cannot be rendered."""
    try:
        if batched := getattr(tokenizer, "encode_prompts", None):
            return batched(prompts, prefix)
    except UnrenderedPrompt:
        pass
    ids = []
    for example, prompt in zip(examples, prompts, strict=True):
        try:
            ids.append(tokenizer.encode_prompt(prompt, prefix))
        except UnrenderedPrompt as error:
            raise UserError(f"example {example.id!r}: {error}; change its messages, or leave it out") from None
    return ids


class _Fitted(NamedTuple):
    """A prompt, trimmed if need be: its ids, or None if it cannot fit; passages left out; tokens before trimming."""

    ids: list[int] | None
    shortened: int
    before: int


def _read_whole(examples: Sequence[Example], tokenizer: Tokenizer, prefix: str) -> list[_Fitted]:
    """Encodes prompts without trimming."""
    prompts = _encode_prompts(examples, [example.prompt for example in examples], tokenizer, prefix)
    return [_Fitted(ids, 0, len(ids)) for ids in prompts]


def _read_wider(wider: EncodedSplit, indices: Iterable[int]) -> list[_Fitted]:
    """Takes the prompts at some indices of a split as trimmed to a larger width; `wider.examples.kept` is sorted."""
    kept, fitted = wider.examples.kept, []
    for i in indices:
        at, before = int(np.searchsorted(kept, i)), int(wider.before[0][i])
        if at < len(kept) and kept[at] == i:
            fitted.append(_Fitted(wider.prompts.row(at).tolist(), int(wider.examples.shortened[at]), before))
        else:
            fitted.append(_Fitted(None if before else [], 0, before))
    return fitted


def _trim(
    fitted: list[_Fitted], examples: Sequence[Example], tokenizer: Tokenizer, prefix: str, max_prompt: int
) -> list[_Fitted]:
    """Trims prompts that are longer than `max_prompt` tokens, one passage at a time."""
    fitted = [*fitted]
    while long := [i for i, found in enumerate(fitted) if found.ids is not None and len(found.ids) > max_prompt]:
        prompts = {}
        for i in long:
            shortened, shorten = fitted[i].shortened + 1, examples[i].shorten
            prompt = shorten(shortened) if shorten else None
            fitted[i] = fitted[i]._replace(ids=None, shortened=shortened)
            if prompt is not None:
                prompts[i] = prompt
        encoded = _encode_prompts([examples[i] for i in prompts], list(prompts.values()), tokenizer, prefix)
        for i, ids in zip(prompts, encoded, strict=True):
            fitted[i] = fitted[i]._replace(ids=ids)
    return fitted


class _Rows:
    """Rows of ids, added one by one, in no more memory than the ids take."""

    def __init__(self):
        self._ids, self._lengths = array.array("i"), [0]

    def add(self, row: Sequence[int]) -> None:
        self._ids.extend(row)
        self._lengths.append(len(row))

    def rows(self) -> TokenRows:
        ids = np.frombuffer(self._ids, np.int32) if self._ids else np.zeros(0, np.int32)
        return TokenRows(ids, np.cumsum(self._lengths, dtype=np.int64))


def encode_split(
    split: Split,
    tokenizer: Tokenizer,
    markers: Markers,
    *,
    max_prompt: int,
    max_answer: int,
    name: str = "",
    wider: EncodedSplit | None = None,
) -> EncodedSplit:
    """Encodes a split in batches of examples, with a progress bar labelled by `name`.

    `wider` is the same split, encoded to a larger `max_prompt`: only prompts too long for this one are encoded again.

    A prompt that is too long is trimmed if its example allows it. Examples that still do not fit are dropped and
    counted. So are those whose prompt has no token, since nothing can be predicted from it.

    Raises:
      UserError: the model's chat template cannot render the messages of an example, which is named.
    """
    left_out: dict[str, list[str]] = {}
    prompts, answers, heads = _Rows(), _Rows(), []
    kept, shortened, before = [], [], ([], [])
    total = len(split.examples)
    with Bar(total=total, desc=f"tokenise {name}".strip(), unit=" examples", leave=False, delay=1) as progress:
        for first in range(0, total, _BATCH):
            examples = split.examples[first : first + _BATCH]
            prefix = markers.think_prefix
            indices = range(first, first + len(examples))
            fitted = _read_wider(wider, indices) if wider is not None else _read_whole(examples, tokenizer, prefix)
            fitted = _trim(fitted, examples, tokenizer, prefix, max_prompt)
            for i, (example, found) in enumerate(zip(examples, fitted, strict=True), first):
                answer = encode_answer(example, tokenizer, markers)
                before[0].append(found.before)
                before[1].append(len(answer))
                reason = ""
                if len(answer) > max_answer:
                    reason = f"answer longer than task.max_answer={max_answer} tokens"
                elif found.ids is None:
                    reason = f"prompt longer than task.max_prompt={max_prompt} tokens"
                elif not found.ids:  # the tokeniser puts nothing before a sequence
                    reason = "prompt without any token"
                if reason:
                    left_out.setdefault(reason, []).append(example.id)
                    continue
                prompts.add(found.ids)
                answers.add(answer)
                heads.append(Head(example.id, example.answer, tuple(example.aliases), example.part))
                kept.append(i)
                shortened.append(found.shortened)
            progress.update(len(examples))
    return EncodedSplit(
        prompts=prompts.rows(),
        answers=answers.rows(),
        examples=EncodedExamples(split.examples, np.array(kept, np.int64), np.array(shortened, np.int32)),
        heads=heads,
        dropped={**split.dropped, **count_reasons(left_out)},
        max_prompt=max_prompt,
        max_answer=max_answer,
        pad=tokenizer.pad,
        before=(np.array(before[0], np.int32), np.array(before[1], np.int32)),
    )


def unattainable_golds(encoded: EncodedSplit, tokenizer: Tokenizer, markers: Markers, task: Task) -> dict[str, int]:
    """Counts gold answers that earn no credit even if a model writes them token by token: reason → number.

    Each is graded as decoded from its own tokens, and must hold no token that ends an answer.
    """
    found: dict[str, list[str]] = collections.defaultdict(list)
    for i, example in enumerate(encoded.examples):
        gold = encoded.answers.row(i)[:-1].tolist()
        if set(gold) & set(markers.stop_ids):
            found["gold answers that hold a token that ends an answer"].append(example.id)
            continue
        grades = task.grade(tokenizer.decode(gold), example)
        for metric in dict.fromkeys((task.metric, *({task.reward} & grades.keys()))):
            if not is_correct(grades, metric):
                found[f"gold answers that {metric!r} grades as wrong"].append(example.id)
    return count_reasons(found)
