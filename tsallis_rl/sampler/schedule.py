"""Plans when the sampler grows its caches and how many rows it computes, in integers and without a device."""

import dataclasses
import sys

import numpy as np

from tsallis_rl.sampler.buckets import SIXTEENTHS, sixteenth_buckets, smallest_bucket


@dataclasses.dataclass(frozen=True)
class ScheduleLimits:
    """The constants of a schedule; other values change memory and speed, never a rollout.

    Attributes:
      min_segment: least growth of the cache, in tokens.
      max_segments: the most growths, approximately.
      compact_from: rollout length in tokens from which finished rows are retired; shorter rollouts end before it pays.
      row_shares: row counts that are compiled, in sixteenths of all rows.
      merged_batches: n: batches that finish together; the next one starts when 1/n of the rows still run.
      grows: whether the cache grows from segment to segment. If not, it has room for all tokens from the start, for
        kernels that read only its filled part, and one program decodes all segments.
    """

    min_segment: int = 32
    max_segments: int = 6
    compact_from: int = 128
    row_shares: tuple[int, ...] = SIXTEENTHS
    merged_batches: int = 4
    grows: bool = True

    def compacts(self, total: int) -> bool:
        """Returns whether finished rows are retired early, for rollouts of up to `total` tokens."""
        return total >= self.compact_from


# Slots of a prompt, in even shares of the rows: prompts of which somewhat more still run need no other program.
SLOT_ROOM = 1.25

NO_COMPACTION = ScheduleLimits(compact_from=sys.maxsize)  # every rollout keeps its row until all are finished


def rollout_tokens(max_rationale: int, fixed: int, answer: int) -> int:
    """Counts the tokens of the longest rollout: rationale, end-of-think and joint (L + J together), and answer (A)."""
    return max_rationale + fixed + answer


@dataclasses.dataclass(frozen=True)
class DecodeSchedule:
    """Cache lengths, row counts and slots of rollouts of at most `total` tokens.

    Attributes:
      total: the most tokens decoded for a rollout.
      num_rollouts: M.
      prompts: prompts of a shard that start together.
      limits: see `ScheduleLimits`.

    With total = 200, M = 32, 4 prompts a shard and the limits' defaults:

        segment_ends   (33, 66, 99, 132, 165, 201), which are also the cache's lengths
        row_counts     (8, 16, 32, 48, 64, 96, 128)
    """

    total: int
    num_rollouts: int
    prompts: int
    limits: ScheduleLimits = ScheduleLimits()

    @property
    def compacts(self) -> bool:
        """Whether finished rows are retired before all are finished."""
        return self.limits.compacts(self.total)

    @property
    def segment_ends(self) -> tuple[int, ...]:
        """Tokens after each segment, in rising order; the last counts one more, as the cache does (`cache_lengths`)."""
        step = max(self.limits.min_segment, (self.total + 1) // self.limits.max_segments)
        return (*range(step, self.total + 2 - step // 2, step), self.total + 1)

    @property
    def cache_lengths(self) -> tuple[int, ...]:
        """Lengths of the cache, in rising order; the last has a scratch column, to which finished batches write."""
        return self.segment_ends if self.limits.grows else self.segment_ends[-1:]

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """The cache length and the steps of every segment."""
        ends = self.segment_ends
        return tuple(
            (self.cache_length(end), steps) for end, steps in zip(ends, np.diff([0, *ends]).tolist(), strict=True)
        )

    @property
    def max_steps(self) -> int:
        """The most steps of a segment."""
        return max(steps for _, steps in self.segments)

    def cache_length(self, tokens: int) -> int:
        """Returns the shortest cache length that holds `tokens` tokens."""
        return next(n for n in self.cache_lengths if n >= tokens)

    def segment_end(self, tokens: int) -> int:
        """Returns the end of the segment that continues after `tokens` tokens."""
        return next(n for n in self.segment_ends if n > tokens)

    @property
    def rows(self) -> int:
        """Rows of a shard at the start."""
        return self.prompts * self.num_rollouts

    @property
    def row_counts(self) -> tuple[int, ...]:
        """Row counts that a shard may have, in rising order; each is compiled when it is first needed."""
        return tuple(sixteenth_buckets(self.rows, self.limits.row_shares)) if self.compacts else (self.rows,)

    @property
    def leftover(self) -> int:
        """Rows of a shard that still run when the next prompts start."""
        return self.rows // self.limits.merged_batches

    def rows_for(self, running: int) -> int:
        """Returns the smallest row count that holds `running` rollouts."""
        return smallest_bucket(self.row_counts, running)

    def stop_at(self, rows: int, leftover: int = 0) -> int:
        """Returns how many running rollouts end a segment of `rows` rows: the next smaller row count, or `leftover`."""
        return max([n for n in self.row_counts if n < rows], default=leftover)

    def slots(self, rows: int, prompts: int, most: int) -> int:
        """Returns the slots of each prompt for `rows` rows of a shard with `prompts` prompts.

        Args:
          rows: rows of the shard that need a slot.
          prompts: prompts of the shard, those of merged batches included.
          most: the most such rows of one prompt.
        """
        wanted = min(max(most, SLOT_ROOM * rows / prompts), self.num_rollouts)
        return smallest_bucket(sixteenth_buckets(self.num_rollouts, self.limits.row_shares), wanted)
