"""Measures this machine's accelerator: its peaks, our rollouts and updates, and torch's for comparison.

python -m benchmarks.device
python -m benchmarks.device --match='rollouts 8' --profile

The model has the shape of Qwen3-0.6B, with random parameters in bfloat16; nothing is downloaded. Every case runs and
compiles in a process of its own, so that its memory is freed and a failure costs one line. A line is printed and the
JSON file is written as each case ends; cases for which --budget leaves no time are skipped. On a machine without an
accelerator use --small, which tries everything at a size whose numbers mean nothing.

tokens/s: new tokens of rollouts; for updates, completion tokens of rollouts that have a coefficient. share: for
rollouts, what decoding must read (parameters, a prompt's keys once per group, own keys) over the bandwidth of copies;
for updates, the FLOPs of their products, without recomputation, over the peak of products (MFU). Both peaks are
measured in the same call. GB: peak of the device's memory. first: seconds of the first call; compile: XLA's part of it.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import harness

if TYPE_CHECKING:
    from tsallis_rl.models import Architecture

Row = dict[str, Any]
PACKAGES = ("jax", "jaxlib", "torch", "transformers", "trl")
ENOUGH, LEAST_CALLS, MOST_CALLS = 4.0, 2, 5  # seconds of calls after the first, and their number
TORCH_MICRO_BATCH = 8
OF_TORCH = ("generate", "trl")
TORCH = {"gpu": "cuda", "cpu": "cpu"}  # jax's name of a processor -> torch's


class Case(NamedTuple):
    """One thing to measure.

    Attributes:
      what: peaks, rollouts, update, generate (transformers) or trl.
      sizes: of the batch.
      uneven: whether lengths are geometric, with a mean of a fifth of the budget.
      used: how many of M coefficients are not zero; None for all.
    """

    what: str
    sizes: harness.Sizes
    uneven: bool = False
    used: int | None = None


LONG, SHORT = harness.Sizes(8, 32, 1024, 512), harness.Sizes(4, 32, 256, 128)
SMALL_LONG, SMALL_SHORT = harness.Sizes(2, 4, 32, 8), harness.Sizes(1, 4, 16, 8)


def cases(small: bool) -> dict[str, Case]:
    """Lists the cases by name, in order of importance."""
    long, short = (SMALL_LONG, SMALL_SHORT) if small else (LONG, SHORT)
    return {
        "peaks": Case("peaks", long),
        f"rollouts {long}": Case("rollouts", long),
        f"update {long}": Case("update", long),
        f"update {long}, 4 of M used": Case("update", long, used=4),
        f"rollouts {short}": Case("rollouts", short),
        f"transformers {short}": Case("generate", short),
        f"TRL's update {long}": Case("trl", long),
        f"transformers {long}": Case("generate", long),
        f"update {short}": Case("update", short),
        f"rollouts {long}, uneven": Case("rollouts", long, uneven=True),
        f"update {long}, uneven": Case("update", long, uneven=True),
    }


def architecture(args: argparse.Namespace) -> "Architecture":
    """Returns Qwen3-0.6B's shape, or with --small a shape that a CPU computes in a moment."""
    from tsallis_rl.models import SIZES
    from tsallis_rl.models.architecture import known_remat

    arch = dataclasses.replace(SIZES["qwen3-0.6b"], dtype="bfloat16", remat=known_remat(args.remat))
    few = {"vocab_size": 512, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 128}
    return dataclasses.replace(arch, **few) if args.small else arch


def timed(once: Callable[[], object]) -> Row:
    """Measures wall seconds of the first call, and the median of later calls until they take ENOUGH seconds."""
    began = time.perf_counter()
    once()
    first, seconds = time.perf_counter() - began, []
    while len(seconds) < LEAST_CALLS or (sum(seconds) < ENOUGH and len(seconds) < MOST_CALLS):
        began = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - began)
        if sum(seconds) > 4 * ENOUGH:
            break
    return {"first_s": first, "seconds": statistics.median(seconds), "calls": len(seconds)}


def card() -> Row:
    """Describes the device, and the versions of the packages that use it."""
    import jax

    device = jax.devices()[0]
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return {
        "card": device.device_kind,
        "backend": jax.default_backend(),
        "limit_gb": limit / 1e9 if limit else None,
        "python": sys.version.split()[0],
        "versions": versions,
    }


def peaks(case: Case, args: argparse.Namespace) -> Row:
    """Measures bytes per second read and written by x + 1, and FLOP/s of a product of square bfloat16 matrices."""
    import jax
    import jax.numpy as jnp

    if jax.default_backend() == "cpu" and not args.small:
        sys.exit("jax finds no accelerator here, only a CPU; --small tries everything on it")
    elements, side, calls = (1 << 22, 256, 2) if args.small else (1 << 29, 8192, 20)

    def rate(function: Callable, x: jax.Array, work: float) -> float:
        jax.block_until_ready(function(x))
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            jax.block_until_ready([function(x) for _ in range(calls)][-1])
            best = min(best, (time.perf_counter() - began) / calls)
        return work / best

    vector = jnp.zeros(elements, jnp.bfloat16)
    matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    bandwidth = rate(jax.jit(lambda x: x + 1), vector, 2 * vector.nbytes)
    return card() | {"bandwidth": bandwidth, "flops": rate(jax.jit(lambda x: x @ x), matrix, 2 * side**3)}


def device_gb() -> float:
    """Returns the device's peak memory so far in GB, or the process's on a CPU."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 1e9 * harness.peak_gb()) / 1e9


@contextlib.contextmanager
def profiled(row: Row, wanted: bool) -> Iterator[None]:
    """Adds the kernels of what runs inside to the row, if wanted."""
    if not wanted:
        yield
        return
    import jax

    from benchmarks import kernels

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            yield
        row["profile"] = kernels.table(kernels.read_profile(Path(folder)))


def measured(once: Callable[[], object], args: argparse.Namespace) -> Row:
    """Measures one of our cases: times, compile seconds, memory, and with --profile its kernels."""
    from tsallis_rl.runs.compiling import compile_seconds

    before = compile_seconds()
    row = timed(once) | {"compile_s": compile_seconds().since(before).compiled, "peak_gb": device_gb()}
    with profiled(row, args.profile):
        once()
    return row


def rollouts(case: Case, args: argparse.Namespace) -> Row:
    """Measures rollouts: tokens, milliseconds per decoding step, and the bytes per second that they must read."""
    import jax
    import numpy as np

    from benchmarks import counts
    from benchmarks.rollouts import groups

    arch, sizes = architecture(args), case.sizes
    once, last = groups(arch, sizes, case.uneven), {}

    def whole() -> None:
        last["lengths"] = jax.block_until_ready(once()).rationale_length

    row = measured(whole, args)
    lengths = np.minimum(jax.device_get(last["lengths"]), sizes.new)  # an end-of-think is forced after them
    read = counts.decode_bytes(arch, sizes.prompt, lengths)
    return row | {
        "tokens": int(lengths.sum()),
        "ms": 1e3 * row["seconds"] / int(lengths.max()),
        "bytes_a_second": read / row["seconds"],
    }


def update(case: Case, args: argparse.Namespace) -> Row:
    """Measures updates in the slices that a run on this device chooses: tokens, and FLOP/s of an update's products."""
    import numpy as np

    from benchmarks import counts
    from benchmarks.update import given, steps
    from tsallis_rl.config import base_config
    from tsallis_rl.training.micro_batches import (
        MicroBatches,
        choose,
        device_limit,
        room_of,
        update_slices,
        with_micro_batches,
    )

    arch, sizes = architecture(args), case.sizes
    config = base_config()
    config.train.prompts = config.evaluate.prompts = sizes.prompts
    config.rollouts.update(num_rollouts=sizes.rollouts, max_rationale=sizes.new)
    config.task.update(max_prompt=sizes.prompt, max_answer=1)
    config.model.remat = args.remat
    limit, all_prompts = device_limit(), sizes.prompts
    chosen = MicroBatches(all_prompts, sizes.rollouts, all_prompts, arch.remat)
    if limit:
        chosen = choose(config, arch, 0, 1, limit)
    arch, room = dataclasses.replace(arch, remat=chosen.remat), room_of(config, chosen, 0, 1)
    slices = update_slices(with_micro_batches(config, chosen), 1, room)
    data = given(sizes, case.used, case.uneven)
    row = measured(steps(arch, sizes, data, slices), args)
    lengths = np.where(data.score != 0, data.lengths, 0)
    return row | {
        "tokens": int(lengths.sum()),
        "ms": 1e3 * row["seconds"],
        "flops_a_second": counts.update_flops(arch, sizes.prompt, lengths) / row["seconds"],
        "slices": list(chosen[:2]),  # for rollouts that all have full length and are all used
        "remat": chosen.remat,
    }


def of_torch(case: Case, args: argparse.Namespace) -> Row:
    """Measures a peer on the same device: transformers.generate with its dynamic cache, or TRL's loss path.

    The latter copies prompts, checkpoints layers and updates bfloat16 parameters, in micro-batches of 8 sequences.
    """
    import torch

    from benchmarks import torch_peers

    place = torch_peers.Place(TORCH[args.backend], torch.bfloat16)
    arch, sizes = architecture(args), case.sizes
    if case.what == "generate":
        once = torch_peers.generates(arch, sizes, "dynamic", place)
    else:
        once = torch_peers.updates(arch, sizes, TORCH_MICRO_BATCH, place, checkpointing=True)
    row = timed(once)
    on_gpu = place.device == "cuda"
    return row | {
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else harness.peak_gb(),
        "tokens": sizes.prompts * sizes.rollouts * sizes.new,
        "ms": 1e3 * row["seconds"] / (sizes.new if case.what == "generate" else 1),
    }


MEASURES = {"peaks": peaks, "rollouts": rollouts, "update": update, "generate": of_torch, "trl": of_torch}


def why_not(case: Case, backend: str | None) -> str | None:
    """Returns why a peer cannot be measured here, or None if it can, or if the case is ours."""
    if case.what not in OF_TORCH:
        return None
    if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        return f"{missing[0]} is not installed"
    if backend not in TORCH:
        return "the device is not known, since its peaks were not measured" if backend is None else f"not on {backend}"
    import torch

    return "torch sees no GPU" if backend == "gpu" and not torch.cuda.is_available() else None


def in_process(name: str, args: argparse.Namespace, backend: str | None, seconds: float) -> Row:
    """Measures a case in a process of its own; returns a row with "not_measured" if that fails or takes too long."""
    command = [sys.executable, "-m", "benchmarks.device", f"--only={name}", f"--remat={args.remat}"]
    command += ["--small"] * args.small + ["--profile"] * args.profile + ([f"--backend={backend}"] if backend else [])
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # every first call compiles
    if cases(args.small)[name].what in OF_TORCH:
        environment["JAX_PLATFORMS"] = "cpu"  # leaves the device's memory to torch
    try:
        done = subprocess.run(
            command, cwd=harness.ROOT, env=environment, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"not_measured": f"it did not end in the {seconds:.0f} s that were left"}
    if done.returncode:
        return {"not_measured": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def line(name: str, row: Row, of: Row) -> str:
    """Formats a row of the table; `of` is the row of the peaks."""
    if reason := row.get("not_measured"):
        return f"{name:<34}not measured: {reason}"
    if "bandwidth" in row:
        return (
            f"{row['card']} ({row['backend']}): copies {row['bandwidth'] / 1e9:,.0f} GB/s read and written, bfloat16 "
            f"products {row['flops'] / 1e12:,.2f} TFLOP/s\n"
            f"{'':<34}{'tokens/s':>10}{'ms':>9}{'share':>15}{'GB':>7}{'first s':>9}{'compile s':>11}"
        )
    share = ""
    if "bytes_a_second" in row and "bandwidth" in of:
        share = f"{row['bytes_a_second'] / of['bandwidth']:.1%} bandw."
    elif "flops_a_second" in row and "flops" in of:
        share = f"{row['flops_a_second'] / of['flops']:.1%} MFU"
    compiled = f"{row['compile_s']:.1f}" if "compile_s" in row else ""
    return (
        f"{name:<34}{row['tokens'] / row['seconds']:>10,.0f}{row['ms']:>9.2f}{share:>15}{row['peak_gb']:>7.1f}"
        f"{row['first_s']:>9.1f}{compiled:>11}"
    )


def summary(rows: dict[str, Row]) -> list[str]:
    """Formats what rows say together: our speed over torch's, and the time of a first step with nothing cached."""
    found = {name: row for name, row in rows.items() if "tokens" in row}
    lines = []
    for ours, row in found.items():
        what, _, sizes = ours.partition(" ")
        theirs = {"rollouts": f"transformers {sizes}", "update": f"TRL's update {sizes}"}.get(what)
        if theirs in found:
            times = row["tokens"] / row["seconds"] / (found[theirs]["tokens"] / found[theirs]["seconds"])
            lines.append(f"{ours}: {times:.1f} times {theirs.rpartition(sizes)[0].strip()}")
        if what == "rollouts" and f"update {sizes}" in found and "uneven" not in sizes:
            seconds = row["first_s"] + found[f"update {sizes}"]["first_s"]
            lines.append(f"first step {sizes} with nothing cached, first rollouts and first update: {seconds:.0f} s")
    return lines


def run(args: argparse.Namespace, measure: Callable[[str, argparse.Namespace, str | None, float], Row]) -> None:
    """Measures the cases in order until the budget is used up; prints and saves each as it ends.

    Args:
      args: the program's arguments.
      measure: (case, arguments, backend, remaining seconds) → row.
    """
    began, rows = time.perf_counter(), {}
    result = {"date": datetime.date.today().isoformat(), "shape": "small" if args.small else "qwen3-0.6b",
              "remat": args.remat, "rows": rows}  # fmt: skip
    of_shape = cases(args.small)
    chosen = harness.matching(args.match, of_shape)
    for name, case in of_shape.items():
        if case.what != "peaks" and name not in chosen:
            continue
        of = rows.get("peaks", {})
        left = args.budget - (time.perf_counter() - began)
        reason = f"the budget of {args.budget} s is used up" if left <= 0 else why_not(case, of.get("backend"))
        rows[name] = row = {"not_measured": reason} if reason else measure(name, args, of.get("backend"), left)
        print(line(name, row, of), flush=True)
        if "profile" in row:
            print(f"{row['profile']}\n", flush=True)
        if case.what == "peaks":
            file = Path(args.out or f"device-{re.sub(r'[^a-z0-9]+', '-', row.get('card', 'unknown').lower())}.json")
            if not reason and "not_measured" in row:
                sys.exit("the device's own peaks could not be measured, so nothing else is")
        file.write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(["", *summary(rows), f"all of it: {file} ({time.perf_counter() - began:.0f} s)"]))


def parser() -> argparse.ArgumentParser:
    """Makes the program's parser."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--budget", type=float, default=450, help="seconds for all cases")
    arguments.add_argument("--match", default="", metavar="REGEX", help="only cases whose names it matches")
    arguments.add_argument("--profile", action="store_true", help="kernels by time, of one more call of our cases")
    arguments.add_argument(
        "--remat", default="auto", choices=("auto", "none", "matmuls", "attention", "layers"), help="config.model.remat"
    )
    arguments.add_argument("--small", action="store_true", help="a size for CPUs, which checks that everything runs")
    arguments.add_argument("--out", metavar="FILE", help="JSON; by default device-CARD.json here")
    arguments.add_argument("--only", metavar="CASE", help="measure only this case, in this process, and print JSON")
    arguments.add_argument("--backend", help="with --only: jax's name of the processor, for torch")
    return arguments


def main(given: list[str] | None = None) -> None:
    """Measures all cases, or with --only one."""
    args = parser().parse_args(given)
    if args.only:
        case = cases(args.small)[args.only]
        print(json.dumps(MEASURES[case.what](case, args)))
        return
    run(args, in_process)


if __name__ == "__main__":
    main()
