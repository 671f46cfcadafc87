"""Bucket sizes: the few shapes that sampler and update are compiled for."""

from collections.abc import Sequence

SIXTEENTHS = (16, 12, 8, 6, 4, 2, 1)  # sizes of buckets, in sixteenths of the full size
MIN_LENGTH_STEP = 64  # least tokens between two lengths of an update
MAX_LENGTHS = 8  # most lengths of an update


def sixteenth_buckets(full: int, shares: Sequence[int] = SIXTEENTHS) -> list[int]:
    """Lists the buckets of a size, in rising order: share/16 of it for each of `shares`, rounded down, without 0."""
    return sorted({full * share // 16 for share in shares} - {0})


def smallest_bucket(buckets: Sequence[int], needed: int) -> int:
    """Returns the smallest bucket that holds what is needed."""
    return min(size for size in buckets if size >= needed)


def length_bucket(longest: int, needed: int) -> int:
    """Returns the shortest length of an update's rows, at most `longest`, that holds `needed` tokens."""
    step = max(MIN_LENGTH_STEP, -(-longest // MAX_LENGTHS))
    return smallest_bucket(range(longest % step or step, longest + 1, step), needed)


def quarter_bucket(size: int, needed: int, multiple: int = 1) -> int:
    """Divides a size by four as long as it still holds what is needed and stays divisible by `multiple`."""
    while size % (4 * multiple) == 0 and size // 4 >= needed:
        size //= 4
    return size


def halving_bucket(size: int, needed: int) -> int:
    """Returns the smallest bucket that is at least `needed`: the size, three quarters of it, or a halving of either."""
    halvings = range(size.bit_length())
    return smallest_bucket([n for i in halvings for n in (size >> i, (3 * size) >> (i + 2))], max(needed, 1))
