"""Reads object stores, gs://… and s3://…: models and data are copied to the cache and read there."""

import functools
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from tsallis_rl.runs.cache import beside, cache_folder, fingerprint, remove_left
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.paths import local_path

SCHEMES = ("gs://", "s3://")
TRIES = 5  # attempts to copy a folder that changes meanwhile


def is_remote(path: str) -> bool:
    """Returns whether a path is in an object store."""
    return path.startswith(SCHEMES)


def local(flag: str, path: str) -> Path:
    """Returns the value of a flag as a path of this machine, for writing.

    Raises:
      UserError: it is in an object store, or not a local path (`local_path`).
    """
    if is_remote(path):
        raise UserError(f"{flag}={path}: only a run's --workdir may be in an object store; name a local path, and copy")
    return local_path(path, flag)


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turns the exceptions of a store's client into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{url}: install tsallis_rl with the extra cloud to reach it ({error})") from None
    except Exception as error:  # each store has its own exceptions
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{url} cannot be reached ({reason}); check address, credentials, network") from error


class Store:
    """A folder, or a single object, in an object store. Names are relative to it; "" is the object itself."""

    def __init__(self, url: str):
        import fsspec

        logging.getLogger("gcsfs").setLevel(
            logging.CRITICAL
        )  # it prints tracebacks of errors that `store_errors` reports in one sentence
        self.url = url.rstrip("/")
        with store_errors(url):
            self.files, self.root = fsspec.core.url_to_fs(self.url)

    def at(self, name: str) -> str:
        """Returns the address of an object in `files`."""
        return f"{self.root}/{name}" if name else self.root

    def listing(self) -> dict[str, dict[str, Any]]:
        """Lists the objects: {name: the store's description}. Raises UserError for a name that would leave a folder."""
        with store_errors(self.url):
            self.files.invalidate_cache()
            found = self.files.find(self.root, detail=True)
        names = {path.removeprefix(self.root).strip("/"): info for path, info in found.items() if path[-1:] != "/"}
        for name in names:
            if ".." in PurePosixPath(name).parts:
                raise UserError(f"{self.url}/{name}: a name with .. in it is not copied; rename that object")
        return names

    def copy(self, names: dict[str, dict[str, Any]], folder: Path) -> None:
        """Copies objects into `folder`; a single object under its own name."""
        from tsallis_rl.runs.progress import Bar  # here: tqdm reads variables of the environment at import

        size = sum(info["size"] for info in names.values())
        with Bar(total=size, desc=f"copy {self.url}"[:40], unit="B", unit_scale=True, leave=False) as progress:
            for name, info in names.items():
                file = folder / (name or PurePosixPath(self.root).name)
                file.parent.mkdir(parents=True, exist_ok=True)
                with store_errors(f"{self.url}/{name}"):
                    self.files.get_file(self.at(name), str(file))
                progress.update(info["size"])


@functools.cache
def fetched(path: str) -> Path:
    """Returns a path of this machine: `path` itself, or its copy in the cache if it is in an object store.

    A copy is made again when the store's objects have changed.

    Raises:
      UserError: the store cannot be reached, nothing is at `path`, or it is not a local path (`local_path`).
    """
    if not is_remote(path):
        return local_path(path)
    store = Store(path)
    for left in reversed(range(TRIES)):
        names = store.listing()
        if not names:
            raise UserError(f"{path}: there is nothing there; check the address")
        folder = cache_folder("fetched") / fingerprint([store.url, _content(names)])
        if folder.exists():
            break
        remove_left(folder)
        partial = beside(folder)
        try:
            store.copy(names, partial)
            with suppress(OSError):  # another process was first
                partial.rename(folder)
            break
        except UserError:
            if not left or _content(store.listing()) == _content(names):
                raise
            print(f"NOTE: {path} changed while it was copied, perhaps by a run; copying it again", file=sys.stderr)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder / PurePosixPath(store.root).name if "" in names else folder


def _content(names: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Returns each object's size and the store's marks (ETag, …), which show whether it changed."""
    marks = ("ETag", "etag", "generation", "md5Hash")
    return {name: [info["size"], *(str(info.get(mark)) for mark in marks)] for name, info in names.items()}
