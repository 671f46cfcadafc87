"""The order of the training examples, a function of (seed, step) and of the data."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Lengths(NamedTuple):
    """The lengths by which prompts of similar length are put in a batch.

    Attributes:
      of_prompts: [examples] tokens.
      window: how many batches of an epoch have their examples sorted by length together.
    """

    of_prompts: np.ndarray
    window: int


class DataOrder:
    """The order in which a run trains on its examples: epoch follows epoch, each drawn from (seed, epoch).

    The examples' parts are spread evenly over an epoch, so that every batch holds them in the split's proportions. Each
    example comes once an epoch, with and without `lengths`. The last epochs are kept: sorting a long one takes time.

    Args:
      parts: of each training example.
      batch: P.
      seed: config.seed.
      lengths: None leaves lengths to chance.
    """

    def __init__(self, parts: Sequence[str], batch: int, seed: int, lengths: Lengths | None = None):
        self._parts = np.unique(parts, return_inverse=True)[1]
        self._batch, self._seed, self._lengths = batch, seed, lengths
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)  # a batch may straddle two

    def batch(self, step: int) -> np.ndarray:
        """Returns the indices [P] of the examples that the step after `step` updates trains on."""
        return self._batches(step, step + 1)[0]

    def further_batches(self, step: int, buckets: np.ndarray) -> np.ndarray:
        """Returns the examples [n, P] of the other batches of a step's epoch, in the order in which it may use them.

        The batches of an epoch form a ring, sorted by the width of their longest prompt, ties in an order drawn from
        (seed, epoch). A step begins after its own batch, at neighbours in width. Over the steps of an epoch, the r-th
        further batches are therefore a permutation of its batches: for each r, an example is offered once an epoch.

        Args:
          step: updates made so far.
          buckets: [examples] the width that each prompt is padded to, or a number that grows with it.
        """
        examples = len(self._parts)
        epoch = step * self._batch // examples
        first, stop = (-(-at * examples // self._batch) for at in (epoch, epoch + 1))  # steps that begin in the epoch
        batches = self._batches(first, stop)
        chance = np.random.default_rng([self._seed, epoch, 3]).random(len(batches))
        ring = np.lexsort((chance, buckets[batches].max(axis=1)))
        own = int(np.flatnonzero(ring == step - first)[0])
        return batches[np.roll(ring, -own)[1:]]

    def _batches(self, first: int, stop: int) -> np.ndarray:
        """Returns the indices [n, P] of the examples of the steps from `first` to before `stop`."""
        positions = np.arange(first * self._batch, stop * self._batch)
        found, epochs = np.empty_like(positions), positions // len(self._parts)
        for epoch in np.unique(epochs).tolist():
            found[epochs == epoch] = self._epoch(epoch)[positions[epochs == epoch] % len(self._parts)]
        return found.reshape(-1, self._batch)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        """Orders the examples of an epoch: the k-th of a part's n is placed at (k + ½)/n of the epoch."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._parts))
        way, shuffled = np.empty(len(order)), self._parts[order]
        for part in range(self._parts.max() + 1):
            of_part = shuffled == part
            way[of_part] = (np.arange(of_part.sum()) + 0.5) / of_part.sum()
        order = order[np.argsort(way, kind="stable")]
        if self._lengths is None:
            return order
        return _by_length(order, self._parts[order], self._batch, [self._seed, epoch], self._lengths)


def _by_length(order: np.ndarray, parts: np.ndarray, batch: int, seed: list[int], lengths: Lengths) -> np.ndarray:
    """Exchanges examples of a part within a window, so that each batch holds neighbours in length.

    Every batch draws a number. The batches of a window take its examples, sorted by length, in the order of these
    numbers, so that short and long batches come in random order. A batch that straddles two epochs has the same number
    in both, so that its two pieces have similar lengths.

    Args:
      order: the examples of the epoch.
      parts: the part of each example, as a number.
      batch: P.
      seed: config.seed and the epoch.
      lengths: see `Lengths`.
    """
    first = seed[1] * len(order)
    batches = np.arange(first, first + len(order)) // batch - first // batch
    count = batches[-1] + 1
    rng = np.random.default_rng([*seed, 2])
    numbers, within = rng.random(count), rng.random(len(order))
    for at, epoch in ((0, seed[1]), (-1, seed[1] + 1)):
        numbers[at] = np.random.default_rng([seed[0], epoch, 1]).random()
    windows = batches * max(1, round(count / lengths.window)) // count
    sorted_by_length = order[np.lexsort((lengths.of_prompts[order], parts, windows))]
    ordered = np.empty_like(order)
    ordered[np.lexsort((within, numbers[batches], parts, windows))] = sorted_by_length
    return ordered
