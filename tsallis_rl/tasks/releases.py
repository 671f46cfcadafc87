"""Official releases: their files, where these are fetched, and the splits that are made of them."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.runs.cache import cache_folder
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import fetched
from tsallis_rl.tasks.base import Example, Message, Split, count_reasons
from tsallis_rl.tasks.records import Record


@dataclasses.dataclass(frozen=True)
class Download:
    """A file of a release on the web.

    Attributes:
      url: where it is.
      contents: file name -> SHA-256. One name: the download itself; with `zipped`, the members that are kept.
      zipped: whether the download is a zip archive around them.
    """

    url: str
    contents: Mapping[str, str]
    zipped: bool = False


@dataclasses.dataclass(frozen=True)
class Release:
    """A data set as its authors publish it.

    Attributes:
      name: in lower case, of the prepared set.
      title: as its authors write it.
      files: "train", "dev", "test" -> accepted file names; only "test" may be absent.
      features: field of a prepared record -> str, int, bool, [spec] for a list, or {field: spec}.
      read: file -> prepared records, checked.
      downloads: where the files are fetched.
    """

    name: str
    title: str
    files: Mapping[str, Sequence[str]]
    features: Mapping[str, Any]
    read: Callable[[Path], Iterator[Record]]
    downloads: Sequence[Download]

    def find(self, folder: str) -> dict[str, Path]:
        """The release's files in `folder`, or where `--download` puts them if it is empty; split -> path."""
        place = fetched(folder) if folder else self.download_folder
        fetch = (
            f"set --config.task.folder to a folder with {self.title}'s official files, or fetch them by "
            "`python -m tsallis_rl.tasks --config=… --download`"
        )
        if not place.is_dir():
            raise UserError(f"config.task.folder={folder!r}: there is no folder {place}; {fetch}")
        found = {}
        for split, names in self.files.items():
            present = [place / name for name in names if (place / name).is_file()]
            if present:
                found[split] = present[0]
            elif split != "test":
                there = ", ".join(sorted(p.name for p in place.iterdir())[:10]) or "nothing"
                raise UserError(f"{place} has no {' or '.join(names)} (it has: {there}); {fetch}")
        return found

    @property
    def download_folder(self) -> Path:
        """Where `--download` puts the files when config.task.folder is empty."""
        return cache_folder("downloads") / self.name


def split_sizes(task: ConfigDict) -> dict[str, int]:
    """How many examples config.task wants of each split; 0 = all."""
    return {"train": task.train_examples, "validation": task.validation_examples, "test": task.test_examples}


def hash_id(id: str) -> int:
    """The first 8 bytes of the SHA-256 of an id, as a number; every draw of examples is by it."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8])


def is_validation(id: str) -> bool:
    """Whether a development record belongs to validation (`hash_id` even) or to test (odd)."""
    return hash_id(id) % 2 == 0


def draw(ids: Sequence[str], places: Sequence[int], make: Callable[[int], Example | str], size: int) -> Split:
    """The first `size` usable records by `hash_id`, in file order; 0 = all. The same in every run.

    Args:
      ids: of every record.
      places: the records to draw from.
      make: place -> its example, or the reason why it gives none; reasons are counted over the records looked at.
      size: number of examples wanted.
    """
    examples: dict[int, Example] = {}
    left_out: dict[str, list[int]] = {}
    for i in sorted(places, key=lambda i: hash_id(ids[i])):
        if size and len(examples) == size:
            break
        made = make(i)
        if isinstance(made, str):
            left_out.setdefault(made, []).append(i)
        else:
            examples[i] = made
    dropped = count_reasons({reason: [ids[i] for i in sorted(where)] for reason, where in left_out.items()})
    return Split([examples[i] for i in sorted(examples)], dropped)


def load_release(
    release: Release, task: ConfigDict, make: Callable[[Record], Example | str]
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The three splits of a release with config.task's sizes, and notes on how they came about.

    Where there is no test file with answers, validation and test are disjoint halves of the development file
    (`is_validation`).
    """
    from tsallis_rl.tasks.builders import prepare  # here, because tensorflow_datasets takes a second to import

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
    for name, (file, places) in parts.items():
        records = prepared[file]
        splits[name] = draw(records.ids, places, lambda i, records=records: make(records[i]), sizes[name])
    return splits, notes


def check_choice(field: str, value: str, choices: Sequence[str]) -> None:
    """Raises UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"config.{field}={value!r} is not accepted; choose from {', '.join(choices)}")


def as_prompt(text: str, instruction: str, start: str) -> str | tuple[Message, ...]:
    """The two templates of a record: cold start, its text alone; warm start, a chat message with the instruction."""
    return text if start == "cold" else ({"role": "user", "content": f"{instruction}\n\n{text}"},)


# Between </think> and the answer; the chat templates of thinking models put an empty line there.
JOINT = {"cold": "", "warm": "\n\n"}


def trimmer(
    passages: Sequence[bool], render: Callable[[frozenset[int]], str | tuple[Message, ...]]
) -> Callable[[int], str | tuple[Message, ...] | None]:
    """An Example's `shorten` for a record of passages.

    Args:
      passages: for each, whether it supports the answer and must stay.
      render: indices of the passages to leave out -> prompt.
    """
    expendable = [i for i, supporting in enumerate(passages) if not supporting][::-1]
    return lambda n: render(frozenset(expendable[:n])) if n <= len(expendable) else None
