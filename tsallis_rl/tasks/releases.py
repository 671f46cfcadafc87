"""Releases of data sets: official files are prepared once, then split, and each record is made an example."""

from collections.abc import Callable

from ml_collections import ConfigDict

from tsallis_rl.tasks.base import Example, Split
from tsallis_rl.tasks.official_files import Download, Release
from tsallis_rl.tasks.prepared_sets import prepare
from tsallis_rl.tasks.records import Record
from tsallis_rl.tasks.subsets import choose, is_validation, split_sizes

__all__ = ["Download", "Release", "load_release"]


def load_release(
    release: Release, task: ConfigDict, make: Callable[[Record], Example | str]
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Loads the three splits of a release with config.task's sizes, and notes on how they came about.

    Where there is no test file with answers, validation and test are disjoint halves of the development file
    (`is_validation`).

    Args:
      release: the release.
      task: config.task.
      make: record -> its example, or the reason why it gives none.
    """
    files = release.find(task.folder)
    prepared = prepare(release, files)
    dev = range(len(prepared["dev"]))
    parts = {"train": ("train", range(len(prepared["train"])))}
    notes = ()
    if "test" in prepared:
        parts |= {"validation": ("dev", dev), "test": ("test", range(len(prepared["test"])))}
    else:
        for name, wanted in (("validation", True), ("test", False)):
            parts[name] = ("dev", [i for i in dev if is_validation(prepared["dev"].ids[i]) == wanted])
        notes = (f"validation and test are disjoint halves of {files['dev'].name}, by the SHA-256 of the ids",)
    sizes = split_sizes(task)
    splits = {}
    for name, (file, indices) in parts.items():
        records = prepared[file]
        splits[name] = choose(records.ids, indices, lambda i, records=records: make(records[i]), sizes[name])
    return splits, notes
