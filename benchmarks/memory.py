"""Peak memory of a process that samples, and of one that updates, and how it grows when one thing is doubled.

python -m benchmarks.memory
python -m benchmarks.memory --peers --tunix-python=tunix/bin/python

The peak is the process's largest resident set: program, compiler and parameters included. Peers take an hour.
"""

from benchmarks import harness

OURS = [
    ("rollouts", "ours"),
    ("update", "ours"),
    ("update", "ours, keeps everything"),
    ("update", "ours, remat layers"),
]
PEERS = [
    ("rollouts", "generate, dynamic cache"),
    ("rollouts", "Tunix"),
    ("update", "TRL, micro-batch 16"),
    ("update", "Tunix, micro-batch 16"),
]
DOUBLED = {
    "M": "rollouts",
    "prompt": "prompt",
    "rationale": "new",
    "layers": "layers",
    "vocabulary": "vocab",
}


def main() -> None:
    """One row for the shape as it is and one for each thing doubled: GB, and how many times the first row."""
    parser = harness.parser(__doc__, [])
    parser.add_argument("--peers", action="store_true", help="measure the peers as well")
    args = parser.parse_args()
    shape = {name: getattr(args, name) for name in DOUBLED.values()}
    rows = {"": shape} | {f"2 × {name}": shape | {field: 2 * shape[field]} for name, field in DOUBLED.items()}
    print(f"{harness.PROMPTS} prompts of {args.prompt} × {args.rollouts}, {args.new} tokens each: peak GB, × the first")
    for program, case in OURS + (PEERS if args.peers else []):
        print(f"\n{program}: {case}")
        first = None
        for name, changed in rows.items():
            python = harness.interpreter(case, args.tunix_python)
            measured = harness.measure(f"benchmarks.{program}", case, python, **changed, repeats=1)
            if measured is None:
                print(f"  {name:<14}{'not measured':>14}")
                continue
            first = first or measured["peak_gb"]
            print(f"  {name:<14}{measured['peak_gb']:>8.2f}{measured['peak_gb'] / first:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
