"""The sampler: M rationales for each of P prompts, drawn, closed and scored.

The prompt is read once a group. Rollouts are decoded a segment at a time, by whose length the cache grows. Once few
enough rollouts of every group still run, those that are done are scored and leave, and the others go on in arrays of
fewer rows. Where only some of the prompts are rolled out at a time, the next take the place of those of whose rollouts
a quarter is left; four waves' quarters then end together, in arrays as large as one wave's. The gold answer is scored
behind a rationale by extending the rollout's own key-value cache (METHOD §4).

`decoding` holds the programs; here it is decided which of them run when.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from tsallis_rl import decoding
from tsallis_rl.models import Architecture
from tsallis_rl.rollouts import Group, Rollouts, Sampling

MIN_SEGMENT, MAX_SEGMENTS = 32, 6  # the cache grows by at least so many tokens, and about so many times
LONG = 128  # tokens of a stream from which on rollouts that are done leave; shorter ones are over before it pays
EIGHTHS = (8, 6, 4, 3, 2, 1)  # of a wave's rollouts that there are arrays for
TAIL = 4  # one in so many rollouts of a wave waits for the next waves, so many waves' end together


class _Wave(NamedTuple):
    """Prompts that are rolled out together.

    Attributes:
      group: of P prompts, W of each place in a first wave where waves were joined.
      keys: [P].
      prompt: their keys and values.
      loop: where those of their rollouts stand that have not left.
      since: [W] the steps from which on the loop has had as many rows as now.
      left: of those that left, places and record.
    """

    group: Group
    keys: Array
    prompt: Any
    loop: Any
    since: np.ndarray
    left: list[tuple]

    @property
    def rows(self) -> int:
        """Rollouts of each group that are in the loop."""
        return self.loop.place.shape[1]


class _Sampler:
    """Decides which program runs when, for waves of prompts that share all but prompts and keys.

    Attributes:
      work: tokens that have been computed, those of rows whose rollout was done included.
    """

    def __init__(
        self, params: dict, sampling: Sampling, arch: Architecture, num_rollouts: int, total: int, max_answer: int,
        is_letting_go: bool,
    ):  # fmt: skip
        apart, layers = decoding.together(params, arch=arch)
        self.inputs = (params | apart, layers)  # the stacked layers are there for their shape: no program reads them
        self.sampling, self.num_rollouts, self.total, self.is_letting_go = sampling, num_rollouts, total, is_letting_go
        self.static = {"arch": arch, "max_answer": max_answer}
        step = max(MIN_SEGMENT, (total + 1) // MAX_SEGMENTS)
        self.lengths = [*range(step, total + 2 - step // 2, step), total + 1]  # the last token is of waves that ended
        self.work: Array | int = 0

    def begin(self, group: Group, keys: Array) -> _Wave:
        """Reads prompts, and samples as far as the first cache goes."""
        rows = self.num_rollouts
        prompt, loop = decoding.begin(
            *self.inputs, group, keys, self.sampling, self._enough(rows, waves=1, least=0), num_rollouts=rows,
            total=self.total, length=self.lengths[0], **self.static,
        )  # fmt: skip
        return _Wave(group, keys, prompt, loop, np.zeros(1, int), [])

    def go_on(self, wave: _Wave, least: int) -> _Wave:
        """Samples until no more than `least` rollouts of each group run, in fewer and fewer rows."""
        while True:
            steps, running = self._reached(wave)
            if running <= least or (steps == self.total).all():
                return wave
            fitting = min(n for n in self._sizes(len(steps)) if n >= running)
            if fitting < wave.rows:
                wave = self.let_go(wave, fitting)
            furthest, length = steps[steps < self.total].max(), _length(wave)
            if furthest == length:
                length = next(n for n in self.lengths if n > length)
                wave = wave._replace(loop=_grown(wave.loop, length))
            loop = decoding.go_on(
                *self.inputs, wave.prompt, wave.group, wave.keys, self.sampling, wave.loop, length - furthest,
                self._enough(wave.rows, len(steps), least), most=self._longest(), **self.static,
            )  # fmt: skip
            wave = wave._replace(loop=loop)

    def let_go(self, wave: _Wave, keep: int) -> _Wave:
        """Scores rollouts that are done and keeps so many others; with 0 the loop is of no use any more."""
        steps = self._reached(wave)[0] if self.is_letting_go else wave.loop.step
        groups = len(wave.keys) // len(wave.since)
        self.work += (steps - wave.since).sum() * groups * wave.rows
        loop, place, record = decoding.let_go(
            *self.inputs, wave.prompt, wave.group, self.sampling, wave.loop, keep=keep, **self.static
        )
        return wave._replace(loop=loop, since=steps, left=[*wave.left, (place, *record[2:])])

    def joined(self, waves: Sequence[_Wave], groups: int) -> _Wave:
        """Waves of `groups` prompts, with equally many rows, as one."""
        if len(waves) == 1:
            return waves[0]
        length = max(map(_length, waves))
        loops = [_grown(wave.loop, length) for wave in waves]
        parts = [
            (wave.group, wave.keys, wave.prompt, tuple(loop[2:]), decoding.rows_joined(wave.left))
            for wave, loop in zip(waves, loops, strict=True)
        ]
        group, keys, prompt, loop, left = decoding.waves_joined(parts, groups=groups)
        step, running = (np.array(x) for x in zip(*jax.device_get([loop[:2] for loop in loops]), strict=True))
        loop = type(loops[0])(step.reshape(-1), running.max(), *loop)
        return _Wave(group, keys, prompt, loop, np.concatenate([wave.since for wave in waves]), [left])

    def record(self, wave: _Wave) -> Rollouts:
        """Of a wave whose rollouts are all done."""
        left = self.let_go(wave, 0).left
        place, *rest = left[0] if len(left) == 1 else decoding.rows_joined(left)
        return Rollouts(*wave.group[:2], *(rest if len(left) == 1 else decoding.in_place(place, rest)))

    def _reached(self, wave: _Wave) -> tuple[np.ndarray, int]:
        """The step of each wave, and how many rollouts of a group run at most.

        Where none leaves early, nothing is asked of the device: programs are sent off one behind the other.
        """
        if not self.is_letting_go:
            return np.array([min(_length(wave), self.total)]), wave.rows
        step, running = jax.device_get((wave.loop.step, wave.loop.running))
        return step, int(running)

    def _sizes(self, waves: int) -> list[int]:
        """How many rows a group may have; of joined waves as many in all as of one. Each is compiled when first met."""
        full = -(-self.num_rollouts // waves)
        return sorted({full * n // 8 for n in EIGHTHS} - {0}) if self.is_letting_go else [full]

    def _enough(self, rows: int, waves: int, least: int) -> int:
        """The number of running rollouts at which rows are to be let go."""
        return max([n for n in self._sizes(waves) if n < rows], default=least)

    def _longest(self) -> int:
        """The most steps from one length of the cache to the next."""
        return max(np.diff([0, *self.lengths]))


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
    sampler = _Sampler(params, sampling, arch, num_rollouts, total, max_answer, is_letting_go)
    prompts = len(group.prompt_length)
    groups = prompts if traced or not at_once else min(at_once, prompts)
    waves = prompts // groups
    if waves * groups != prompts:
        raise ValueError(f"at_once={at_once} does not divide the {prompts} prompts")
    least = num_rollouts // TAIL if waves > 1 and is_letting_go else 0

    def part(x: Array, wave: int) -> Array:
        return x if waves == 1 else x.reshape(groups, waves, *x.shape[1:])[:, wave]

    waiting, records = [], []
    for i in range(waves):
        wave = sampler.begin(*jax.tree.map(functools.partial(part, wave=i), (group, keys)))
        wave = sampler.go_on(wave, least)
        waiting.append(sampler.let_go(wave, least) if least < wave.rows and least else wave)
        if len(waiting) == (TAIL if least else 1) or i == waves - 1:
            records.append(sampler.record(sampler.go_on(sampler.joined(waiting, groups), 0)))
            waiting = []
    record = records[0] if waves == 1 else decoding.waves_joined(records, groups=groups)
    return record, sampler.work
