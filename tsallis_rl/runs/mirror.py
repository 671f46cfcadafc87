"""A run's folder on an object store: worked on in the cache, mirrored whenever a checkpoint is whole.

The store gets what is new, a manifest behind the files of its checkpoint. So it holds a whole checkpoint at any moment,
by the same checksums, and another machine goes on from it. The store's own owner.lock is made by one alone, and left
behind by a process that is killed.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tsallis_rl.runs.cache import cache_folder, fingerprint
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import Store, is_remote, told
from tsallis_rl.runs.run_lock import described, owned, self_described

LOCK = "owner.lock"


class Mirror:
    """A run's folder in the cache, and the same on an object store."""

    def __init__(self, store: Store, folder: Path):
        self._store = store
        self.folder = folder
        self._sent: dict[str, tuple[int, int]] = {}

    def pull(self) -> None:
        """Makes the folder what the store holds."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        names = {name: info for name, info in self._store.listing().items() if name != LOCK}
        self._store.copy(names, self.folder)
        self._sent = {name: self._mark(name) for name in names}

    def push(self) -> None:
        """Makes the store what the folder holds: a manifest comes behind the files of its checkpoint, and goes before.

        Raises:
          UserError: the store cannot be reached.
        """
        here = {name: self._mark(name) for name in self._names()}
        with told(self._store.url):
            for name in sorted(here, key=lambda name: (name.endswith(".manifest"), name)):
                if self._sent.get(name) != here[name]:
                    self._send(name)
                    self._sent[name] = here[name]
            for name in sorted(self._sent.keys() - here, key=lambda name: (not name.endswith(".manifest"), name)):
                self._store.files.rm_file(self._store.at(name))
                del self._sent[name]

    def _names(self) -> list[str]:
        files = [file.relative_to(self.folder) for file in self.folder.rglob("*") if file.is_file()]
        unfinished = (".partial", LOCK, "owner.held")
        return [file.as_posix() for file in files if file.suffix not in unfinished and file.name not in unfinished]

    def _mark(self, name: str) -> tuple[int, int]:
        stat = (self.folder / name).stat()
        return stat.st_size, stat.st_mtime_ns

    def _send(self, name: str) -> None:
        file, target = self.folder / name, self._store.at(name)
        if name.startswith("checkpoints/"):
            self._store.files.put_file(str(file), target)
        else:  # metrics.jsonl grows meanwhile: one moment of it
            self._store.files.pipe_file(target, file.read_bytes())


@contextmanager
def _owned_there(store: Store) -> Iterator[None]:
    """Holds the store's owner.lock; that of this host is another's no more, as its folder in the cache is ours."""
    host, me = self_described()
    lock = store.at(LOCK)
    with told(store.url):
        try:
            if store.files.exists(lock):  # a store may know no condition
                raise FileExistsError
            with store.files.open(lock, "xb") as file:
                file.write(me.encode())
        except FileExistsError:
            other_host, who = described(store.files.cat_file(lock).decode(errors="replace"))
            if other_host != host:
                raise UserError(
                    f"{store.url} belongs to {who}; if that one has ended, remove {store.url}/{LOCK}"
                ) from None
            store.files.pipe_file(lock, me.encode())
    try:
        yield
    finally:
        with told(store.url):
            store.files.rm_file(lock)


@contextmanager
def run_folder(workdir: str, processes: int = 1) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The folder in which a run works, and what to call whenever a checkpoint of it is whole.

    Args:
      workdir: a folder of this machine, which is itself the one, or gs://… or s3://…, which is mirrored.
      processes: of the run.

    Raises:
      UserError: the store cannot be reached, another run owns the folder, or several processes would share it.
    """
    if not is_remote(workdir):
        yield Path(workdir).expanduser(), lambda: None
        return
    if processes > 1:
        raise UserError(
            f"--workdir={workdir}: several processes need a folder that all of them see; mount the bucket (gcsfuse, "
            "s3fs), as the scripts of launch/ do, and name the folder there"
        )
    store = Store(workdir)
    place = cache_folder("runs") / fingerprint(store.url)
    with owned(place), _owned_there(store):
        mirror = Mirror(store, place / "run")
        mirror.pull()
        try:
            yield mirror.folder, mirror.push
        except BaseException:
            with suppress(UserError):  # what went wrong first is what to tell
                mirror.push()
            raise
        mirror.push()
