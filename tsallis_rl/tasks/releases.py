"""Loads releases of data sets: prepares official files once, splits them, and makes an example of each record."""

import functools
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from tsallis_rl.runs.cache import cache_folder, fingerprint
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.progress import Bar
from tsallis_rl.tasks.base import Example, Split
from tsallis_rl.tasks.checked_files import code_digest, read_checked, write_checked
from tsallis_rl.tasks.official_files import Download, Release
from tsallis_rl.tasks.prepared_sets import PreparedSplit, prepare
from tsallis_rl.tasks.records import Record
from tsallis_rl.tasks.subsets import choose_indices, hash_id, is_validation, split_sizes

__all__ = ["Download", "Release", "load_release"]

Make = Callable[[Record], Example | str]
_LEAST = 2000  # records; a choice among fewer is not cached, as it takes less than a second


class MadeExamples(Sequence):
    """Examples of prepared records, each made on access, so that a large split's text fills no memory.

    Args:
      records: prepared records.
      indices: indices of the records that give the examples.
      make: record -> its example.
      fingerprint: changes whenever an example does; "" if that is not known.
      prompts: hash of each prompt.
    """

    def __init__(
        self, records: PreparedSplit, indices: Sequence[int], make: Make, fingerprint: str, prompts: Sequence[int]
    ):
        self._records, self._indices, self._make = records, indices, make
        self.fingerprint, self.prompts = fingerprint, prompts

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int | slice) -> Example | list[Example]:
        if isinstance(i, slice):
            return [self._make(self._records[j]) for j in self._indices[i]]
        return self._make(self._records[self._indices[i]])


def _own_code(make: Make) -> bool:
    """Returns whether `make` belongs to this package, whose code `code_digest` covers."""
    while isinstance(make, functools.partial):
        make = make.func
    return make.__module__.startswith(f"{__package__}.")


def _choose(records: PreparedSplit, indices: Sequence[int], make: Make, task: ConfigDict, split: str) -> Split:
    """Chooses usable records by `choose_indices`, or reads an earlier choice for the same records and settings."""
    size = split_sizes(task)[split]
    settings = {name: value for name, value in task.to_dict().items() if name != "folder"}
    key = fingerprint([code_digest(), records.digest, split, size, settings]) if _own_code(make) else ""
    file = cache_folder("prepared") / "choices" / f"{key}.json"
    found = read_checked(file) if key else None
    if found is None:
        prompts: dict[int, int] = {}
        with Bar(desc=f"read {records.name}", unit=" records", leave=False, delay=1) as progress:

            def refuse(i: int) -> str:
                progress.update()
                made = make(records[i])
                if isinstance(made, str):
                    return made
                if not isinstance(made, Example):
                    raise UserError(
                        f"{records.name}, record {records.ids[i]!r:.60}: what makes its example returns {made!r:.60}; "
                        "return an Example, or the reason why there is none"
                    )
                prompts[i] = hash_id(repr(made.prompt))
                return ""

            chosen, dropped = choose_indices(records.ids, indices, refuse, size)
        found = {"chosen": chosen, "dropped": dropped, "prompts": [prompts[i] for i in chosen]}
        if key and len(indices) >= _LEAST:
            write_checked(file, found)
    return Split(MadeExamples(records, found["chosen"], make, key, found["prompts"]), found["dropped"])


def load_release(release: Release, task: ConfigDict, make: Make) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Loads the three splits of a release with config.task's sizes, and notes on how they were made.

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
    splits = {}
    for name, (file, indices) in parts.items():
        records = prepared[file]
        splits[name] = _choose(records, indices, make, task, name)
    return splits, notes
