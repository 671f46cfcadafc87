"""The sampler: M rationales for each of P prompts, drawn, closed and scored.

The prompt is read once a group. Rollouts are decoded a segment at a time, by whose length the cache grows. Once few
enough rollouts still run, those that are done are scored and leave, and the others go on in arrays of fewer rows, which
all prompts of a device share. Where only some of the prompts are rolled out at a time, the next take the place of those
of whose rollouts a quarter is left; four waves' quarters then end together, in arrays as large as one wave's. The gold
answer is scored behind a rationale by extending the rollout's own key-value cache (METHOD §4).

`decoding` holds the programs; here it is decided which of them run when.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from tsallis_rl.models import Architecture
from tsallis_rl.sampler import decode as decoding
from tsallis_rl.sampler.record import Group, Rollouts, Sampling

MIN_SEGMENT, MAX_SEGMENTS = 32, 6  # the cache grows by at least so many tokens, and about so many times
LONG = 128  # tokens of a stream from which on rollouts that are done leave; shorter ones are over before it pays
SIXTEENTHS = (16, 12, 8, 6, 4, 2, 1)  # of a wave's rollouts that there are arrays for
TAIL = 4  # one in so many rollouts of a wave waits for the next waves, so many waves' end together


class _Wave(NamedTuple):
    """Prompts that are rolled out together.

    Attributes:
      group: of P prompts, W of each place in a first wave where waves were joined.
      keys: [P].
      prompt: their keys and values.
      loop: where those of their rollouts stand that have not left.
      since: [W] the steps from which on the loop has had as many rows as now.
      left: of those that left, places and record; empty as long as each prompt has rows of its own.
    """

    group: Group
    keys: Array
    prompt: Any
    loop: Any
    since: np.ndarray
    left: list[tuple]


class _Sampler:
    """Decides which program runs when, for waves of prompts that share all but prompts and keys.

    Attributes:
      work: tokens that have been computed, those of rows whose rollout was done included.
    """

    def __init__(
        self, params: dict, sampling: Sampling, arch: Architecture, num_rollouts: int, lanes: int, total: int,
        max_answer: int, is_letting_go: bool,
    ):  # fmt: skip
        apart, layers = decoding.together(params, arch=arch)
        self.inputs = (params | apart, layers)  # the stacked layers are there for their shape: no program reads them
        self.sampling, self.num_rollouts, self.lanes = sampling, num_rollouts, lanes
        self.total, self.is_letting_go = total, is_letting_go
        self.static = {"arch": arch, "num_rollouts": num_rollouts, "lanes": lanes, "max_answer": max_answer}
        step = max(MIN_SEGMENT, (total + 1) // MAX_SEGMENTS)
        self.lengths = [*range(step, total + 2 - step // 2, step), total + 1]  # the last token is of waves that ended
        self.work: Array | int = 0

    def begin(self, group: Group, keys: Array) -> _Wave:
        """Reads prompts, and samples as far as the first cache goes."""
        rows = len(keys) * self.num_rollouts // self.lanes
        prompt, loop = decoding.begin(
            *self.inputs, group, keys, self.sampling, self._enough(rows, rows, least=0),
            total=self.total, length=self.lengths[0], **self.static,
        )  # fmt: skip
        return _Wave(group, keys, prompt, loop, np.zeros(1, int), [])

    def go_on(self, wave: _Wave, least: int) -> _Wave:
        """Samples until no more than `least` rollouts of each lane run, in fewer and fewer rows."""
        full = len(wave.keys) // len(wave.since) * self.num_rollouts // self.lanes
        while True:
            steps, running, crowds = self._reached(wave)
            if running <= least or (steps == self.total).all():
                return wave
            fitting = min(n for n in self._sizes(full) if n >= running)
            if fitting < self._rows(wave):
                wave = self.let_go(wave, fitting)
            furthest, length = steps[steps < self.total].max(), _length(wave)
            if furthest == length:
                length = next(n for n in self.lengths if n > length)
                wave = wave._replace(loop=_grown(wave.loop, length))
            rows = self._rows(wave)
            loop = decoding.go_on(
                *self.inputs, wave.prompt, wave.group, wave.keys, self.sampling, wave.loop, length - furthest,
                self._enough(full, rows, least), seats=self._seats(wave, rows, crowds[0]), most=self._longest(),
                **self.static,
            )  # fmt: skip
            wave = wave._replace(loop=loop)

    def let_go(self, wave: _Wave, keep: int) -> _Wave:
        """Scores rollouts that are done and keeps so many others; with 0 there is no loop any more."""
        steps, _, crowds = self._reached(wave)
        self.work += (steps - wave.since).max() * self.lanes * self._rows(wave)
        seats = self._seats(wave, self._rows(wave) - keep, crowds[1])
        loop, place, record = decoding.let_go(
            *self.inputs, wave.prompt, wave.group, self.sampling, wave.loop, seats=seats, keep=keep, **self.static
        )  # fmt: skip
        return wave._replace(loop=loop, since=steps, left=[*wave.left, (place, *record[2:])])

    def joined(self, waves: Sequence[_Wave]) -> _Wave:
        """Waves of which rollouts have left, as many of each, as one."""
        if len(waves) == 1:
            return waves[0]
        length = max(map(_length, waves))
        parts = [
            ((wave.group, wave.keys, wave.prompt), _grown(wave.loop, length), decoding.rows_joined(wave.left))
            for wave in waves
        ]
        of_prompts, loop, left = decoding.waves_joined(parts, lanes=self.lanes, num_rollouts=self.num_rollouts)
        return _Wave(*of_prompts, loop, np.concatenate([wave.since for wave in waves]), [left])

    def record(self, wave: _Wave) -> Rollouts:
        """Of a wave whose rollouts are all done."""
        is_whole = not wave.left
        left = self.let_go(wave, 0).left
        if is_whole:
            return Rollouts(*wave.group[:2], *left[0][1:])
        place, *rest = decoding.rows_joined(left)
        return Rollouts(*wave.group[:2], *decoding.in_place(place, rest, num_rollouts=self.num_rollouts))

    def _rows(self, wave: _Wave) -> int:
        """Rollouts of each lane that are in the loop."""
        return wave.loop.place.size // self.lanes

    def _reached(self, wave: _Wave) -> tuple[np.ndarray, int, np.ndarray]:
        """The step of each wave, how many rollouts of a lane run at most, and `crowds`.

        Where none leaves early, nothing is asked of the device: programs are sent off one behind the other.
        """
        if not self.is_letting_go:
            return np.array([min(_length(wave), self.total)]), self._rows(wave), np.full(2, self.num_rollouts)
        return jax.device_get((wave.loop.step, wave.loop.running, wave.loop.crowds))

    def _sizes(self, full: int) -> list[int]:
        """How many rows a lane may have, of a wave that began with so many. Each is compiled when first met."""
        return _sixteenths(full) if self.is_letting_go else [full]

    def _enough(self, full: int, rows: int, least: int) -> int:
        """The number of running rollouts at which rows are to be let go."""
        return max([n for n in self._sizes(full) if n < rows], default=least)

    def _seats(self, wave: _Wave, rows: int, crowd: int) -> int:
        """Seats of each prompt for so many rows of a lane, at most `crowd` of one prompt; few numbers, as of rows."""
        even = rows * self.lanes / len(wave.keys)
        return min(n for n in _sixteenths(self.num_rollouts) if n >= min(max(crowd, 1.25 * even), self.num_rollouts))

    def _longest(self) -> int:
        """The most steps from one length of the cache to the next."""
        return max(np.diff([0, *self.lengths]))


def _sixteenths(full: int) -> list[int]:
    return sorted({full * n // 16 for n in SIXTEENTHS} - {0})


def _length(wave: _Wave) -> int:
    return wave.loop.cache[0].values.shape[3]


def _grown(loop: Any, length: int) -> Any:
    """The loop with a cache of `length` tokens. The old one is given up layer by layer: one at a time is held twice."""
    for i, layer in enumerate(loop.cache):
        if layer.values.shape[3] < length:
            loop.cache[i] = decoding.grown(layer, length=length)
    return loop


def roll_out(
    params: dict, group: Group, keys: Array, sampling: Sampling, *,
    arch: Architecture, num_rollouts: int, max_rationale: int, max_answer: int = 0, at_once: int = 0,
    traced: bool = False,
) -> Rollouts:  # fmt: skip
    """M rollouts for each of P prompts.

    Args:
      params: the decoder's parameters.
      group: prompts and gold answers.
      keys: [P] typed keys; see `address`.
      sampling: traced numbers and ids.
      arch: the decoder's architecture.
      num_rollouts: M.
      max_rationale: compiled maximum of `sampling.budget`.
      max_answer: 0: the stream holds the gold answer; otherwise answers of up to this many tokens, end-of-sequence
        included, are sampled and the stream holds them.
      at_once: prompts that are rolled out at a time, which divide P; 0 is all of them. Changes memory and speed alone.
      traced: whether this call is itself traced; then all prompts go at once and no rollout leaves before the end.

    Raises:
      ValueError: `at_once` does not divide P.

    Returns:
      Rollouts of T = max_rationale + 1 + J + (A or max_answer).
    """
    return roll_out_counted(
        params, group, keys, sampling, arch=arch, num_rollouts=num_rollouts, max_rationale=max_rationale,
        max_answer=max_answer, at_once=at_once, traced=traced,
    )[0]  # fmt: skip


def roll_out_counted(
    params: dict, group: Group, keys: Array, sampling: Sampling, *,
    arch: Architecture, num_rollouts: int, max_rationale: int, max_answer: int, at_once: int = 0, traced: bool = False,
) -> tuple[Rollouts, Array | int]:  # fmt: skip
    """`roll_out`, and how many tokens would have been sampled had no row of any step been idle."""
    total = max_rationale + 1 + (sampling.joint.shape[0] + max_answer if max_answer else 0)
    is_letting_go = total >= LONG and not traced
    prompts = len(group.prompt_length)
    groups = prompts if traced or not at_once else min(at_once, prompts)
    waves = prompts // groups
    if waves * groups != prompts:
        raise ValueError(f"at_once={at_once} does not divide the {prompts} prompts")
    lanes = math.gcd(_devices(group.prompt), groups) if is_letting_go else groups
    sampler = _Sampler(params, sampling, arch, num_rollouts, lanes, total, max_answer, is_letting_go)
    least = groups // lanes * num_rollouts // TAIL if waves > 1 and is_letting_go else 0

    def part(x: Array, wave: int) -> Array:
        if waves == 1:
            return x
        of_lanes = x.reshape(lanes, waves, groups // lanes, *x.shape[1:])
        return of_lanes[:, wave].reshape(groups, *x.shape[1:])

    waiting, records = [], []
    for i in range(waves):
        wave = sampler.begin(*jax.tree.map(functools.partial(part, wave=i), (group, keys)))
        wave = sampler.go_on(wave, least)
        waiting.append(sampler.let_go(wave, least) if least else wave)
        if len(waiting) == (TAIL if least else 1) or i == waves - 1:
            records.append(sampler.record(sampler.go_on(sampler.joined(waiting), 0)))
            waiting = []
    record = records[0] if len(records) == 1 else decoding.prompts_joined(records, lanes=lanes)
    return record, sampler.work


def _devices(prompts: Array) -> int:
    """Over how many devices prompts [P, T0] are split."""
    return len(prompts) // prompts.sharding.shard_shape(prompts.shape)[0] if isinstance(prompts, Array) else 1
