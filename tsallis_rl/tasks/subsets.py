"""Subsets of records, chosen by the hash of their ids: the same in every run, whatever the seed."""

import hashlib
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from tsallis_rl.tasks.base import Example, Split, count_reasons


def split_sizes(task: ConfigDict) -> dict[str, int]:
    """Reads from config.task how many examples each split is to have; 0 = all."""
    return {"train": task.train_examples, "validation": task.validation_examples, "test": task.test_examples}


def hash_id(id: str) -> int:
    """Hashes an id: the first 8 bytes of its SHA-256, as a number. Every choice of examples uses it."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8])


def is_validation(id: str) -> bool:
    """Returns whether a development record belongs to validation (`hash_id` even) or to test (odd)."""
    return hash_id(id) % 2 == 0


def choose(ids: Sequence[str], indices: Sequence[int], make: Callable[[int], Example | str], size: int) -> Split:
    """Chooses the first `size` usable records by `hash_id`, and returns them in file order.

    Args:
      ids: the id of every record.
      indices: the records to choose from.
      make: index -> its example, or the reason why it gives none; reasons are counted over the records looked at.
      size: number of examples wanted; 0 = all.
    """
    examples: dict[int, Example] = {}

    def keep(i: int) -> str:
        made = make(i)
        if isinstance(made, str):
            return made
        examples[i] = made
        return ""

    chosen, dropped = choose_indices(ids, indices, keep, size)
    return Split([examples[i] for i in chosen], dropped)


def choose_indices(
    ids: Sequence[str], indices: Sequence[int], refuse: Callable[[int], str], size: int
) -> tuple[list[int], dict[str, int]]:
    """Chooses the first `size` usable records by `hash_id` → their indices in file order, and what was left out.

    Args:
      ids: the id of every record.
      indices: the records to choose from.
      refuse: index -> the reason why a record gives no example, "" where it gives one.
      size: number of examples wanted; 0 = all.
    """
    chosen: list[int] = []
    left_out: dict[str, list[int]] = {}
    for i in sorted(indices, key=lambda i: hash_id(ids[i])) if size else indices:
        if size and len(chosen) == size:
            break
        if reason := refuse(i):
            left_out.setdefault(reason, []).append(i)
        else:
            chosen.append(i)
    return sorted(chosen), count_reasons({reason: [ids[i] for i in sorted(at)] for reason, at in left_out.items()})
