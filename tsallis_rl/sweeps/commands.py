"""The commands of a sweep: `python -m tsallis_rl.main` with the config and the fields of a cell."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.config.files import EMBEDDED, resolved
from tsallis_rl.runs.cache import fingerprint
from tsallis_rl.runs.run_directory import LOG, deciding
from tsallis_rl.sweeps.cells import Cell
from tsallis_rl.sweeps.grid import CellSettings


def make_cells(settings: Mapping[str, CellSettings], out: Path) -> list[Cell]:
    """Makes the cells of a grid, each a run in a folder inside `out`."""
    return [
        Cell(out / name, cell.config, arguments(cell, f"--workdir={out / name}")) for name, cell in settings.items()
    ]


def arguments(cell: CellSettings, *more: str) -> list[str]:
    """Lists the words of the command that trains with a cell's settings, with the flags `more` at the end."""
    file = [] if resolved("--config", cell.reference) == str(EMBEDDED) else [f"--config={cell.reference}"]
    changed = [f"--config.{name}={value}" for name, value in cell.fields.items()]
    return [sys.executable, "-m", "tsallis_rl.main", *file, *changed, *more]


def preparations(cells: Iterable[Cell]) -> list[list[str]]:
    """Lists the commands that fill the cache, one for each set of cells that share data, tokeniser and model."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.shared, cell)
    return [[*cell.command[:-1], "--prepare"] for cell in first.values()]  # replaces --workdir


def default_out(config: ConfigDict) -> str:
    """Returns the default folder of a sweep over one config."""
    return f"runs/sweep-{config.task.name}-{config.task.start}-{fingerprint(deciding(config))}"


def default_grid_out(grid: str, changes: Mapping[str, Any]) -> str:
    """Returns the default folder of a sweep over a grid file; it depends on `changes`, except those of loggers.

    It does not depend on the file's contents, so a block that is added to the file joins the existing cells.
    """
    changes = {name: value for name, value in changes.items() if not name.startswith(f"{LOG}.")}
    return f"runs/sweep-{Path(grid).stem}" + (f"-{fingerprint(changes)}" if changes else "")
