"""Finds a user's own records: in one file, in a folder with a file per split, or on the Hugging Face hub."""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.official_files import named_path
from tsallis_rl.tasks.record_files import is_short, shortest
from tsallis_rl.tasks.records import read_records

AUTO = "auto"
HUB = "hf:"
_ENDINGS = tuple(f"{ending}{packed}" for packed in ("", ".gz") for ending in (".jsonl", ".json", ".csv", ".tsv"))
ENDINGS = (*_ENDINGS, ".parquet")
# Names that a split may have, if the config says auto.
_NAMES = {"validation": ("validation", "dev", "valid", "val"), "test": ("test",)}

Records = Callable[[], Iterator[tuple[str, Any]]]


class Source(NamedTuple):
    """The records of a task.

    Attributes:
      splits: "train", and "validation" and "test" if they exist -> function that iterates over (where, record).
      train_name: name of the file or split that training records come from, for messages.
    """

    splits: Mapping[str, Records]
    train_name: str


def find_source(task: ConfigDict) -> Source:
    """Finds the records that config.task.path names.

    Raises:
      UserError: there are none, or a split that the config names is not there.
    """
    if task.path.startswith(HUB):
        return _hub(task)
    path = named_path("task.path", task.path)
    if task.path and path.is_symlink() and not path.exists():
        raise UserError(f"config.task.path={task.path!r} is a link to {path.readlink()}, which is not there")
    if not task.path or not path.exists():
        raise UserError(
            f"config.task.path={task.path!r}: no such file or folder; set it to a file of JSON lines, CSV or parquet, "
            "to a folder with train.jsonl, validation.jsonl and test.jsonl, or to hf:owner/name"
        )
    if not path.is_dir():
        return Source({"train": lambda: read_records(path, {})}, path.name)
    files = _choose_splits(task, lambda name: _file(path, name), lambda: _listing(path), str(path))
    return Source({name: (lambda f=file: read_records(f, {})) for name, file in files.items()}, files["train"].name)


def _choose_splits(
    task: ConfigDict, find: Callable[[str], Any], there: Callable[[], str], where: str
) -> dict[str, Any]:
    """Finds each split by the name that the config gives it: split -> what `find` returns.

    Raises:
      UserError: training, or a split that the config names, is not there.
    """
    found = {}
    settings = {"train": task.train_split, "validation": task.validation_split, "test": task.test_split}
    for split, setting in settings.items():
        names = _NAMES[split] if setting == AUTO else (setting,) if setting else ()
        present = [(name, it) for name in names if (it := find(name)) is not None]
        if len(present) > 1:
            raise UserError(
                f"{where} has {' and '.join(name for name, _ in present)}; choose by config.task.{split}_split"
            )
        if present:
            found[split] = present[0][1]
        elif split == "train" or setting not in (AUTO, ""):
            raise UserError(
                f"{where} has no split {setting!r}, which config.task.{split}_split names (it has: {there()})"
            )
    return found


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"


def _file(folder: Path, name: str) -> Path | None:
    """Finds the one file of a split. Also finds a dangling link or a folder of that name; reading it then fails."""
    present = [folder / f"{name}{ending}" for ending in ENDINGS if os.path.lexists(folder / f"{name}{ending}")]
    if len(present) > 1:
        raise UserError(f"{folder} has {' and '.join(file.name for file in present)}; keep one of them there")
    return present[0] if present else None


def _hub(task: ConfigDict) -> Source:
    """Opens a data set with the library datasets: hf:owner/name, hf:owner/name:subset, either with @revision."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"config.task.path={task.path!r}: data sets of the hub need the library datasets; "
            "pip install 'tsallis_rl[data]'"
        ) from None
    named = task.path[len(HUB) :].removeprefix("//")  # models of the hub are also written hf://owner/name
    name, subset, revision = re.fullmatch(r"([^:@]*)(?::([^@]*))?(?:@(.*))?", named, re.DOTALL).groups()
    if not name:
        raise UserError(f"config.task.path={task.path!r} names no data set; write hf:owner/name")
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            loaded = datasets.load_dataset(name, subset or None, revision=revision or None)
        except Exception as error:  # the library raises what its many file systems and readers raise
            said = " ".join(str(error).split())
            raise UserError(
                f"config.task.path={task.path!r} cannot be loaded ({said:.300}); write hf:owner/name, with a subset "
                "hf:owner/name:subset, or set HF_TOKEN where it is not public"
            ) from None
    splits = _choose_splits(task, loaded.get, lambda: ", ".join(loaded), task.path)
    return Source(
        {name: (lambda rows=rows: _rows(rows, task.path)) for name, rows in splits.items()},
        f"{task.path}'s split {task.train_split}",
    )


def _rows(rows: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Reads the rows of a split from the hub; a class label is read as its name."""
    if not len(rows):
        raise UserError(f"{path}: the split {rows.split} holds no records; choose another")
    kinds = {field.name: field.type for field in rows.features.arrow_schema if is_short(field.type)}
    labels = {name: feature.names for name, feature in rows.features.items() if hasattr(feature, "int2str")}
    for i, row in enumerate(rows):
        where = f"{path}, split {rows.split}, row {i} (the first is 0)"
        named = {name: names[row[name]] for name, names in labels.items() if row[name] in range(len(names))}
        yield where, {**row, **named, **{name: shortest(row[name], kind) for name, kind in kinds.items()}}
