"""The choices that differ between processors, in one table, with the measurements behind them."""

from typing import NamedTuple

import jax


class Backend(NamedTuple):
    """The choices for one kind of processor.

    Attributes:
      block_scores: attention scores of one block on a device, over all its heads (`attention.blocks`).
      chunk_elements: logits in memory at a time (`log_probs`).
      multiplies_and_sums: decoding multiplies and sums to attend to a rollout's own keys, instead of using dots.
      row_cache: a rollout's cache holds each token as a row of its keys (`RowCache`), not as a column (`KeyValues`).
      widens: casts factors of products that are accumulated in float32 to it, where XLA has no kernel for shorter ones.
      cuts_vocabulary: token sampling sums the vocabulary's logits piece by piece, not as a matrix, whose layout a TPU
        would have to change.
      sums_together: sums for token sampling and for the token's log-probability are computed in one pass.
      writes_by_batch: rows of merged batches write their tokens batch by batch, not row by row.
      compile_threads: host threads, at most, that compile what is likely to be called next (`compile_ahead`); 0 on a
        CPU, which computes with the cores that they would take.
      takes_kernels: attention="auto" takes a kernel, since it was measured to win.
    """

    block_scores: int
    chunk_elements: int
    multiplies_and_sums: bool
    row_cache: bool
    widens: bool
    cuts_vocabulary: bool = False
    sums_together: bool = False
    writes_by_batch: bool = False
    compile_threads: int = 0
    takes_kernels: bool = False


BACKENDS = {
    # Blocks of 2 MiB and chunks of 8 MiB of float32 are near the cache of a core. Dots with a rollout's keys do not
    # reach memory bandwidth (docs/performance.md). Computing two sums together takes four times as long as separately.
    "cpu": Backend(
        block_scores=1 << 19, chunk_elements=1 << 21, multiplies_and_sums=True, row_cache=False, widens=True
    ),
    # Measured on one H200 in bfloat16. Own keys of a decoding step, 256 rows of 512 keys: 0.167 ms by dots, 0.748 by
    # multiplying and summing. Our own kernel takes as long including the prompt's part, and reads only what is filled:
    # rollouts of Qwen3-0.6B's shape made 59,100 tokens a second with it and 36,500 with dots. Updates took 3.62 s
    # without a kernel, 2.89 with cuDNN and 1.84 with our own. Writing keys as columns took 0.5 ms of a step of 10.
    # By count: every chunk of logits reads and writes the head's gradient, 1.2 GB at 1,024 × 151,936; chunks of 0.5 GB
    # do so five times for 8 × 512 tokens. Summing together reads a token's logits twice instead of three times; a read
    # takes 48 us for 256 × 151,936.
    "gpu": Backend(
        block_scores=1 << 28,
        chunk_elements=1 << 27,
        multiplies_and_sums=False,
        row_cache=True,
        widens=False,
        sums_together=True,
        compile_threads=8,
    ),
    # Not measured. A chunk has enough tokens that reading the head costs less than multiplying by it. By the compiler's
    # estimate for a v5e, own keys of 256 rows of 256 tokens take 0.48 million cycles by dots and 2.3 by multiplying and
    # summing. Sampling from 256 × 151,936 logits takes 0.5 if they are cut and 3.1 if they are folded, not counting
    # moves, which are not estimated. 96 rows of four merged batches write a layer's keys in 0.07 million batch by batch
    # and in 1.06 row by row, which also copied every cache.
    "tpu": Backend(
        block_scores=1 << 26,
        chunk_elements=1 << 26,
        multiplies_and_sums=False,
        row_cache=True,
        widens=False,
        cuts_vocabulary=True,
        writes_by_batch=True,
        compile_threads=8,
    ),
}

# Kinds of devices, by prefix of their names. An H100 is the same chip as an H200 with less and slower memory.
# By count: a chunk of 2 GB of logits instead of 0.5 saves 210 of 2,970 GB that an update of 8 × 32 × 512 tokens moves.
KINDS = {
    "NVIDIA H200": BACKENDS["gpu"]._replace(chunk_elements=1 << 29, takes_kernels=True),
    "NVIDIA H100": BACKENDS["gpu"]._replace(chunk_elements=1 << 28, takes_kernels=True),
}


def device_kind() -> str:
    """Names the kind of this machine's devices."""
    return jax.devices()[0].device_kind


def backend() -> Backend:
    """Looks up the choices for this machine's processor."""
    platform = jax.default_backend()
    if platform == "gpu":
        return next((found for kind, found in KINDS.items() if device_kind().startswith(kind)), BACKENDS["gpu"])
    return BACKENDS[platform]


def compile_threads() -> int:
    """Returns how many threads compile what is likely to be called next.

    Returns 0 if several processes train: processes with GPUs autotune a program together, so all of them would have to
    compile the same ones.
    """
    return backend().compile_threads if jax.process_count() == 1 else 0
