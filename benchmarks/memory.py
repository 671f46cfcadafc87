"""Measures the peak memory of a process that samples and of one that updates, in GB, ours and the peers'.

python -m benchmarks.memory
python -m benchmarks.memory --growth --match='rollouts: ours$|update: ours$'
python -m benchmarks.memory --peers --tunix-python=tunix/bin/python

before: the process's peak until it compiles, with imports, parameters and inputs. program: arguments, results and
intermediates of the largest program as XLA plans them. peak: the process's largest resident set, compiler included.
cached: the same peak when compiled programs come from the persistent cache, as in every run but a user's first.
"""

import argparse
import json
import os
import tempfile

from benchmarks import harness

OURS = [
    ("rollouts", "ours"),
    ("rollouts", "ours, copied prompts"),
    ("update", "ours"),
    ("update", "ours, remat layers"),
    ("update", "ours, keeps everything"),
    ("update", "ours, copied prompts"),
]
PEERS = [
    ("rollouts", "generate, dynamic cache"),
    ("rollouts", "generate, static cache"),
    ("rollouts", "Tunix"),
    ("update", "TRL, micro-batch 4"),
    ("update", "TRL, micro-batch 16"),
    ("update", "Tunix, micro-batch 4"),
]


def imports(args: argparse.Namespace) -> dict[str, float]:
    """Measures a process that imports jax and nothing of ours."""
    import jax  # noqa: F401

    return {"peak_gb": harness.peak_gb()}


def sampler(args: argparse.Namespace) -> dict[str, float]:
    """Measures a process that imports the sampler and the learner."""
    import tsallis_rl.sampler.sampler
    import tsallis_rl.training.learner  # noqa: F401

    return {"peak_gb": harness.peak_gb()}


def smallest(args: argparse.Namespace) -> dict[str, float]:
    """Measures a process that imports both, then compiles and runs one sum."""
    import jax

    sampler(args)
    jax.jit(lambda x: x + 1)(1.0).block_until_ready()
    return {"peak_gb": harness.peak_gb()}


FLOORS: dict[str, harness.Case] = {
    "import jax": imports,
    "and of tsallis_rl": sampler,
    "and one sum compiled": smallest,
}


def row(program: str, case: str, python: str | None, shape: dict[str, int], repeats: int) -> str:
    """Measures one row of the table; measures our cases again with the programs that the first process compiled."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        times = 2 if case.startswith("ours") else 1
        rows = [harness.measure(f"benchmarks.{program}", case, python, **shape, repeats=repeats) for _ in range(times)]
    if None in rows:
        return f"{'not measured':>24}"
    first = rows[0]
    own = f"{first['program_gb']:>9.2f}" if first["program_gb"] else f"{'':>9}"
    cached = f"{rows[1]['peak_gb']:>9.2f}" if len(rows) == 2 else ""
    return f"{first['before_gb']:>9.2f}{own}{first['peak_gb']:>9.2f}{cached}"


def main() -> None:
    """Prints the memory of any process, then a line per case, and with --growth one for each doubled size."""
    parser = harness.parser(__doc__, list(FLOORS))
    parser.add_argument("--peers", action="store_true", help="measure the peers as well")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(FLOORS[args.only](args)))
        return
    cases = {f"{program}: {case}": (program, case) for program, case in OURS + (PEERS if args.peers else [])}
    chosen = harness.matching(args.match, cases)
    shape = {name: getattr(args, name) for name in harness.DOUBLED.values()}
    print(f"{harness.PROMPTS} prompts of {args.prompt} × {args.rollouts}, {args.new} tokens each: GB")
    print(f"{'':<34}{'before':>9}{'program':>9}{'peak':>9}{'cached':>9}")
    for name in FLOORS:
        found = harness.measure("benchmarks.memory", name)
        print(f"{name:<34}" + (f"{found['peak_gb']:>27.2f}" if found else f"{'not measured':>27}"), flush=True)
    for name in chosen:
        program, case = cases[name]
        python = harness.interpreter(case, args.tunix_python)
        for changed, sizes in (harness.double_each(shape) if args.growth else {"": shape}).items():
            line = row(program, case, python, sizes, args.repeats)
            print(f"{f'    {changed}' if changed else name:<34}{line}", flush=True)


if __name__ == "__main__":
    main()
