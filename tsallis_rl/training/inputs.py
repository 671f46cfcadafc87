"""Keeps fingerprints of a run's inputs, and compares them when it continues (`tsallis_rl.runs.fingerprints`)."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import optax
from ml_collections import ConfigDict

import tsallis_rl
from tsallis_rl.models.architecture import architecture_fingerprint
from tsallis_rl.objectives import compared_estimators
from tsallis_rl.runs.agreement import check_same
from tsallis_rl.runs.cache import write_whole
from tsallis_rl.runs.devices import draw_settings
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.fingerprints import FILE, other_code, other_inputs, weights_fingerprints
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.runs.own_code import code_fingerprints
from tsallis_rl.runs.processes import from_first
from tsallis_rl.runs.run_directory import flatten
from tsallis_rl.tasks.encoding import fingerprint
from tsallis_rl.tasks.tokenizers import vocabulary_fingerprint
from tsallis_rl.training.setup import Setup


def check_same_command(config: ConfigDict) -> None:
    """Refuses processes that were started with other settings or versions. Every process must call this."""
    if jax.process_count() == 1:
        return
    model = config.model.size
    packages = {"tsallis_rl": tsallis_rl, "jax": jax, "flax": flax, "optax": optax}
    check_same(
        {f"config.{name}": value for name, value in flatten(json.loads(config.to_json())).items()}
        | {f"whether there is a folder {model}": os.path.exists(model)}
        | {f"the version of {name}": package.__version__ for name, package in packages.items()},
        "start every process by the same command, with the same packages and the same files",
    )


def keep_inputs(setup: Setup, folder: Path, *, continues: bool) -> None:
    """Writes the fingerprints to a run's folder; if the run continues, compares them with those kept there.

    Of several processes the first one writes, and all must call this.

    Raises:
      UserError: it continues with other inputs, or the processes have different ones.
    """
    found, code = inputs(setup), own_code(setup)
    check_same_inputs(found | {"own code": code})
    from_first(lambda: _keep(found, code, folder, continues=continues))


def check_same_inputs(found: Mapping[str, Any]) -> None:
    """Refuses processes that read different data, tokenisers or weights. Every process must call this."""
    remedy = "give every machine the same files; a folder that all of them see, for $TSALLIS_RL_CACHE too, makes it so"
    check_same(found, remedy, shows=False)


def _keep(found: dict[str, Any], code: dict[str, str], folder: Path, *, continues: bool) -> None:
    file = folder / FILE
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
