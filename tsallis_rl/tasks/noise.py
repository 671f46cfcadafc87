"""Wrong labels: a share of training examples gets the gold answer of another example."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Example, Split


def mislabel(split: Split, share: float, seed: int) -> Split:
    """Replaces round(share · n) answers of a split, chosen by the seed, by the answer of another example.

    The other example is of the same part and has a different answer, so that a wrong label looks like a right one.

    Args:
      split: the split.
      share: share of the examples, in [0, 1].
      seed: chooses the examples and their wrong answers.

    Raises:
      UserError: a part has only one answer, so that none of its labels can be wrong.
    """
    labels = [_Label(e.part, e.answer, e.aliases) for e in split.examples]
    parts = {part: [label for label in labels if label.part == part] for part in {label.part for label in labels}}
    for others in parts.values():
        if share and len({other.answer for other in others}) == 1:
            raise UserError(f"config.task.label_noise={share}: there is no other answer than {others[0].answer!r}")
    rng = np.random.default_rng([seed, 3])
    wrong: dict[int, _Label] = {}
    for i in rng.permutation(len(labels))[: round(share * len(labels))].tolist():
        others = parts[labels[i].part]
        wrong[i] = labels[i]
        while wrong[i].answer == labels[i].answer:
            wrong[i] = others[rng.integers(len(others))]
    return dataclasses.replace(split, examples=_Mislabelled(split.examples, wrong, f"{share}, seed {seed}"))


class _Label(NamedTuple):
    """An example's label, with the example's part."""

    part: str
    answer: str
    aliases: tuple[str, ...]


class _Mislabelled(Sequence):
    """Examples, some with a wrong answer, each made on access.

    Args:
      source: the examples with their own answers.
      wrong: index -> its wrong label.
      how: the settings that determine the wrong labels.
    """

    def __init__(self, source: Sequence[Example], wrong: Mapping[int, _Label], how: str):
        self._source, self._wrong = source, wrong
        known = getattr(source, "fingerprint", "")
        self.fingerprint = f"{known}, wrong labels {how}" if known else ""

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int | slice) -> Example | list[Example]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        label = self._wrong.get(range(len(self))[i])
        example = self._source[i]
        return dataclasses.replace(example, answer=label.answer, aliases=label.aliases) if label else example
