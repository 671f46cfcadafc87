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
    arguments.add_argument("--tunix-python", metavar="PATH", help="Python of an environment with google-tunix")
    return arguments


def main(description: str, module: str, cases: Mapping[str, Callable[[argparse.Namespace], dict[str, float]]]) -> None:
    """A benchmark's program: measures each case in a process of its own, or here the one asked for by --only."""
    args = parser(description, list(cases)).parse_args()
    if args.only:
        print(json.dumps(cases[args.only](args)))
        return
    shape = {name: getattr(args, name) for name in ("prompt", "new", "rollouts", "vocab", "layers", "repeats")}
    rows = {
        name: measure(module, name, interpreter(name, args.tunix_python), **shape)
        for name in cases
        if re.search(args.match, name)
    }
    print(f"{module}: {PROMPTS} prompts of {args.prompt} × {args.rollouts}, {args.new} tokens each")
    print(table(rows, PROMPTS * args.rollouts * args.new))


def interpreter(name: str, tunix: str | None) -> str | None:
    """The interpreter that measures a case: Tunix has one of its own, or none."""
    return tunix if name.startswith("Tunix") else sys.executable


def timed(once: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median CPU and wall seconds of `once`, after one call that compiles, and the process's peak memory in GB."""
    once()
    cpu, wall = [], []
    for _ in range(repeats):
        started = time.process_time(), time.perf_counter()
        once()
        cpu.append(time.process_time() - started[0])
        wall.append(time.perf_counter() - started[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": statistics.median(cpu), "wall": statistics.median(wall), "peak_gb": peak}


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
    first = next(iter(rows.values()))
    for name, row in rows.items():
        if row is None:
            lines.append(f"{name:<24}{'not measured':>19}")
            continue
        seconds = row["seconds"] * tokens / (row.get("tokens") or tokens)  # for as many tokens as the others
        lines.append(
            f"{name:<24}{row['seconds']:>9.2f}{tokens / seconds:>10.0f}{row['peak_gb']:>9.2f}"
            f"{seconds / first['seconds']:>9.1f}{row['peak_gb'] / first['peak_gb']:>10.1f}"
        )
    return "\n".join(lines)
