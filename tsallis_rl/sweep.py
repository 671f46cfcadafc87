"""Trains a grid of runs: estimators, commitments and seeds, or the cells that a file lists.

    python -m tsallis_rl.sweep --q=0,.25,.5,.75,1 --estimators=garl,paft,grpo --seeds=3
    python -m tsallis_rl.sweep --grid=hops --dry-run

--grid is a file, or the name of one in configs/grids; its cells may also differ in start, task and settings. Every
cell is a run directory of its own, made by `python -m tsallis_rl.main`; --config and its fields are those of that
program. --config.section.field=value applies to all cells. Finished cells are not run again, stopped cells continue,
and a cell that fails leaves the others alone. --dry-run prints the commands instead.
"""

import math
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from tsallis_rl.config.command_line import Chosen, command, value_of_flag
from tsallis_rl.config.files import EMBEDDED, named
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import local

if TYPE_CHECKING:
    from tsallis_rl.sweeps.cells import Cell
    from tsallis_rl.sweeps.grid import Block

FLAGS = flags.FlagValues()
GRID = flags.DEFINE_string(
    "grid",
    None,
    "NAME or FILE.py of blocks of cells, in place of --config, --q, --estimators, --seeds.",
    flag_values=FLAGS,
)
Q = flags.DEFINE_list(
    "q", ["0", ".25", ".5", ".75", "1"], "Commitments, for the estimators that have one.", flag_values=FLAGS
)
ESTIMATORS = flags.DEFINE_list(
    "estimators",
    ["garl", "paft", "grpo"],
    "Rows of tsallis_rl.objectives.ESTIMATORS, or MODULE.NAME of yours.",
    flag_values=FLAGS,
)
SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds: 0, 1, …", lower_bound=1, flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "Folder of the cells; by default runs/sweep-NAME.", flag_values=FLAGS)
JOBS = flags.DEFINE_integer(
    "jobs", None, "Cells at a time; by default one per CPU core, or one on an accelerator.", 1, flag_values=FLAGS
)
COST = flags.DEFINE_float(
    "cost",
    None,
    "Price of an hour of this machine; the estimate then says what is left to pay.",
    0.0,
    flag_values=FLAGS,
)
QUICK = flags.DEFINE_bool("quick", False, "One seed and a third of the steps.", flag_values=FLAGS)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands, one a line, and run nothing.", flag_values=FLAGS)
flags.DEFINE_alias("dry-run", "dry_run", flag_values=FLAGS)


def _choose(given: Sequence[str]) -> Chosen:
    """Chooses the config and estimators whose fields --config.… may set; for a grid, its first block's config."""
    file, config = value_of_flag(given, "grid"), value_of_flag(given, "config")
    if file is None:
        named_so = value_of_flag(given, "estimators") or ""
        return Chosen(config or str(EMBEDDED), [name.strip() for name in named_so.split(",")])
    if config is not None:
        raise UserError(f"--config: the blocks of --grid={file} set it; leave one of the two out")
    from tsallis_rl.sweeps.grid import load_blocks  # here, because it imports jax, and flags should not wait for that

    blocks = list(load_blocks(file).values())
    return Chosen(blocks[0].config, [name for block in blocks for name in block.estimators])


@command(FLAGS, config=True, choose=_choose)
def main(config: ConfigDict, reference: str) -> None:
    """Makes the cells' commands and runs or prints them."""
    import jax  # here, so that --help and mistyped flags are answered at once

    from tsallis_rl.sweeps.cells import default_jobs, estimate, read_states, run_cells
    from tsallis_rl.sweeps.commands import make_cells, preparations
    from tsallis_rl.sweeps.grid import expand

    jax.config.update("jax_platforms", "cpu")  # leaves the accelerator to the cells
    if not math.isfinite(COST.value or 0.0):
        raise UserError(f"--cost={COST.value}: give the price of an hour as a number")
    overrides = dict(config_flags.get_override_values(FLAGS["config"]))
    blocks, default_out = _of_grid(GRID.value, overrides) if GRID.value else _of_flags(config, reference, overrides)
    out = local("--out", OUT.value or default_out)
    cells = make_cells(expand(blocks, overrides, quick=QUICK.value), out)
    if DRY_RUN.value:
        try:
            told = estimate(cells, read_states(cells, out), JOBS.value or 1, COST.value)
        except UserError as error:  # the commands may be for other folders, such as a launcher's
            told = f"NOTE: the sweep would end here: {error}"
        for line in [*preparations(cells), *(cell.command for cell in cells)]:
            print(shlex.join(["python", *line[1:]]))
        print(told, file=sys.stderr)
        return
    for preparation in preparations(cell for cell in cells if not cell.is_done()):
        if code := subprocess.run(preparation, check=False).returncode:
            sys.exit(code)
    states = run_cells(cells, out, JOBS.value or default_jobs(), COST.value)
    sys.exit(0 if tell_end(cells, states, out) else 1)


def tell_end(cells: Sequence["Cell"], states: Mapping[str, Mapping[str, Any]], out: Path) -> bool:
    """Prints how many cells are done, and why others are not; returns whether all are."""
    from tsallis_rl.sweeps.cells import DONE

    left = {name: state for cell in cells if (state := states[name := cell.folder.name])["state"] != DONE}
    print(f"{len(cells) - len(left)} of {len(cells)} cells are done: {out}")
    for name, state in left.items():
        why = state.get("error", "the same command continues it")
        print(f"{state['state']}: {name}: {why} (all of it: {out / name / 'log.txt'})", file=sys.stderr)
    print(f"report: {shlex.join(['python', '-m', 'tsallis_rl.report', str(out)])}", flush=True)
    return not left


def _of_grid(grid: str, overrides: Mapping[str, Any]) -> tuple[dict[str, "Block"], str]:
    """Reads the blocks of a grid file; returns them with the sweep's default folder."""
    from tsallis_rl.sweeps.commands import default_grid_out
    from tsallis_rl.sweeps.grid import BY_BLOCKS, check_not_swept, load_blocks

    for flag in ("q", "estimators", "seeds"):
        if FLAGS[flag].present:
            raise UserError(f"--{flag}: the blocks of --grid={grid} set it; leave one of the two out")
    check_not_swept("", overrides, BY_BLOCKS)
    changes = {**overrides, "--quick": True} if QUICK.value else overrides
    return load_blocks(grid), default_grid_out(grid, changes)


def _of_flags(config: ConfigDict, reference: str, overrides: Mapping[str, Any]) -> tuple[dict[str, "Block"], str]:
    """Makes one block from --config, --q, --estimators and --seeds; returns it with the sweep's default folder."""
    from tsallis_rl.objectives import follows_q
    from tsallis_rl.sweeps.commands import default_out
    from tsallis_rl.sweeps.grid import BY_FLAGS, Block, check_not_swept, names, numbers

    reference = named(reference)
    check_not_swept(reference, overrides, BY_FLAGS)
    q = numbers("--q", Q.value)
    commitment = config.estimator.commitment
    estimators = {name: q if follows_q(name, commitment) else () for name in names("--estimators", ESTIMATORS.value)}
    if FLAGS["q"].present and not any(estimators.values()):
        followed = "" if commitment == "power" else f" with config.estimator.commitment={commitment}"
        raise UserError(f"--q={','.join(Q.value)}: none of {', '.join(estimators)} takes q{followed}; leave --q out")
    if QUICK.value:
        config.train.steps = max(1, config.train.steps // 3)
    return {"": Block(reference, estimators, seeds=SEEDS.value, name="")}, default_out(config)


if __name__ == "__main__":
    main()
