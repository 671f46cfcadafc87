"""Measures cases of a benchmark and prints tables: model S, its sizes, one pinned process per measurement.

Every measurement runs alone in a process of its own on one core. Times are CPU seconds of that process: on one core
that is wall time minus what other programs took, so that a busy machine hardly changes the ratios.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tsallis_rl.models import Architecture

Case = Callable[[argparse.Namespace], dict[str, float]]
AtLimit = Callable[[str, Mapping[str, int], Mapping[str, float]], float]

ROOT = Path(__file__).parents[1]
PROMPTS, ROLLOUTS = 4, 32
DOUBLED = {"M": "rollouts", "prompt": "prompt", "rationale": "new", "layers": "layers", "vocabulary": "vocab"}
VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 4096, 256, 8, 8, 4, 32, 768


class Sizes(NamedTuple):
    """The sizes of what is measured: P prompts of T0 tokens, M rollouts per prompt, `new` tokens each."""

    prompts: int
    rollouts: int
    prompt: int
    new: int

    def __str__(self) -> str:
        return f"{self.prompts} × {self.rollouts}, {self.prompt}/{self.new}"


def architecture(**changes: Any) -> "Architecture":
    """Returns model S, a small Qwen3."""
    from tsallis_rl.models import Architecture  # here: Tunix's environment has none of its requirements

    settings = {
        "vocab_size": VOCAB, "width": WIDTH, "layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM, "ffn": FFN, "context": 8192, "rope_theta": 1e6,
    }  # fmt: skip
    return Architecture(**settings | changes)


def parser(description: str | None, names: Sequence[str]) -> argparse.ArgumentParser:
    """Makes the parser of every benchmark; `--only` measures one case in this process and prints it as JSON."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", choices=names, help="measure only this case, in this process, and print JSON")
    arguments.add_argument(
        "--match", default="", metavar="REGEX", help="measure only the cases whose names match the regex"
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


def main(description: str, module: str, cases: Mapping[str, Case], at_limit: AtLimit) -> None:
    """Runs a benchmark's program: measures each case in a process of its own, or in this one the case of --only.

    Args:
      description: of the program, for --help.
      module: its dotted name.
      cases: name → the function that measures it, from the program's arguments.
      at_limit: (module, sizes, limit of this core) → seconds of our own case at that limit.
    """
    args = parser(description, list(cases)).parse_args()
    if args.only:
        print(json.dumps(cases[args.only](args)))
        return
    sizes = {name: getattr(args, name) for name in (*DOUBLED.values(), "repeats")}
    chosen = matching(args.match, cases)
    print(f"{module}: {PROMPTS} prompts of {args.prompt} × {args.rollouts}, {args.new} tokens each")
    if not (limit := measure("benchmarks.limits", "limits")):
        raise SystemExit("benchmarks.limits failed, with which every case is compared; the reason is above")
    print(f"this core: {limit['flops'] / 1e9:.0f} GFLOP/s in products, {limit['bandwidth'] / 1e9:.0f} GB/s in copies")
    if args.growth:
        print_growth(module, chosen[0], sizes, lambda changed: at_limit(module, changed, limit))
        return
    rows = {name: measure(module, name, interpreter(name, args.tunix_python), **sizes) for name in chosen}
    least = {"seconds": at_limit(module, sizes, limit)}
    print(table(rows | {"the limit": least}, PROMPTS * args.rollouts * args.new))


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Lists the cases that --match selects; ends the program with a sentence if it selects none."""
    try:
        found = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise SystemExit(f"--match={pattern!r} is not a regular expression ({error})") from None
    if not found:
        raise SystemExit(f"--match={pattern!r} matches no case; there are {', '.join(names)}")
    return found


def double_each(sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Returns the sizes as they are, under "", and with one size doubled at a time."""
    return {"": dict(sizes)} | {f"2 × {name}": {**sizes, field: 2 * sizes[field]} for name, field in DOUBLED.items()}


def print_growth(
    module: str, case: str, sizes: Mapping[str, int], at_limit: Callable[[Mapping[str, int]], float]
) -> None:
    """Prints seconds and peak memory of a case with each size doubled, and their ratios to the first row and limit."""
    print(f"{case:<16}{'seconds':>9}{'× first':>9}{'peak GB':>9}{'× first':>9}{'limit':>9}{'× limit':>9}")
    first = None
    for name, changed in double_each(sizes).items():
        row = measure(module, case, **changed)
        if row is None:
            print(f"{name:<16}{'not measured':>18}")
            continue
        first = first or row
        least = at_limit(changed)
        print(
            f"{name:<16}{row['seconds']:>9.2f}{row['seconds'] / first['seconds']:>9.2f}{row['peak_gb']:>9.2f}"
            f"{row['peak_gb'] / first['peak_gb']:>9.2f}{least:>9.2f}{row['seconds'] / least:>9.1f}",
            flush=True,
        )


def interpreter(name: str, tunix: str | None) -> str | None:
    """Returns the interpreter that measures a case: Tunix has its own, or None if it was not given."""
    return tunix if name.startswith("Tunix") else sys.executable


def time_calls(once: Callable[[], object], repeats: int) -> dict[str, float]:
    """Measures median CPU and wall seconds of `once` after a first call, which compiles; of that call if no repeats.

    Also returns, in GB: the process's peak, its peak before the first call, and the arguments, results and
    intermediates of the largest of XLA's programs (0 if there is none).
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
    """Returns the process's largest resident set so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def program_gb() -> float:
    """Returns the GB of arguments, results and intermediates of the largest program that XLA compiled here."""
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
    """Measures one case in its own process on one core; returns None, with the reason printed, if that fails."""
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
    """Formats a table: seconds, tokens per second, peak memory, and seconds and memory over those of the first row."""
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
