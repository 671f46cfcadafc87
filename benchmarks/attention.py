"""Measures the group kernel on this machine's GPU: time and FLOP/s of its programs, and the errors of its results.

python -m benchmarks.attention
python -m benchmarks.attention --tune
python -m benchmarks.attention --small  # on any processor: the same program interpreted, on a few tokens

The work is one layer of Qwen3-0.6B in bfloat16: 8 prompts of 1,024 × 32 rollouts of 512 tokens. FLOPs are those that
attention needs: two products for each query and each key that it sees, and five in the backward pass. For single
programs they are those that the program computes: backward programs recompute scores, with 3 products for queries and
4 for keys.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.models import attention
from tsallis_rl.models.attention import KeyValues, Part
from tsallis_rl.models.attention.group_kernel import attend
from tsallis_rl.models.attention.group_keys import differentiate_own, differentiate_prompt
from tsallis_rl.models.attention.group_queries import differentiate_queries, forward
from tsallis_rl.models.attention.group_tiles import Given, How, Kept, Limits, Tile, Tiles, tiles_for

LARGEST_ERROR = 1e-2  # ‖x − exact‖ / ‖exact‖ in bfloat16
CANDIDATES = {
    "forward": [
        (128, 64, 8, 3), (128, 64, 8, 2), (128, 64, 8, 4), (128, 128, 8, 2), (128, 128, 8, 3), (64, 64, 4, 3),
        (64, 128, 4, 2), (128, 64, 4, 3), (128, 128, 4, 2), (256, 64, 8, 3),
    ],
    "d_query": [
        (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2),
        (128, 32, 8, 3), (64, 32, 4, 3),
    ],
    "d_own": [
        (64, 128, 8, 2), (64, 128, 8, 3), (128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3), (32, 128, 8, 3),
        (32, 64, 4, 3), (128, 128, 8, 2),
    ],
    "d_prompt": [
        (64, 128, 8, 2), (64, 128, 8, 3), (128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3), (32, 128, 8, 3),
        (32, 64, 4, 3), (128, 128, 8, 2),
    ],
}  # fmt: skip


class Sizes(NamedTuple):
    """The sizes of a layer's attention."""

    prompts: int
    rollouts: int
    prompt: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def seen(self) -> tuple[float, float]:
        """Counts over all heads the pairs of a query and a prompt's key, and of a query and an own key that it sees."""
        queries = self.prompts * self.rollouts * self.heads * self.tokens
        return float(queries * self.prompt), queries * (self.tokens + 1) / 2


class Arrays(NamedTuple):
    """A layer's queries [P, M, T, K, G, h], own keys and values [P, M, T, K, h], and prompts' [P, S, K, h]."""

    query: Array
    own: KeyValues
    prompt: KeyValues


def arrays(sizes: Sizes, dtype: str) -> Arrays:
    """Draws the arrays of a layer."""
    keys = iter(jax.random.split(jax.random.key(0), 5))
    p, m, s, t, heads, k, h = sizes

    def normal(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape, dtype)

    query = normal(p, m, t, k, heads // k, h)
    own = KeyValues(normal(p, m, t, k, h), normal(p, m, t, k, h))
    return Arrays(query, own, KeyValues(normal(p, s, k, h), normal(p, s, k, h)))


def milliseconds(function: Callable[..., Any], *arguments: Any, calls: int) -> float:
    """Times a call of a compiled function: the median of three runs of `calls` calls."""
    jax.block_until_ready(function(*arguments))
    found = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(calls):
            found_last = function(*arguments)
        jax.block_until_ready(found_last)
        found.append(1e3 * (time.perf_counter() - began) / calls)
    return statistics.median(found)


def row(name: str, ms: float, flops: float) -> str:
    """Formats a row of a table."""
    return f"{name:<44}{ms:>10.3f} ms{flops / ms / 1e9:>8.0f} TFLOP/s"


def failure(error: Exception) -> str:
    """Cuts an error to one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def both_ways(function: Callable[..., Array]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Compiles a function of arrays, and one that takes a cotangent as well, last, and returns result and gradients."""

    def gradients(*arguments: Any) -> Any:
        *inputs, cotangent = arguments
        out, pull = jax.vjp(function, *inputs)
        return out, pull(cotangent)

    return jax.jit(function), jax.jit(gradients)


def times(sizes: Sizes, how: How, dtype: str, calls: int) -> Iterator[str]:
    """Times attention by the group kernel and by cuDNN, forward and both ways."""
    given, pairs = arrays(sizes, dtype), sum(sizes.seen)
    lengths = jnp.full(sizes.prompts, sizes.prompt, jnp.int32)
    flops = 4 * sizes.head_dim * pairs

    def ours(query: Array, own: KeyValues, prompt: KeyValues) -> Array:
        scale, tiles, interpret = how
        return attend(query, own, prompt, Limits(lengths), scale, tiles=tiles, interpret=interpret)

    def by_cudnn(query: Array, keys: Array, values: Array) -> Array:
        return jax.nn.dot_product_attention(
            query, keys, values, scale=how.scale, is_causal=True, implementation="cudnn"
        )

    def timed(name: str, function: Callable[..., Array], *inputs: Any) -> Iterator[str]:
        run, gradients = both_ways(function)
        yield row(f"{name}, forward", milliseconds(run, *inputs, calls=calls), flops)
        ms = milliseconds(gradients, *inputs, inputs[0], calls=calls)
        yield row(f"{name}, forward and backward", ms, 3.5 * flops)

    yield from timed("group kernel", ours, *given)
    try:
        yield from timed("cuDNN, prompts copied already", by_cudnn, *behind_prompts(given))
    except Exception as error:  # the library may be missing or refuse
        yield f"cuDNN was not measured: {failure(error)}"


def behind_prompts(given: Arrays) -> tuple[Array, Array, Array]:
    """Places queries, keys and values in one causal square after a copy of the prompt's: [P · M, S + T, heads, h]."""
    query, own, prompt = given
    rollouts = query.shape[1]
    flat = query.reshape(-1, query.shape[2], query.shape[3] * query.shape[4], query.shape[5])
    square = jnp.pad(flat, [(0, 0), (prompt.keys.shape[1], 0), (0, 0), (0, 0)])
    keys, values = (
        jnp.concatenate([jnp.repeat(x, rollouts, axis=0), y.reshape(-1, *y.shape[2:])], axis=1)
        for x, y in zip(prompt, own, strict=True)
    )
    return square, keys, values


def programs(sizes: Sizes, dtype: str) -> dict[str, tuple[Callable[[How], Callable[..., Any]], tuple, float]]:
    """Returns each program of the kernel: a function that makes it for given tiles, its arguments, and its FLOPs."""
    query, own, prompt = arrays(sizes, dtype)
    rows = sizes.prompts * sizes.rollouts
    query = query.reshape(rows, sizes.tokens, sizes.heads, sizes.head_dim)
    own = KeyValues(*(x.reshape(rows, *x.shape[2:]) for x in own))
    numbers = jnp.full((rows, sizes.heads, sizes.tokens), 10.0, jnp.float32)
    given = Given(query, own, prompt, Limits(jnp.full(sizes.prompts, sizes.prompt, jnp.int32)))
    kept = Kept(given, query, numbers)
    of_prompt, of_own = (2 * sizes.head_dim * pairs for pairs in sizes.seen)
    return {
        "forward": (lambda how: lambda *x: forward(*x, how)[0], (given,), 2 * (of_prompt + of_own)),
        "d_query": (lambda how: lambda *x: differentiate_queries(*x, how), (kept, query), 3 * (of_prompt + of_own)),
        "d_own": (lambda how: lambda *x: differentiate_own(*x, how), (kept, query, numbers), 4 * of_own),
        "d_prompt": (lambda how: lambda *x: differentiate_prompt(*x, how), (kept, query, numbers), 4 * of_prompt),
    }


def tune(sizes: Sizes, how: How, dtype: str, calls: int, candidates: dict[str, list]) -> Iterator[str]:
    """Times every program with each of its candidate tiles; yields the fastest first."""
    for name, (make, arguments, flops) in programs(sizes, dtype).items():
        found, failed = [], []
        for tile in candidates[name]:
            try:
                run = jax.jit(make(how._replace(tiles=how.tiles._replace(**{name: Tile(*tile)}))))
                found.append((milliseconds(run, *arguments, calls=calls), tile))
            except Exception as error:  # too much shared memory, or a compiler that gives up
                failed.append(f"  {tile} failed: {failure(error)}")
        yield f"{name}: queries, keys, warps, stages"
        yield from (row(f"  {tile}", ms, flops) for ms, tile in sorted(found))
        yield from failed


def exact(given: Arrays, limits: Limits, scale: float) -> Array:
    """Attends in float32 by XLA."""
    query, own, prompt = given
    index, tokens = jnp.arange(query.shape[2]), query.shape[2]
    start = jnp.zeros((1, 1, tokens), jnp.int32) if limits.start is None else limits.start
    window = jnp.int32(tokens + prompt.keys.shape[1]) if limits.window is None else limits.window
    position = limits.lengths[:, None, None] + index - start
    key = jnp.arange(prompt.keys.shape[1])
    shown = (key < limits.lengths[:, None])[:, None, None] & (position[..., None] - key < window)
    order = (index <= index[:, None]) & (index >= start[..., None]) & (index[:, None] - index < window)
    parts = [
        Part(KeyValues(prompt.keys.transpose(0, 2, 3, 1), prompt.values.swapaxes(1, 2)), shown),
        Part(KeyValues(own.keys.transpose(0, 1, 3, 4, 2), own.values.swapaxes(2, 3)), order),
    ]
    return attention.attend(query, parts, scale)


def bounds(sizes: Sizes) -> dict[str, Limits]:
    """Returns what queries see in each comparison; prompt lengths range from 0 to full."""
    lengths = jnp.arange(sizes.prompts, dtype=jnp.int32) * sizes.prompt // max(sizes.prompts - 1, 1)
    half = sizes.tokens // 2
    start = (jnp.arange(sizes.tokens, dtype=jnp.int32) >= half) * half
    start = jnp.broadcast_to(start, (sizes.prompts, sizes.rollouts, sizes.tokens))
    return {
        "causal": Limits(lengths),
        "rows of two rollouts in a window": Limits(lengths, start, jnp.int32(half + 3)),
    }


def errors(sizes: Sizes, limits: Limits, how: How, dtype: str) -> dict[str, float]:
    """Compares output and gradients with those of float32: ‖x − exact‖ / ‖exact‖ of each."""
    given = arrays(sizes, dtype)
    cotangent = jax.random.normal(jax.random.key(1), given.query.shape, dtype)
    scale, tiles, interpret = how
    _, ours = both_ways(lambda *x: attend(*x, limits, scale, tiles=tiles, interpret=interpret))
    _, by_xla = both_ways(lambda *x: exact(Arrays(*x), limits, scale))
    with jax.default_matmul_precision("highest"):
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), (*given, cotangent))
        expected = jax.tree.leaves(by_xla(*wide))
    names = ("out", "d query", "d own keys", "d own values", "d prompt keys", "d prompt values")
    return {
        name: float(jnp.linalg.norm((x - y).ravel()) / jnp.linalg.norm(y.ravel()))
        for name, x, y in zip(names, jax.tree.leaves(ours(*given, cotangent)), expected, strict=True)
    }


def main() -> None:
    """Prints errors and times; exits with an error if results are too far off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=1024, help="prompt tokens")
    parser.add_argument("--new", type=int, default=512, help="tokens a rollout")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--calls", type=int, default=10, help="calls per timed run")
    parser.add_argument("--tune", action="store_true", help="time each program with other tiles")
    parser.add_argument("--small", action="store_true", help="a few tokens, interpreted on any processor")
    args = parser.parse_args()
    if not args.small and jax.default_backend() != "gpu":
        raise SystemExit("python -m benchmarks.attention needs an NVIDIA GPU; --small runs the program without one")
    sizes = Sizes(args.prompts, args.rollouts, args.prompt, args.new, args.heads, args.kv_heads, args.head_dim)
    checked, tiles, candidates, calls = (
        Sizes(2, 3, 200, 150, *sizes[4:]),
        tiles_for(sizes.head_dim),
        CANDIDATES,
        args.calls,
    )
    if args.small:
        sizes = checked = Sizes(2, 1, 20, 24, 2, 1, 16)
        tiles, candidates, calls = Tiles(*[Tile(16, 16, 4, 2)] * 4), {name: [(16, 16, 4, 2)] for name in CANDIDATES}, 1
    how = How(sizes.head_dim**-0.5, tiles, interpret=args.small)
    print(f"{jax.devices()[0].device_kind}: {sizes}")
    exact_enough = True
    for case, limits in bounds(checked).items():
        found = errors(checked, limits, how, "bfloat16")
        exact_enough &= all(error <= LARGEST_ERROR for error in found.values())  # NaN is not
        print(f"errors, {case}: " + ", ".join(f"{name} {error:.1e}" for name, error in found.items()), flush=True)
    for line in times(sizes, how, "bfloat16", calls):
        print(line, flush=True)
    mine = {name: [tuple(tile)] for name, tile in zip(Tiles._fields, tiles, strict=True)}
    for line in tune(sizes, how, "bfloat16", calls, candidates if args.tune else mine):
        print(line, flush=True)
    if not exact_enough:
        raise SystemExit(f"errors are above {LARGEST_ERROR}")


if __name__ == "__main__":
    main()
