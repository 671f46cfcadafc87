"""Measures completion tokens per second in updates: ours, TRL's loss path's and Tunix's GRPO's.

python -m benchmarks.update --prompt=256 --new=128
python -m benchmarks.update --prompt=1024 --new=64
python -m benchmarks.update --growth
"""

import argparse
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from benchmarks import harness, limits

if TYPE_CHECKING:
    from tsallis_rl.models import Architecture
    from tsallis_rl.training.packing import Slices


class Given(NamedTuple):
    """Holds the lengths and coefficients of an update.

    Attributes:
      lengths: [P, M] tokens of each rollout.
      score: [P, M] its coefficient.
    """

    lengths: np.ndarray
    score: np.ndarray


def given(sizes: harness.Sizes, used: int | None = None, uneven: bool = False) -> Given:
    """Draws lengths and coefficients.

    Args:
      sizes: of the update.
      used: how many of M coefficients are not zero; None for all.
      uneven: whether lengths are geometric, with a mean of a fifth of `sizes.new`.
    """
    rng = np.random.default_rng(0)
    shape = (sizes.prompts, sizes.rollouts)
    lengths = np.full(shape, sizes.new, np.int32)
    if uneven:
        lengths = np.minimum(rng.geometric(5 / sizes.new, shape), sizes.new).astype(np.int32)
    score = rng.normal(size=shape).astype(np.float32)
    score[:, sizes.rollouts if used is None else used :] = 0
    return Given(lengths, score)


def steps(arch: "Architecture", sizes: harness.Sizes, data: Given, slices: "Slices") -> Callable[[], None]:
    """Makes random parameters and rollouts; returns the function that packs them and takes a step of AdamW."""
    import jax
    import jax.numpy as jnp

    from tsallis_rl.config import base_config
    from tsallis_rl.models import initialize
    from tsallis_rl.objectives import Coefficients
    from tsallis_rl.sampler.record import SAMPLED, Rollouts
    from tsallis_rl.training.learner import update
    from tsallis_rl.training.optimizer import make_optimizer, start_state
    from tsallis_rl.training.packing import pack

    optimizer = make_optimizer(base_config().optimizer, 100)
    rng, shape = np.random.default_rng(1), data.lengths.shape
    tokens = rng.integers(5, arch.vocab_size, (*shape, sizes.new + 1)).astype(np.int32)
    record = Rollouts(
        prompt=rng.integers(5, arch.vocab_size, (sizes.prompts, sizes.prompt)).astype(np.int32),
        prompt_length=np.full(sizes.prompts, sizes.prompt, np.int32),
        inputs=tokens[..., :-1], targets=tokens[..., 1:], sampled=np.ones((*shape, sizes.new), bool),
        log_prob=np.zeros((*shape, sizes.new), np.float32), rationale_length=data.lengths,
        closing=np.full(shape, SAMPLED, np.int8), answer_start=data.lengths,
        answer_length=np.zeros(shape, np.int32), log_w=np.zeros(shape, np.float32),
    )  # fmt: skip
    step = functools.partial(update, arch=arch, optimizer=optimizer, slices=slices)
    step = jax.jit(step, donate_argnums=0)
    state = jax.jit(lambda key: start_state(initialize(arch, key), optimizer))(jax.random.key(0))

    def once() -> None:
        nonlocal state
        coefficients = Coefficients(score=jnp.array(data.score), path=jnp.array(data.score))
        packed, _ = pack(record, coefficients, slices)
        state, metrics = step(state, packed)
        assert np.isfinite(metrics["grad_norm"])

    return once


def ours(
    args: argparse.Namespace,
    copies: bool = False,
    used: int | None = None,
    remat: str = "matmuls",
    micro_tokens: int = 1024,
    uneven: bool = False,
) -> dict[str, float]:
    """Measures one step of AdamW on rollouts with random coefficients, packed and then updated a prompt at a time.

    Args:
      args: the program's arguments.
      copies: repeats each prompt M times with one rollout, as the peers do.
      used: see `given`.
      remat: as config.model.remat.
      micro_tokens: tokens of a prompt's rollouts that are processed at once.
      uneven: see `given`.
    """
    from tsallis_rl.training.packing import Slices

    arch = harness.architecture(vocab_size=args.vocab, layers=args.layers, remat=remat)
    prompts, rollouts = (harness.PROMPTS * args.rollouts, 1) if copies else (harness.PROMPTS, args.rollouts)
    sizes = harness.Sizes(prompts, rollouts, args.prompt, args.new)
    slices = Slices(micro_batches=harness.PROMPTS, micro_rollouts=max(1, micro_tokens // args.new))
    data = given(sizes, used, uneven)
    times = harness.time_calls(steps(arch, sizes, data, slices), args.repeats)
    return times | {"tokens": int(data.lengths.sum()) if uneven else 0}


def trl(args: argparse.Namespace, micro_batch: int) -> dict[str, float]:
    """Measures TRL, which is imported here because other cases run without it."""
    from benchmarks import torch_peers

    return torch_peers.update(args, micro_batch)


def tunix(args: argparse.Namespace, micro_batch: int) -> dict[str, float]:
    """Measures Tunix, in an environment of its own."""
    from benchmarks import tunix_peers

    return tunix_peers.update(args, micro_batch)


CASES = {
    "ours": ours,
    "ours, all M at once": functools.partial(ours, micro_tokens=1 << 30),
    "ours, keeps everything": functools.partial(ours, remat="none"),
    "ours, remat layers": functools.partial(ours, remat="layers"),
    "ours, uneven lengths": functools.partial(ours, uneven=True),
    "ours, 4 of M used": functools.partial(ours, used=4),
    "ours, copied prompts": functools.partial(ours, copies=True),
    **{f"TRL, micro-batch {n}": functools.partial(trl, micro_batch=n) for n in (4, 16, 64)},
    **{f"Tunix, micro-batch {n}": functools.partial(tunix, micro_batch=n) for n in (4, 16, 64)},
}


if __name__ == "__main__":
    harness.main(__doc__, "benchmarks.update", CASES, limits.seconds_at_limit)
