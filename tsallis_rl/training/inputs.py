"""Keeps fingerprints of a run's inputs, and compares them when it continues (`tsallis_rl.runs.fingerprints`)."""

import json
import sys
from pathlib import Path
from typing import Any

from tsallis_rl.models.architecture import architecture_fingerprint
from tsallis_rl.objectives import compared_estimators
from tsallis_rl.runs.cache import write_whole
from tsallis_rl.runs.devices import draw_settings
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.fingerprints import FILE, other_code, other_inputs, weights_fingerprints
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.runs.own_code import code_fingerprints
from tsallis_rl.tasks.encoding import fingerprint
from tsallis_rl.tasks.tokenizers import vocabulary_fingerprint
from tsallis_rl.training.setup import Setup


def keep_inputs(setup: Setup, folder: Path, *, continues: bool) -> None:
    """Writes the fingerprints to a run's folder; if the run continues, compares them with those kept there.

    Only the first process calls this.

    Raises:
      UserError: it continues with other inputs.
    """
    file, found, code = folder / FILE, inputs(setup), own_code(setup)
    if continues and file.exists():
        if other := other_inputs(found, folder):
            raise UserError(f"{folder}: the run cannot continue here {other}, or start in another --workdir")
        if other := other_code(code, folder):
            print(f"WARNING: {folder}: {other}; the run continues with what is there now", file=sys.stderr)
        found = read_object(file)
        if found.get("code") == code:
            return
    elif continues:
        print(
            f"WARNING: {folder} keeps no {FILE}, as the version that began the run did not write it: data, tokeniser "
            "and model cannot be compared with those that it began with; the current ones are kept from here on",
            file=sys.stderr,
        )
    write_whole(file, (json.dumps(found | {"code": code}, indent=2) + "\n").encode())


def own_code(setup: Setup) -> dict[str, str]:
    """Computes the fingerprints of the user's own code: of the task, its graders and rewards, and estimators."""
    config = setup.config
    names = (config.task.get(name) for name in ("name", "metric", "reward"))
    estimators = {config.estimator.name, *compared_estimators(config.shadow)}
    return code_fingerprints([*(name for name in names if isinstance(name, str)), *sorted(estimators)])


def inputs(setup: Setup) -> dict[str, Any]:
    """Computes the fingerprints of what a run is made from.

    Raises:
      UserError: a file of weights cannot be read.
    """
    return {
        "splits": {name: fingerprint(split) for name, split in sorted(setup.splits.items())},
        "tokenizer": vocabulary_fingerprint(setup.tokenizer),
        "architecture": architecture_fingerprint(setup.arch),
        "weights": dict(weights_fingerprints(setup.config.model.size, setup.config.model.adapter)),
        "draws": draw_settings(),
    }
