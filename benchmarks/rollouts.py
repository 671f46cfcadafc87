"""Measures sampled tokens per second: ours, transformers' generate's and Tunix's sampler's.

python -m benchmarks.rollouts --prompt=256 --new=128
python -m benchmarks.rollouts --prompt=1024 --new=64
python -m benchmarks.rollouts --growth
"""

import argparse
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import harness, limits

if TYPE_CHECKING:
    from tsallis_rl.models import Architecture
    from tsallis_rl.sampler.record import Rollouts


def groups(
    arch: "Architecture", sizes: harness.Sizes, uneven: bool = False, at_once: int = 0
) -> Callable[[], "Rollouts"]:
    """Makes random parameters and prompts, and returns the function that rolls them out.

    Args:
      arch: of the model.
      sizes: of the batch; a rollout also has one token of an answer.
      uneven: whether stop tokens are so likely that lengths are geometric, with a mean of a fifth of the budget.
      at_once: prompts that are rolled out together; 0 for all.
    """
    import jax
    import jax.numpy as jnp

    from tsallis_rl.models import initialize
    from tsallis_rl.sampler import RolloutShape, roll_out
    from tsallis_rl.sampler.batch import PromptBatch
    from tsallis_rl.sampler.keys import TRAIN, example_keys
    from tsallis_rl.sampler.rules import Rules
    from tsallis_rl.sampler.sampling_settings import Sampling
    from tsallis_rl.sampler.token_sampling import TokenSampling

    params = jax.jit(functools.partial(initialize, arch))(jax.random.key(0))
    prompts, vocab, rng = sizes.prompts, arch.vocab_size, np.random.default_rng(0)
    batch = PromptBatch(
        prompt=rng.integers(5, vocab, (prompts, sizes.prompt)).astype(np.int32),
        prompt_length=np.full(prompts, sizes.prompt, np.int32),
        gold=rng.integers(5, vocab, (prompts, 1)).astype(np.int32),
        gold_length=np.ones(prompts, np.int32),
    )
    rules = Rules(
        budget=jnp.int32(sizes.new),
        end_of_think=jnp.array([-1]),
        stop_ids=jnp.arange(5 * vocab // sizes.new) if uneven else jnp.array([-1]),
        joint=jnp.zeros(0, jnp.int32),
        close_unclosed=jnp.array(False),
    )
    sampling = Sampling(TokenSampling(temperature=jnp.float32(1)), rules)
    shape = RolloutShape(arch, num_rollouts=sizes.rollouts, max_rationale=sizes.new)
    keys = example_keys(0, TRAIN, 0, np.arange(prompts))

    def once() -> "Rollouts":
        out = roll_out(params, batch, keys, sampling, shape, at_once=at_once).rollouts
        assert uneven or int(out.rationale_length.min()) == sizes.new + 1
        return out

    return once


def ours(args: argparse.Namespace, copies: bool = False, uneven: bool = False, batches: int = 1) -> dict[str, float]:
    """Measures groups of M rollouts.

    Args:
      args: the program's arguments.
      copies: repeats each prompt M times with one rollout, as the peers do.
      uneven: see `groups`.
      batches: how many times the prompts of the other cases there are; only as many as theirs are rolled out at once.
    """
    arch = harness.architecture(vocab_size=args.vocab, layers=args.layers)
    prompts, rollouts = (harness.PROMPTS * args.rollouts, 1) if copies else (batches * harness.PROMPTS, args.rollouts)
    sizes = harness.Sizes(prompts, rollouts, args.prompt, args.new)
    once = groups(arch, sizes, uneven, at_once=harness.PROMPTS if batches > 1 else 0)
    return harness.time_calls(once, args.repeats) | {"tokens": int(once().rationale_length.sum()) if uneven else 0}


def generate(args: argparse.Namespace, cache: str) -> dict[str, float]:
    """Measures transformers, which is imported here because other cases run without it."""
    from benchmarks import torch_peers

    return torch_peers.generate(args, cache)


def tunix(args: argparse.Namespace) -> dict[str, float]:
    """Measures Tunix, in an environment of its own."""
    from benchmarks import tunix_peers

    return tunix_peers.generate(args)


CASES = {
    "ours": ours,
    "ours, uneven lengths": functools.partial(ours, uneven=True),
    "ours, uneven, 16 prompts": functools.partial(ours, uneven=True, batches=4),
    "ours, copied prompts": functools.partial(ours, copies=True),
    "generate, dynamic cache": functools.partial(generate, cache="dynamic"),
    "generate, static cache": functools.partial(generate, cache="static"),
    "Tunix": tunix,
}


if __name__ == "__main__":
    harness.main(__doc__, "benchmarks.rollouts", CASES, limits.seconds_at_limit)
