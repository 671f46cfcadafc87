"""The order of the training examples, a function of (seed, step) and of the data."""

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


def batch_indices(parts: Sequence[str], batch: int, seed: int, step: int, lengths: Lengths | None = None) -> np.ndarray:
    """Returns the indices [P] of the examples that step `step` trains on.

    Epoch follows epoch, each in an order drawn from (seed, epoch). The examples' parts are spread evenly over the
    epoch, so that every batch holds them in the split's proportions. Each example comes once an epoch, with and
    without `lengths`.

    Args:
      parts: of each training example.
      batch: P.
      seed: config.seed.
      step: updates made so far.
      lengths: None leaves lengths to chance.
    """
    return _batches(parts, batch, seed, (step, step + 1), lengths)[0]


def further_batches(
    parts: Sequence[str], batch: int, seed: int, step: int, lengths: Lengths | None, buckets: np.ndarray
) -> np.ndarray:
    """Returns the examples [n, P] of the other batches of a step's epoch, in the order in which the step may use them.

    The batches of an epoch form a ring, sorted by the width of their longest prompt, ties in an order drawn from (seed,
    epoch). A step begins after its own batch, at neighbours in width. Over the steps of an epoch, the r-th further
    batches are therefore a permutation of its batches, and each example is offered once an epoch for each r.

    Args:
      parts: of each training example.
      batch: P.
      seed: config.seed.
      step: updates made so far.
      lengths: as for `batch_indices`.
      buckets: [examples] the width that each prompt is padded to, or a number that grows with it.
    """
    epoch = step * batch // len(parts)
    first, stop = (-(-at * len(parts) // batch) for at in (epoch, epoch + 1))  # steps that begin in the epoch
    batches = _batches(parts, batch, seed, (first, stop), lengths)
    chance = np.random.default_rng([seed, epoch, 3]).random(len(batches))
    ring = np.lexsort((chance, buckets[batches].max(axis=1)))
    own = int(np.flatnonzero(ring == step - first)[0])
    return batches[np.roll(ring, -own)[1:]]


def _batches(
    parts: Sequence[str], batch: int, seed: int, steps: tuple[int, int], lengths: Lengths | None
) -> np.ndarray:
    """Returns the indices [n, P] of the examples of n steps, from the first of `steps` to before the second."""
    positions = np.arange(steps[0] * batch, steps[1] * batch)
    found = np.empty_like(positions)
    for epoch in set(positions // len(parts)):
        of_epoch = positions // len(parts) == epoch
        found[of_epoch] = _epoch_order(parts, batch, seed, epoch, lengths)[positions[of_epoch] % len(parts)]
    return found.reshape(-1, batch)


def _epoch_order(parts: Sequence[str], batch: int, seed: int, epoch: int, lengths: Lengths | None) -> np.ndarray:
    """Orders the examples of an epoch: the k-th of a part's n is placed at (k + ½)/n of the epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(parts))
    way, shuffled = np.empty(len(parts)), np.asarray(parts)[order]
    for part in set(parts):
        of_part = shuffled == part
        way[of_part] = (np.arange(of_part.sum()) + 0.5) / of_part.sum()
    order = order[np.argsort(way, kind="stable")]
    if lengths is None:
        return order
    return _by_length(order, np.unique(parts, return_inverse=True)[1][order], batch, [seed, epoch], lengths)


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
