"""Mirrors a run's folder to an object store: the run works in the cache, and each whole checkpoint is sent.

New files are sent, a manifest after the files of its checkpoint. So the store has a whole checkpoint at any moment,
with the same checksums, and another machine can continue from it. Files of loggers are sent as they are at that
moment, and made anew when the run continues. The store has a run lock of its own, the object owner.lock; a killed
process leaves it.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tsallis_rl.runs.cache import cache_folder, fingerprint
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import Store, is_remote, store_errors
from tsallis_rl.runs.paths import local_path
from tsallis_rl.runs.run_lock import HELD, LOCK, describe_self, hold_run_lock, read_holder


class Mirror:
    """A run's folder in the cache and its copy on an object store."""

    def __init__(self, store: Store, folder: Path, owner: str):
        self._store = store
        self._owner = owner  # text of the store's run lock while this process holds it
        self.folder = folder
        self._sent: dict[str, tuple[int, int]] = {}

    def pull(self) -> None:
        """Replaces the folder's files with the store's."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        names = {name: info for name, info in self._store.listing().items() if name != LOCK}
        self._store.copy(names, self.folder)
        marks = {name: self._mark(name) for name in names}
        self._sent = {name: mark for name, mark in marks.items() if mark is not None}

    def push(self) -> None:
        """Replaces the store's files with the folder's. Manifests are written last and removed first.

        Raises:
          UserError: the store cannot be reached, or this process no longer holds its run lock.
        """
        if (found := _lock_text(self._store)) != self._owner:
            now = "was removed" if found is None else f"names {read_holder(found).words} now"
            raise UserError(
                f"{self._store.url}/{LOCK} {now}: the run may have another owner, and nothing more is written there; "
                "stop the other one if there is one, then the same command continues from the last checkpoint"
            )
        here = {name: mark for name in self._names() if (mark := self._mark(name))}
        with store_errors(self._store.url):
            for name in sorted(here, key=lambda name: (name.endswith(".manifest"), name)):
                if self._sent.get(name) != here[name] and self._send(name):
                    self._sent[name] = here[name]
            for name in sorted(self._sent.keys() - here, key=lambda name: (not name.endswith(".manifest"), name)):
                self._store.files.rm_file(self._store.at(name))
                del self._sent[name]

    def _names(self) -> list[str]:
        files = [file.relative_to(self.folder) for file in self.folder.rglob("*") if file.is_file()]
        unfinished = (".partial", LOCK, HELD)
        return [file.as_posix() for file in files if file.suffix not in unfinished and file.name not in unfinished]

    def _mark(self, name: str) -> tuple[int, int] | None:
        """Returns a file's size and time, which show whether it changed; None if it is gone, as a logger's may be."""
        try:
            stat = (self.folder / name).stat()
        except FileNotFoundError:
            return None
        return stat.st_size, stat.st_mtime_ns

    def _send(self, name: str) -> bool:
        """Sends a file; returns False if it is gone, which a checkpoint's file never is before it is sent."""
        file, target = self.folder / name, self._store.at(name)
        if name.startswith("checkpoints/"):
            self._store.files.put_file(str(file), target)
        else:  # metrics.jsonl may grow meanwhile: send it as it is at one moment
            try:
                data = file.read_bytes()
            except FileNotFoundError:
                return False
            self._store.files.pipe_file(target, data)
        return True


def _lock_text(store: Store) -> str | None:
    """Reads the text of the store's run lock, or None if there is no lock."""
    with store_errors(store.url):
        try:
            return store.files.cat_file(store.at(LOCK)).decode(errors="replace")
        except FileNotFoundError:
            return None


@contextmanager
def _hold_store_lock(store: Store) -> Iterator[str]:
    """Holds the store's run lock; yields its text.

    Takes over a lock that this host left there: this process holds the lock of the folder in the cache, so the process
    that left it has ended.
    """
    host, me = describe_self()
    lock = store.at(LOCK)
    with store_errors(store.url):
        try:
            if store.files.exists(lock):  # a store may not support exclusive creation
                raise FileExistsError
            with store.files.open(lock, "xb") as file:
                file.write(me.encode())
        except FileExistsError:
            holder = read_holder(store.files.cat_file(lock).decode(errors="replace"))
            if holder.host != host:
                raise UserError(
                    f"{store.url} belongs to {holder.words}; if that one has ended, remove {store.url}/{LOCK}"
                ) from None
            store.files.pipe_file(lock, me.encode())
    try:
        yield me
    finally:
        if _lock_text(store) == me:  # otherwise it is another process's
            with store_errors(store.url):
                store.files.rm_file(lock)


@contextmanager
def run_folder(workdir: str, processes: int = 1) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yields the folder in which a run works, and the function to call after each whole checkpoint.

    Args:
      workdir: a folder of this machine, in which the run works directly, or gs://… or s3://…, which is mirrored.
      processes: number of processes of the run.

    Raises:
      UserError: the store cannot be reached, another process holds its run lock, or several processes would share it.
    """
    if not is_remote(workdir):
        yield local_path(workdir, "--workdir"), lambda: None
        return
    if processes > 1:
        raise UserError(
            f"--workdir={workdir}: several processes need a folder that all of them see; mount the bucket (gcsfuse, "
            "s3fs), as the scripts of launch/ do, and name the folder there"
        )
    store = Store(workdir)
    cached = cache_folder("runs") / fingerprint(store.url)
    with hold_run_lock(cached), _hold_store_lock(store) as owner:
        mirror = Mirror(store, cached / "run", owner)
        mirror.pull()
        try:
            yield mirror.folder, mirror.push
        except BaseException:
            with suppress(UserError):  # the first error is the one to report
                mirror.push()
            raise
        mirror.push()
