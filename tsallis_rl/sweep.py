"""Trains a grid of runs: python -m tsallis_rl.sweep --q=0,.25,.5,.75,1 --estimators=garl,paft,grpo --seeds=3

Every cell of the grid is a run directory of its own, made by `python -m tsallis_rl.main`; --config and its fields are
those of that program. Cells that are done are not run again, those that were stopped continue, one that fails leaves
the others alone. --dry-run prints the commands instead.
"""

import shlex
import subprocess
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from tsallis_rl.config.command_line import command
from tsallis_rl.runs.object_store import local

FLAGS = flags.FlagValues()
Q = flags.DEFINE_list(
    "q", ["0", ".25", ".5", ".75", "1"], "Commitments, for the estimators that have one.", flag_values=FLAGS
)
ESTIMATORS = flags.DEFINE_list(
    "estimators", ["garl", "paft", "grpo"], "Rows of tsallis_rl.objectives.ESTIMATORS.", flag_values=FLAGS
)
SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds: 0, 1, …", lower_bound=1, flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "Folder of the cells; by default runs/sweep-NAME.", flag_values=FLAGS)
JOBS = flags.DEFINE_integer(
    "jobs", None, "Cells at a time; by default one per CPU core, or one on an accelerator.", 1, flag_values=FLAGS
)
QUICK = flags.DEFINE_bool("quick", False, "One seed and a third of the steps.", flag_values=FLAGS)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands, one a line, and run nothing.", flag_values=FLAGS)
flags.DEFINE_alias("dry-run", "dry_run", flag_values=FLAGS)


@command(FLAGS, config=True)
def main(config: ConfigDict) -> None:
    """Makes the cells' commands and runs or prints them."""
    import jax  # here, so that --help and a mistyped flag are answered at once

    from tsallis_rl.sweeps.cells import FAILED, default_jobs, run_cells
    from tsallis_rl.sweeps.commands import TrainingCommand, default_out
    from tsallis_rl.sweeps.grid import check_not_swept, grid, names, numbers

    jax.config.update("jax_platforms", "cpu")  # an accelerator is the cells'
    reference = config_flags.get_config_filename(FLAGS["config"])
    overrides = dict(config_flags.get_override_values(FLAGS["config"]))
    check_not_swept(reference, overrides)
    if QUICK.value:
        overrides["train.steps"] = config.train.steps = max(1, config.train.steps // 3)
    out = local("--out", OUT.value or default_out(config))
    command_line = TrainingCommand(reference, overrides)
    differ = grid(
        config, numbers("--q", Q.value), names("--estimators", ESTIMATORS.value), 1 if QUICK.value else SEEDS.value
    )
    cells = command_line.cells(config, differ, out)
    preparation = command_line.arguments(next(iter(differ.values())), "--prepare")
    if DRY_RUN.value:
        for line in [preparation, *(cell.command for cell in cells)]:
            print(shlex.join(["python", *line[1:]]))
        return
    if not all(cell.is_done() for cell in cells) and (code := subprocess.run(preparation, check=False).returncode):
        sys.exit(code)
    states = run_cells(cells, out, JOBS.value or default_jobs())
    failed = [cell.folder.name for cell in cells if states[cell.folder.name]["state"] == FAILED]
    print(f"{len(cells) - len(failed)} of {len(cells)} cells are done: {out}")
    for name in failed:
        print(f"failed: {name}: {states[name]['error']} (all of it: {out / name / 'log.txt'})", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
