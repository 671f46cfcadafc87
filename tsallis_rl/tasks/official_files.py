"""Official files of a data set's release: their names, how they are read, and where they are downloaded from."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsallis_rl.runs.cache import cache_folder
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import fetched
from tsallis_rl.tasks.records import Record


def named_path(field: str, text: str) -> Path:
    """Finds the path that a setting names; data on an object store is copied to the cache.

    Raises:
      UserError: no file can have that name, or it cannot be accessed.
    """
    try:
        path = fetched(text)
        path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ with an unknown user
        said = getattr(error, "strerror", None) or error
        raise UserError(f"config.{field}={text!r:.200} cannot be read ({said}); name another path") from None
    return path


@dataclasses.dataclass(frozen=True)
class Download:
    """A file of a release on the web.

    Attributes:
      url: its address.
      contents: file name -> SHA-256, of the download itself (one name) or, with `zipped`, of the members that are kept.
      zipped: whether the download is a zip archive around them.
    """

    url: str
    contents: Mapping[str, str]
    zipped: bool = False


@dataclasses.dataclass(frozen=True)
class Release:
    """A data set as its authors publish it.

    Attributes:
      name: name of the prepared set, in lower case.
      title: as its authors write it.
      files: "train", "dev", "test" -> accepted file names; only "test" may be absent.
      features: field of a prepared record -> str, int, bool, [spec] for a list, or {field: spec}.
      read: file -> prepared records, checked.
      downloads: where the files can be downloaded from.
    """

    name: str
    title: str
    files: Mapping[str, Sequence[str]]
    features: Mapping[str, Any]
    read: Callable[[Path], Iterator[Record]]
    downloads: Sequence[Download]

    def find(self, folder: str) -> dict[str, Path]:
        """Finds the release's files in a folder, or in `download_folder` if it is empty: split -> path.

        Raises:
          UserError: there is no such folder, or it lacks a file.
        """
        looked_in = named_path("task.folder", folder) if folder else self.download_folder
        fetch = (
            f"set --config.task.folder to a folder with {self.title}'s official files, or fetch them by "
            "`python -m tsallis_rl.tasks --config=… --download`"
        )
        if not looked_in.is_dir():
            raise UserError(f"config.task.folder={folder!r}: there is no folder {looked_in}; {fetch}")
        found = {}
        for split, names in self.files.items():
            present = [looked_in / name for name in names if (looked_in / name).is_file()]
            if present:
                found[split] = present[0]
            elif split != "test":
                there = ", ".join(sorted(p.name for p in looked_in.iterdir())[:10]) or "nothing"
                raise UserError(f"{looked_in} has no {' or '.join(names)} (it has: {there}); {fetch}")
        return found

    @property
    def download_folder(self) -> Path:
        """Folder into which `--download` puts the files when config.task.folder is empty."""
        return cache_folder("downloads") / self.name
