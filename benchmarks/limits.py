"""Measures this core's limits (float32 products and copies), and counts the seconds of our own work at them.

python -m benchmarks.limits
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping

from benchmarks import harness

SIZE, REPEATS = 2048, 5  # side of a square matrix of 17 MB; a copy has 256 MB, much more than a cache holds
PHASES = {"benchmarks.rollouts": ("prompts", "sampling", "gold answers"), "benchmarks.update": ("update",)}


def measure() -> dict[str, float]:
    """Measures FLOP/s of a product of SIZE × SIZE matrices, and bytes per second read and written by a copy."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def typical(once: Callable[[], object]) -> float:
        once()
        seconds = []
        for _ in range(REPEATS):
            started = time.process_time()
            once()
            seconds.append(time.process_time() - started)
        return statistics.median(seconds)

    matrix = jax.random.normal(jax.random.key(0), (SIZE, SIZE), jnp.float32)
    product = jax.jit(jnp.matmul)
    source = np.ones(1 << 25)
    target = np.empty_like(source)
    return {
        "flops": 2 * SIZE**3 / typical(lambda: product(matrix, matrix).block_until_ready()),
        "bandwidth": 2 * source.nbytes / typical(lambda: np.copyto(target, source)),
    }


def seconds_at_limit(module: str, sizes: Mapping[str, int], limit: Mapping[str, float]) -> float:
    """Counts the seconds of a benchmark's work: each phase takes the longer of its products and its bytes.

    An update is counted as three forward passes, whatever is recomputed.

    Args:
      module: benchmarks.rollouts or benchmarks.update.
      sizes: prompt, rollouts, new, vocab and layers, as in the program's arguments.
      limit: "flops" and "bandwidth" of a core, per second.
    """
    from benchmarks.estimate import Machine, Work, phases  # here: Tunix's environment has none of its requirements

    machine = Machine(
        name="this core",
        flops=limit["flops"],
        memory=float("inf"),
        bandwidth=limit["bandwidth"],
        link=float("inf"),
        fsdp=1,
        tensor=1,
        cache_share=7 / 12,
    )
    work = Work(
        prompts=harness.PROMPTS,
        prompt=sizes["prompt"],
        rollouts=sizes["rollouts"],
        rationale=sizes["new"],
        answer=1 if module == "benchmarks.rollouts" else 0,
    )
    counted = phases(harness.architecture(vocab_size=sizes["vocab"], layers=sizes["layers"]), work, machine)
    return sum(
        max(counted[name].flops / machine.flops, counted[name].bytes / machine.bandwidth) for name in PHASES[module]
    )


def main() -> None:
    """Prints both limits."""
    args = harness.parser(__doc__, ["limits"]).parse_args()
    found = measure() if args.only else harness.measure("benchmarks.limits", "limits")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
