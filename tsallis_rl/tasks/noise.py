"""Wrong labels: a share of training examples gets the gold answer of another example."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Example, Split
from tsallis_rl.tasks.graders import normalize

# Of the random numbers, after the seed. Of [seed, 3], as it was, the order of epoch 3 is made too (`data_order`): that
# epoch began with all wrong labels. NumPy takes [seed, 3, 0] for [seed, 3].
_PURPOSE = (3, 0, 1)
_TRIES = 100  # draws of another label, before those that can be drawn are listed


def mislabel(split: Split, share: float, seed: int) -> Split:
    """Replaces round(share · n) answers of a split, chosen by the seed, by the answer of another example.

    The other example is of the same part, so that a wrong label looks like a right one, and neither's answer is the
    other's or one of its aliases, normalised as HotPotQA does.

    Args:
      split: the split.
      share: share of the examples, in [0, 1].
      seed: chooses the examples and their wrong answers.

    Raises:
      UserError: an example's label cannot be wrong, since all of its part have the same answer.
    """
    labels = [_Label(e.part, e.answer, e.aliases) for e in split.examples]
    parts = {part: [label for label in labels if label.part == part] for part in {label.part for label in labels}}
    rng = np.random.default_rng([seed, *_PURPOSE])
    wrong: dict[int, _Label] = {}
    for i in rng.permutation(len(labels))[: round(share * len(labels))].tolist():
        own, others = labels[i], parts[labels[i].part]
        drawn = (others[rng.integers(len(others))] for _ in range(_TRIES))
        found = next((label for label in drawn if _differ(label, own)), None)
        if found is None:
            accepted = [label for label in others if _differ(label, own)]
            if not accepted:
                raise UserError(f"config.task.label_noise={share}: there is no other answer than {own.answer!r}")
            found = accepted[rng.integers(len(accepted))]
        wrong[i] = found
    return dataclasses.replace(split, examples=_Mislabelled(split.examples, wrong, f"{share}, seed {seed}"))


class _Label(NamedTuple):
    """An example's label, with the example's part."""

    part: str
    answer: str
    aliases: tuple[str, ...]


def _differ(one: _Label, other: _Label) -> bool:
    """Returns whether neither label's answer is the other's, or one of its aliases."""
    mine, theirs = ([normalize(text) or text for text in (x.answer, *x.aliases)] for x in (one, other))
    return mine[0] not in theirs and theirs[0] not in mine


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
