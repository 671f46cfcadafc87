"""Measures the time before anything is trained: --help, imports, and the embedded default up to its first step.

python -m benchmarks.startup

Cold means an empty compilation cache; the base model, which a user's first run trains for two minutes, is always there.
Seconds are CPU and wall seconds of one process on one core, both from the process's start.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import harness
from tsallis_rl.runs.cache import cache_folder

Clock = tuple[float, float]  # CPU seconds of this process, and wall seconds since it was started


def _clock() -> Clock:
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    since_start = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.process_time(), since_start


def program(*arguments: str) -> dict[str, float]:
    """Measures CPU and wall seconds of one Python program."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], check=False, stdout=subprocess.DEVNULL)
    assert not done.returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": time.perf_counter() - started}


def first_step(args: argparse.Namespace) -> dict[str, float]:
    """Measures tsallis_rl.main up to its first logged step: CPU seconds by phase and in all, wall, and compiling."""
    phases: dict[str, float] = {}
    compiling: dict[str, float] = {}

    def timed(name: str, function: Callable) -> Callable:
        def measured(*inputs, **named):
            started = time.process_time()
            try:
                return function(*inputs, **named)
            finally:
                phases[name] = phases.get(name, 0.0) + time.process_time() - started

        return measured

    timed("imports", _imports)()
    import jax

    from tsallis_rl import main
    from tsallis_rl.evaluation.evaluator import Evaluator
    from tsallis_rl.training import loop as train
    from tsallis_rl.training.step import TrainingStep

    def heard(event: str, seconds: float, **_: object) -> None:
        compiling[event] = compiling.get(event, 0.0) + seconds

    jax.monitoring.register_event_duration_secs_listener(heard)
    train.prepare = timed("task and tokeniser", train.prepare)
    train.initial_state = timed("base model and optimiser", train.initial_state)
    Evaluator.__call__ = timed("evaluations", Evaluator.__call__)
    train.Checkpoints.save = timed("checkpoint", train.Checkpoints.save)
    TrainingStep.__call__ = timed("first step", TrainingStep.__call__)
    log = train.RunDirectory.log

    class Logged(Exception):
        pass

    def until_the_first(run, step, values):
        log(run, step, values)
        if "train/loss" in values:
            raise Logged(_clock())

    train.RunDirectory.log = until_the_first
    with tempfile.TemporaryDirectory() as folder:
        try:
            main.main([f"--workdir={folder}/run"])
        except Logged as logged:
            cpu, wall = logged.args[0]
    events = {
        "of it tracing (wall)": "/jax/core/compile/jaxpr_trace_duration",
        "of it lowering (wall)": "/jax/core/compile/jaxpr_to_mlir_module_duration",
        "of it compiling, or reading the cache (wall)": "/jax/core/compile/backend_compile_duration",
    }
    rest = cpu - sum(phases.values())
    return phases | {"rest": rest, "all": cpu, "wall": wall} | {k: compiling.get(v, 0.0) for k, v in events.items()}


def _imports() -> None:
    import tsallis_rl.main
    import tsallis_rl.training.loop  # noqa: F401


CASES: dict[str, harness.Case] = {
    "--help": lambda args: program("-m", "tsallis_rl.main", "--help"),
    "imports": lambda args: program("-c", "import tsallis_rl.training.loop"),
    "first step": first_step,
}


def main() -> None:
    """Prints medians of --help and imports; then the first step, cold and cached, phase by phase."""
    args = harness.parser(__doc__, list(CASES)).parse_args()
    if args.only:
        print(json.dumps(CASES[args.only](args)))
        return
    for name in ("--help", "imports"):
        rows = [harness.measure("benchmarks.startup", name) for _ in range(5)]
        cpu, wall = (statistics.median(row[clock] for row in rows) for clock in ("cpu", "wall"))
        print(f"{name:<42}{cpu:>8.2f}{wall:>8.2f}   CPU seconds, wall; medians of 5")
    subprocess.run([sys.executable, "-m", "tsallis_rl.main", "--prepare"], cwd=harness.ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("base", "tokenizers"):
            cache_folder(kind).mkdir(parents=True, exist_ok=True)
            (Path(folder) / kind).symlink_to(cache_folder(kind))
        os.environ["TSALLIS_RL_CACHE"] = folder
        cold, *cached = (harness.measure("benchmarks.startup", "first step") for _ in range(1 + args.repeats))
    print(f"\n{'up to the first step: CPU seconds':<42}{'cold':>8}{'cached':>8}")
    for phase in cold:
        print(f"{phase:<42}{cold[phase]:>8.2f}{statistics.median(row[phase] for row in cached):>8.2f}")


if __name__ == "__main__":
    main()
