"""The cells of a sweep: which fields differ, and what a command line may not set again."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl import objectives
from tsallis_rl.config.readers import unread
from tsallis_rl.runs.errors import UserError, shortened

SWEPT = {"estimator.q": "--q", "estimator.name": "--estimators", "seed": "--seeds"}  # field -> flag that sets it
MOST_CELLS = 10_000
_ARGUMENTS = {"q": "--q", "estimator": "--estimators", "seed": "--seeds"}  # after a config file's colon


def grid(config: ConfigDict, q: Sequence[float], estimators: Sequence[str], seeds: int) -> dict[str, dict[str, Any]]:
    """Lists the cells, seed by seed: name → the fields in which they differ.

    An estimator without q has one cell a seed. An option of config.estimator is at its default in the cells whose
    estimator does not read it.

    Raises:
      UserError: an unknown estimator, a q outside [0, 1], a cell that comes twice, more than MOST_CELLS, or an option
        that no cell reads.
    """
    takes_q = [name for name in estimators if "q" in getattr(objectives.ESTIMATORS.get(name), "needs", ())]
    if (count := seeds * (len(takes_q) * len(q) + len(estimators) - len(takes_q))) > MOST_CELLS:
        raise UserError(
            f"--seeds={seeds}, --estimators and --q make {shortened(str(count))} cells: a sweep has at most "
            f"{MOST_CELLS}; name fewer of them"
        )
    q = [value + 0.0 for value in q]  # −0 is 0
    cells: dict[str, dict[str, Any]] = {}
    ignored: list[dict[str, Any]] = []
    for seed, name in itertools.product(range(seeds), estimators):
        objectives.check({"name": name, "q": config.estimator.q}, config.rollouts.num_rollouts)
        for value in q if name in takes_q else [config.estimator.q]:
            objectives.check({"name": name, "q": value}, config.rollouts.num_rollouts)
            cell = (f"{name}-q{value:g}" if name in takes_q else name) + f"-seed{seed}"
            if cell in cells:
                raise UserError(f"--q, --estimators: the cell {cell} comes twice; name each value once")
            fields = {"estimator.name": name, "estimator.q": value, "seed": seed}
            ignored.append(unread(with_fields(config, fields)))
            cells[cell] = fields | {f"estimator.{option}": default for option, default in ignored[-1].items()}
    for option in set.intersection(*map(set, ignored)) - {"q"}:
        raise UserError(
            f"config.estimator.{option}={config.estimator[option]!r}: none of --estimators={','.join(estimators)} "
            "reads it; leave it out"
        )
    return cells


def with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """Copies a config and sets {"section.field": value} in the copy."""
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(fields)
    return changed


def check_not_swept(reference: str, overrides: Mapping[str, Any]) -> None:
    """Refuses what the grid would set again: fields of --config, and arguments after the config file's colon."""
    for field, flag in SWEPT.items():
        if field in overrides:
            raise UserError(f"--config.{field}={overrides[field]}: a sweep sets it by {flag}; use that")
    for item in reference.partition(":")[2].split(","):
        name, equals, _ = item.partition("=")
        if equals and (flag := _ARGUMENTS.get(name.strip())):
            raise UserError(
                f"--config={reference}: a sweep sets {name.strip()} by {flag}; leave it out after the colon"
            )


def names(flag: str, values: Sequence[str]) -> list[str]:
    """Strips the values of a flag that is a list; refuses an empty one."""
    if not all(text.strip() for text in values or [""]):
        raise UserError(f"{flag}={','.join(values)}: a value is empty; name values with commas between them")
    return [text.strip() for text in values]


def numbers(flag: str, values: Sequence[str]) -> list[float]:
    """Reads the values of a flag that is a list of numbers; refuses other text."""
    texts = names(flag, values)
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise UserError(f"{flag}={','.join(texts)}: choose numbers from 0 to 1, with commas between them") from None
