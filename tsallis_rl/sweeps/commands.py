"""The commands of a sweep: `python -m tsallis_rl.main` with the config and the fields of a cell."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.config.files import EMBEDDED
from tsallis_rl.runs.cache import fingerprint
from tsallis_rl.sweeps.cells import Cell
from tsallis_rl.sweeps.grid import with_fields


@dataclasses.dataclass(frozen=True)
class TrainingCommand:
    """The training program with a sweep's config.

    Attributes:
      reference: FILE[:argument] of --config.
      overrides: fields of the config that the sweep's own command line sets.
    """

    reference: str
    overrides: Mapping[str, Any]

    def arguments(self, fields: Mapping[str, Any], *more: str) -> list[str]:
        """Lists the words of the command that sets `fields` too, with the flags `more` at the end."""
        file = [] if self.reference == str(EMBEDDED) else [f"--config={self.reference}"]
        changed = [f"--config.{name}={value}" for name, value in {**self.overrides, **fields}.items()]
        return [sys.executable, "-m", "tsallis_rl.main", *file, *changed, *more]

    def cells(self, config: ConfigDict, differ: Mapping[str, Mapping[str, Any]], out: Path) -> list[Cell]:
        """Makes the cells of a grid, each a run in a folder of `out`.

        Args:
          config: what the cells share.
          differ: cell → the fields in which it differs, as `grid` lists them.
          out: the sweep's folder.
        """
        return [
            Cell(out / name, with_fields(config, fields), self.arguments(fields, f"--workdir={out / name}"))
            for name, fields in differ.items()
        ]


def default_out(config: ConfigDict) -> str:
    """Names the folder of a sweep that is given none."""
    return f"runs/sweep-{config.task.name}-{config.task.start}-{fingerprint(config.to_json())}"
