"""The run directory, the interface to people: config.json, metrics.jsonl, checkpoints/, rollouts/, figures/."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.errors import UserError


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"section.field": value}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _finite(value: Any) -> Any:
    """Strict JSON has no NaN and no infinities: null stands for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunDirectory:
    """A folder that belongs to one config; opening it again continues the run.

    Raises:
      UserError: the folder holds a run of another config; names the first field that differs.
    """

    def __init__(self, path: Path, config: ConfigDict):
        self.path = path
        settings = json.loads(config.to_json())
        file = path / "config.json"
        if file.exists():
            found, wanted = flatten(json.loads(file.read_text())), flatten(settings)
            for field in sorted(found | wanted):
                if found.get(field) != wanted.get(field):
                    raise UserError(
                        f"{path} holds a run with config.{field} = {found.get(field)!r}, this one has "
                        f"{wanted.get(field)!r}; choose another --workdir, or remove that folder"
                    )
        else:
            path.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(settings, indent=2) + "\n")
            partial.rename(file)
        self._metrics = path / "metrics.jsonl"

    def records(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds; a last line that was cut short is left out."""
        if not self._metrics.exists():
            return []
        records = []
        for line in self._metrics.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def rewind(self, step: int) -> None:
        """Drops the records that a run resumed at `step` will write again: all later ones, and step's own update."""
        kept = [r for r in self.records() if r["step"] < step or (r["step"] == step and "train/loss" not in r)]
        partial = self._metrics.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.rename(self._metrics)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line {"step": …, name: value, …}."""
        record = {"step": step, **{name: _finite(value) for name, value in values.items()}}
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def write_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rollouts/step_….jsonl, a readable rollout a line."""
        folder = self.path / "rollouts"
        folder.mkdir(exist_ok=True)
        lines = (json.dumps({k: _finite(v) for k, v in row.items()}, ensure_ascii=False) for row in rows)
        (folder / f"step_{step:06d}.jsonl").write_text("".join(line + "\n" for line in lines))
