"""What the benchmarks share: the model, its inputs, one pinned process per measurement, tables.

Every measurement runs alone in a process of its own on one core. Times are CPU seconds of that process: on one core
that is wall time less what other programs took, so that a busy machine changes the ratios little.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMPTS, ROLLOUTS = 4, 32
DOUBLED = {"M": "rollouts", "prompt": "prompt", "rationale": "new", "layers": "layers", "vocabulary": "vocab"}
VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 4096, 256, 8, 8, 4, 32, 768


def architecture(**changes):
    """Model S, a small Qwen3."""
    from tsallis_rl.models import Architecture

    settings = {
        "vocab_size": VOCAB, "width": WIDTH, "layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM, "ffn": FFN, "context": 8192, "rope_theta": 1e6,
    }  # fmt: skip
    return Architecture(**settings | changes)


def parser(description: str | None, names: Sequence[str]) -> argparse.ArgumentParser:
    """Arguments of every benchmark; `--only` makes the process itself measure one thing and print it as JSON."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", choices=names, help="measure this one here, as JSON, instead of all in processes")
    arguments.add_argument(
        "--match", default="", metavar="REGEX", help="measure only the cases in whose names it is found"
    )
    arguments.add_argument("--prompt", type=int, default=256, help="prompt tokens")
    arguments.add_argument("--new", type=int, default=128, help="sampled tokens a rollout")
    arguments.add_argument("--rollouts", type=int, default=ROLLOUTS, help="M")
    arguments.add_argument("--vocab", type=int, default=VOCAB)
    arguments.add_argument("--layers", type=int, default=LAYERS)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--growth", action="store_true", help="only the first case, with each size doubled")
    arguments.add_argument("--tunix-python", metavar="PATH", help="Python of an environment with google-tunix")
    return arguments


def main(description: str, module: str, cases: Mapping[str, Callable[[argparse.Namespace], dict[str, float]]]) -> None:
    """A benchmark's program: measures each case in a process of its own, or here the one asked for by --only."""
    args = parser(description, list(cases)).parse_args()
    if args.only:
        print(json.dumps(cases[args.only](args)))
        return
    shape = {name: getattr(args, name) for name in (*DOUBLED.values(), "repeats")}
    chosen = [name for name in cases if re.search(args.match, name)]
    print(f"{module}: {PROMPTS} prompts of {args.prompt} × {args.rollouts}, {args.new} tokens each")
    limit = measure("benchmarks.limits", "limits")
    print(f"this core: {limit['flops'] / 1e9:.0f} GFLOP/s in products, {limit['bandwidth'] / 1e9:.0f} GB/s in copies")
    if args.growth:
        growth(module, chosen[0], shape, limit)
        return
    rows = {name: measure(module, name, interpreter(name, args.tunix_python), **shape) for name in chosen}
    print(table(rows | {"the limit": at_limit(module, shape, limit)}, PROMPTS * args.rollouts * args.new))


def doubled(shape: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The shape as it is, under "", and with one size doubled at a time."""
    return {"": dict(shape)} | {f"2 × {name}": {**shape, field: 2 * shape[field]} for name, field in DOUBLED.items()}


def at_limit(module: str, shape: Mapping[str, int], limit: Mapping[str, float]) -> dict[str, float]:
    """What ours would take if its counted products ran, or its bytes came, at the measured limit."""
    from benchmarks import limits

    return {"seconds": limits.seconds(module, shape, **limit)}


def growth(module: str, case: str, shape: Mapping[str, int], limit: Mapping[str, float]) -> None:
    """Prints seconds and peak memory of a case with each size doubled, over those of the first row and the limit."""
    print(f"{case:<16}{'seconds':>9}{'× first':>9}{'peak GB':>9}{'× first':>9}{'limit':>9}{'× limit':>9}")
    first = None
    for name, changed in doubled(shape).items():
        row = measure(module, case, **changed)
        if row is None:
            print(f"{name:<16}{'not measured':>18}")
            continue
        first = first or row
        least = at_limit(module, changed, limit)["seconds"]
        print(
            f"{name:<16}{row['seconds']:>9.2f}{row['seconds'] / first['seconds']:>9.2f}{row['peak_gb']:>9.2f}"
            f"{row['peak_gb'] / first['peak_gb']:>9.2f}{least:>9.2f}{row['seconds'] / least:>9.1f}",
            flush=True,
        )


def interpreter(name: str, tunix: str | None) -> str | None:
    """The interpreter that measures a case: Tunix has one of its own, or none."""
    return tunix if name.startswith("Tunix") else sys.executable


def timed(once: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median CPU and wall seconds of `once`, after one call that compiles; of that call where there are no repeats.

    In GB: the process's peak, what it was before that call, and what the largest of XLA's programs takes for its own
    arguments, results and intermediates (0 for those that do not use XLA).
    """
    before = peak_gb()
    cpu, wall = [], []
    for _ in range(1 + repeats):
        started = time.process_time(), time.perf_counter()
        once()
        cpu.append(time.process_time() - started[0])
        wall.append(time.perf_counter() - started[1])
    first = min(repeats, 1)
    return {
        "seconds": statistics.median(cpu[first:]),
        "wall": statistics.median(wall[first:]),
        "peak_gb": peak_gb(),
        "before_gb": before,
        "program_gb": program_gb(),
    }


def peak_gb() -> float:
    """The process's largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def program_gb() -> float:
    """Arguments, results and intermediates of the largest program that XLA has compiled in this process."""
    if "jax" not in sys.modules:
        return 0.0
    programs = sys.modules["jax"].devices()[0].client.live_executables()
    stats = [program.get_compiled_memory_stats() for program in programs]
    sizes = [
        x.argument_size_in_bytes + x.output_size_in_bytes + x.temp_size_in_bytes - x.alias_size_in_bytes for x in stats
    ]
    return max(sizes, default=0) / 1e9


def measure(
    module: str, only: str, python: str | None = sys.executable, **arguments: object
) -> dict[str, float] | None:
    """One measurement in its own process on one core; None, with the reason printed, if it cannot be made."""
    if python is None:
        print(f"{only}: not measured: it needs --tunix-python=PATH", file=sys.stderr)
        return None
    command = [python, "-m", module, f"--only={only}"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]
    core = max(os.sched_getaffinity(0))
    done = subprocess.run(
        ["taskset", "-c", str(core), *command], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "NPROC": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{only}: not measured: {reason}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(rows: Mapping[str, dict[str, float] | None], tokens: int) -> str:
    """Tokens a second, peak memory, and how many times the first row is as fast and as small as each."""
    lines = [f"{'':<24}{'seconds':>9}{'tokens/s':>10}{'peak GB':>9}{'speed ×':>9}{'memory ×':>10}"]
    first = next(row for row in rows.values() if row)
    for name, row in rows.items():
        if row is None:
            lines.append(f"{name:<24}{'not measured':>19}")
            continue
        seconds = row["seconds"] * tokens / (row.get("tokens") or tokens)  # for as many tokens as the others
        peak, smaller = (
            (f"{row['peak_gb']:.2f}", f"{row['peak_gb'] / first['peak_gb']:.1f}") if "peak_gb" in row else ("", "")
        )
        lines.append(
            f"{name:<24}{row['seconds']:>9.2f}{tokens / seconds:>10.0f}{peak:>9}"
            f"{seconds / first['seconds']:>9.1f}{smaller:>10}".rstrip()
        )
    return "\n".join(lines)
