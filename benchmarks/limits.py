"""What this core can do: float32 products and copies; and how long ours would take if it did nothing else.

python -m benchmarks.limits
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping

from benchmarks import harness

SIZE, REPEATS = 2048, 5  # of a square matrix, 17 MB; a copy is of 256 MB, much more than a cache holds
PHASES = {"benchmarks.rollouts": ("prompts", "sampling", "gold answers"), "benchmarks.update": ("update",)}


def measured() -> dict[str, float]:
    """FLOP/s of a product of two SIZE × SIZE matrices, and bytes read and written a second by a copy; CPU seconds."""
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


def seconds(module: str, shape: Mapping[str, int], flops: float, bandwidth: float) -> float:
    """Of a benchmark's work: each phase takes the longer of its counted products and its counted bytes.

    An update is counted as three forward passes, whatever is recomputed.
    """
    from benchmarks.estimate import Machine, Work, phases

    machine = Machine("this core", flops, float("inf"), bandwidth, float("inf"), fsdp=1, tensor=1)
    answer = 1 if module == "benchmarks.rollouts" else 0
    work = Work(harness.PROMPTS, shape["prompt"], shape["rollouts"], shape["new"], answer)
    counted = phases(harness.architecture(vocab_size=shape["vocab"], layers=shape["layers"]), work, machine)
    return sum(max(counted[name][0] / flops, counted[name][1] / bandwidth) for name in PHASES[module])


def main() -> None:
    """Both limits."""
    args = harness.parser(__doc__, ["limits"]).parse_args()
    found = measured() if args.only else harness.measure("benchmarks.limits", "limits")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
