"""Grids: blocks of cells over estimators, q, seeds and settings, and the config of each cell."""

import contextlib
import copy
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tsallis_rl import objectives
from tsallis_rl.config.files import call_file, field_names, load_config, resolved
from tsallis_rl.config.own_options import set_own_options
from tsallis_rl.config.readers import unread
from tsallis_rl.config.schema import value_of
from tsallis_rl.runs.errors import UserError, shortened
from tsallis_rl.runs.run_directory import deciding
from tsallis_rl.training.checks import check

MOST_CELLS = 10_000
# Fields that a grid sets → the flag that sets them, or the words for what sets them in a grid file.
BY_FLAGS = {"estimator.name": "--estimators", "estimator.q": "--q", "seed": "--seeds"}
BY_BLOCKS = dict.fromkeys(BY_FLAGS, "the estimators and seeds of its blocks")
_ARGUMENTS = {"q": "estimator.q", "estimator": "estimator.name", "seed": "seed"}  # after a config file's colon
_PART_OF_NAME = re.compile(r"([A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Block:
    """The runs of one config over estimators, q, variants and seeds. A grid is a list of blocks.

    Attributes:
      config: NAME[:argument] or FILE[:argument], as --config takes it.
      estimators: name → values of q; () for an estimator that takes no q, and with a floor or a mixture.
      seeds: how many seeds, counted from first_seed.
      fields: {"section.field": value} for all cells; they override the config.
      variants: name → further fields. Each variant has cells of its own, with the variant's name in theirs.
      name: the beginning of the cells' names; None means task and start of the config, as in hops-cold.
      first_seed: the first seed.
    """

    config: str
    estimators: Mapping[str, Sequence[float]]
    seeds: int = 3
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=lambda: {"": {}})
    name: str | None = None
    first_seed: int = 0

    def __post_init__(self):
        if not isinstance(self.config, str):
            raise ValueError(f"config={self.config!r}: give FILE[:argument] as text")
        for name, value in (("estimators", self.estimators), ("fields", self.fields), ("variants", self.variants)):
            if not isinstance(value, Mapping) or not (value or name == "fields"):
                raise ValueError(f"{name}={value!r}: give a dict, as the documentation of Block says")
        for name, values in self.estimators.items():
            if not isinstance(name, str):
                raise ValueError(f"estimators: {name!r:.60} is no text: give its name, or MODULE.NAME of your own")
            if not isinstance(values, list | tuple) or not all(type(q) in (int, float) for q in values):
                raise ValueError(f"estimators: {name!r} has {values!r}: give values of q, as (0.25, 0.75), or ()")
        if not all(isinstance(fields, Mapping) for fields in self.variants.values()):
            raise ValueError("variants: give each a dict of fields")
        if type(self.seeds) is not int or self.seeds < 1:
            raise ValueError(f"seeds={self.seeds!r}: give how many, at least 1")
        if type(self.first_seed) is not int or self.first_seed < 0:
            raise ValueError(f"first_seed={self.first_seed!r}: give a number from 0 on")
        for name in (*self.variants, "" if self.name is None else self.name):
            if not isinstance(name, str) or not _PART_OF_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is to be part of a folder's name: use letters, digits, '-', '_' and '.'")

    def cells_of_a_seed(self) -> int:
        """Counts the cells per seed."""
        return len(self.variants) * sum(max(1, len(values)) for values in self.estimators.values())


class CellSettings(NamedTuple):
    """The settings of one cell.

    Attributes:
      reference: FILE[:argument] of its config.
      fields: {"section.field": value} set on top of that config.
      config: the config with these fields.
    """

    reference: str
    fields: dict[str, Any]
    config: ConfigDict


def load_blocks(file: str) -> dict[str, Block]:
    """Calls get_grid() of a grid file → {the place of a block, as messages name it: block}.

    Raises:
      UserError: there is no such file, it returns no blocks, or a block's config cannot be loaded.
    """
    blocks = call_file("--grid", resolved("--grid", file), "get_grid")
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, Block) for block in blocks):
        raise UserError(f"--grid: get_grid of {file} does not return a list of Block, of tsallis_rl.sweeps.grid")
    where = {f"--grid={file}, block {i}, {block.config}": block for i, block in enumerate(blocks, 1)}
    for place, block in where.items():
        with _told_of(place):
            load_config(block.config)
    return where


@contextlib.contextmanager
def _told_of(where: str) -> Iterator[None]:
    """Puts `where`, unless it is empty, before the message of a UserError raised inside the block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from None


def expand(
    blocks: Mapping[str, Block], overrides: Mapping[str, Any], *, quick: bool = False
) -> dict[str, CellSettings]:
    """Lists the cells of blocks, seed by seed: name → settings.

    An estimator without q has one cell per seed and variant. An option of config.estimator keeps its default in the
    cells whose estimator does not read it.

    Args:
      blocks: the place of each, with which messages begin, or "" → block.
      overrides: fields for all cells; they override configs and blocks, and must not be those of a variant.
      quick: use one seed and a third of the steps.

    Raises:
      UserError: a field or value that no run accepts, a cell that comes twice, more than MOST_CELLS, or an option that
        no cell reads.
    """
    count = sum(block.cells_of_a_seed() * (1 if quick else block.seeds) for block in blocks.values())
    if count > MOST_CELLS:
        raise UserError(
            f"{shortened(str(count))} cells, and a sweep has at most {MOST_CELLS}: name fewer seeds, estimators or "
            "values of q"
        )
    cells: dict[str, CellSettings] = {}
    seen: dict[str, str] = {}  # settings → cell
    in_vain = {name.partition(".")[2] for name in overrides if name.startswith("estimator.")}
    for where, block in blocks.items():
        with _told_of(where):
            found, unread_here = _cells(block, overrides, quick)
            in_vain &= unread_here
            for name, cell in found:
                if name in cells:
                    raise UserError(f"the cell {name} comes twice; name each value once, or give the block a name")
                cells[name] = cell
                if (other := seen.setdefault(deciding(cell.config), name)) != name:
                    raise UserError(f"the cells {other} and {name} have the same settings; leave one of them out")
    for option in sorted(in_vain):
        value = overrides[f"estimator.{option}"]
        raise UserError(f"config.estimator.{option}={value!r}: no estimator of the sweep reads it; leave it out")
    return dict(sorted(cells.items(), key=lambda item: item[1].config.seed))


def _cells(block: Block, overrides: Mapping[str, Any], quick: bool) -> tuple[list[tuple[str, CellSettings]], set[str]]:
    """Lists a block's cells with their names, and the options of config.estimator that no cell reads."""
    for fields in (block.fields, *block.variants.values()):
        check_not_swept(block.config, fields, BY_BLOCKS)
    varied = {name for fields in block.variants.values() for name in fields}
    for name in sorted(varied & overrides.keys()):
        raise UserError(f"config.{name}={overrides[name]}: variants of the block set it; leave it out")
    file = load_config(block.config)
    prefix = f"{file.task.name}-{file.task.start}" if block.name is None else block.name
    cells: list[tuple[str, CellSettings]] = []
    ignored: list[set[str]] = []
    of_variants = {variant: {**block.fields, **overrides, **varying} for variant, varying in block.variants.items()}
    commitments = {x: f.get("estimator.commitment", file.estimator.commitment) for x, f in of_variants.items()}
    pairs = [(variant, *pair) for variant, followed in commitments.items() for pair in _methods(block, followed)]
    options = {f"estimator.{option}" for name in block.estimators for option in objectives.ESTIMATORS[name].options}
    options |= {name for name in overrides if name.startswith("estimator.")}
    for variant, name, q in pairs:
        of_name = copy.deepcopy(file)
        set_own_options(of_name, [name])
        others = options.intersection(of_variants[variant]).difference(field_names(of_name))
        fields = {x: value for x, value in of_variants[variant].items() if x not in others}
        config = with_fields(of_name, fields)
        fields |= {"train.steps": max(1, config.train.steps // 3)} if quick else {}
        fields |= {"estimator.name": name, "estimator.q": config.estimator.q if q is None else q + 0.0}  # −0 → 0
        defaults = {f"estimator.{option}": x for option, x in unread(with_fields(config, fields)).items()}
        ignored.append({option.partition(".")[2] for option in (*defaults, *others)})
        parts = [prefix, name, "" if q is None else f"q{fields['estimator.q']:g}", variant]
        check(with_fields(config, fields | defaults), _least_devices(config.mesh))
        for seed in range(block.first_seed, block.first_seed + (1 if quick else block.seeds)):
            of_cell = fields | {"seed": seed} | defaults
            cell = CellSettings(block.config, of_cell, with_fields(config, of_cell))
            cells.append(("-".join(filter(None, [*parts, f"seed{seed}"])), cell))
    in_vain = set.intersection(*ignored) - {"q"}
    for option in sorted(in_vain - {name.partition(".")[2] for name in overrides}):
        raise UserError(f"config.estimator.{option}: none of {', '.join(block.estimators)} reads it; leave it out")
    return cells, in_vain


def _least_devices(mesh: ConfigDict) -> int:
    """Counts the fewest devices that config.mesh needs; how many there are is known only where cells run."""
    return max(1, mesh.data) * mesh.fsdp * mesh.tensor


def _methods(block: Block, commitment: str) -> list[tuple[str, float | None]]:
    """Lists the estimators of a block with each q, or None if the estimator takes no q with this commitment.

    Raises:
      UserError: an unknown estimator, values of q for one that takes none, or none for one that does.
    """
    pairs: list[tuple[str, float | None]] = []
    for name, values in block.estimators.items():
        needed = objectives.follows_q(name, commitment)
        if needed != bool(values):
            wanted = "needs at least one value of q" if needed else f"takes no q, and {tuple(values)} is given"
            with_ = "" if commitment == "power" else f" with estimator.commitment={commitment}"
            raise UserError(f"estimator {name}{with_} {wanted}")
        pairs += [(name, value) for value in values] or [(name, None)]
    return pairs


def with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """Copies a config and sets {"section.field": value} in the copy.

    Raises:
      UserError: the config has no such field, or it holds values of another type.
    """
    changed, known = config.copy_and_resolve_references(), set(field_names(config))
    for name, value in fields.items():
        if name not in known:
            raise UserError(f"config.{name}={value}: the config has no such field")
        before = value_of(config, name)
        if (value is None and before is not None) or isinstance(value, bool) != isinstance(before, bool):
            # The config would accept these, but a command line cannot express them.
            raise UserError(f"config.{name}={value!r} is of another type: the config has {before!r}")
        try:
            changed.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise UserError(f"config.{name}={value!r} is of another type: {error}") from None
    return changed


def check_not_swept(reference: str, fields: Mapping[str, Any], by: Mapping[str, str]) -> None:
    """Refuses fields that a grid sets itself, also as arguments after a config file's colon.

    Args:
      reference: FILE[:argument] of a config.
      fields: the fields set on top of it.
      by: BY_FLAGS or BY_BLOCKS.
    """
    for field in sorted(by.keys() & fields.keys()):
        raise UserError(f"config.{field}={fields[field]}: a sweep sets it by {by[field]}; use that")
    for item in reference.partition(":")[2].split(","):
        name, equals, _ = item.partition("=")
        if equals and name.strip() in _ARGUMENTS:
            flag = by[_ARGUMENTS[name.strip()]]
            raise UserError(f"{reference}: a sweep sets {name.strip()} by {flag}; leave it out after the colon")


def names(flag: str, values: Sequence[str]) -> list[str]:
    """Strips the values of a list flag; refuses empty values and duplicates."""
    texts = [text.strip() for text in values]
    if not all(texts or [""]):
        raise UserError(f"{flag}={','.join(values)}: a value is empty; name values with commas between them")
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise UserError(f"{flag}={','.join(values)}: {twice[0]} comes twice; name each value once")
    return texts


def numbers(flag: str, values: Sequence[str]) -> list[float]:
    """Reads the values of a list flag as numbers; refuses any that are not from 0 to 1."""
    texts = names(flag, values)
    try:
        found = [float(text) for text in texts]
    except ValueError:
        found = [math.nan]
    if not all(0 <= number <= 1 for number in found):
        raise UserError(f"{flag}={','.join(texts)}: choose numbers from 0 to 1, with commas between them")
    return found
