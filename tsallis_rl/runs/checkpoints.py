"""Saves checkpoints by orbax, each with its checksums; keeps the best by validation and the latest ones.

    checkpoints/300/           the state, as orbax writes it
    checkpoints/300.manifest   format, step, quality, control state, the SHA-256 of every file of 300/, then its own

The manifest is written last: a folder without one was not saved whole and is never read.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import orbax.checkpoint as ocp

from tsallis_rl.runs.cache import reading, write_whole
from tsallis_rl.runs.errors import LostProcessError, UserError, lost_process
from tsallis_rl.runs.fingerprints import other_shape
from tsallis_rl.runs.paths import check_no_device, plain_step
from tsallis_rl.runs.processes import from_first, is_first, on_each
from tsallis_rl.runs.progress import say
from tsallis_rl.runs.run_lock import check_run_lock

UNMEASURED = (-1.0, -1.0)  # quality of a checkpoint saved between evaluations: never the best
FORMAT = 2  # format of a manifest; format 1 had neither this field nor a control state
TRIES = 10  # attempts to read a checkpoint of a run that is still training

Step = TypeVar("Step")
Found = TypeVar("Found")


class RemovedError(UserError):
    """A checkpoint was removed, or saved anew, while it was read."""


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _read_manifest(file: Path) -> dict[str, Any] | None:
    """Reads a manifest; returns None if it is missing, cannot be read, or is not as it was written.

    A copy under another step's name is refused too, and contents that `Checkpoints` does not write.
    """
    try:
        check_no_device(file)
        body, _, digest = file.read_bytes().rstrip(b"\n").rpartition(b"\n")
        found = json.loads(body) if hashlib.sha256(body).hexdigest().encode() == digest else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    return found if found.get("format", 1) != FORMAT or _is_written(found, plain_step(file.stem)) else None


def _is_written(manifest: Mapping[str, Any], step: int | None) -> bool:
    """Returns whether a manifest has the types that `Checkpoints` writes, and belongs to `step`."""
    quality, control, digests = (manifest.get(name) for name in ("quality", "control", "sha256"))
    return (
        type(manifest.get("step")) is int
        and manifest["step"] == step
        and isinstance(control, dict)
        and isinstance(quality, list)
        and all(type(figure) in (int, float) for figure in quality)
        and isinstance(digests, dict)
        and all(isinstance(digest, str) for digest in digests.values())
        and not any(Path(name).is_absolute() or ".." in Path(name).parts for name in digests)
    )


def _write_manifest(file: Path, manifest: Mapping[str, Any]) -> None:
    """Writes a manifest with its digest, whole or not at all."""
    body = json.dumps(manifest).encode()  # may hold NaN and Infinity, which JSON lacks: only _read_manifest reads it
    write_whole(file, body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n")


def _listed(folder: Path) -> list[Path]:
    """Lists what is in the folder of checkpoints; nothing if there is no folder.

    Raises:
      UserError: it cannot be read. If it counted as empty, the run would begin again.
    """
    with reading(folder):
        try:
            return sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def _manifests(folder: Path) -> dict[int, Path]:
    """Finds the manifests in the folder of checkpoints: step → file. Names that only look like numbers are ignored."""
    found = {plain_step(file.stem): file for file in _listed(folder) if file.suffix == ".manifest"}
    return {step: file for step, file in found.items() if step is not None}


def newest_control(folder: Path) -> dict[str, Any] | None:
    """Reads the control state of the newest checkpoint in `folder`, sound or not; None if there is none.

    Reads on this process only, and only the manifest.
    """
    saved = _manifests(folder)
    manifest = _read_manifest(saved[max(saved)]) if saved else None
    return (manifest or {}).get("control")


def newest_step(folder: Path) -> int:
    """Returns the step of the newest checkpoint in `folder`, sound or not; 0 if there is none."""
    return max(_manifests(folder), default=0)


# The operating system's words for a failed write.
_CAUSES = [
    os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
]


class Checkpoints:
    """Saves and reads the folder `checkpoints/` of a run, which all processes see.

    Saving runs in the background; `close` waits for it. Every process calls `save`, `wait`, `best` and `close`. The
    first process writes the manifests, removes checkpoints that are not kept, and calls `saved` after each save.

    orbax's own CheckpointManager with a preservation policy does not replace this: it may count a damaged checkpoint as
    the best or latest one, and it removes a folder without removing the manifest first.
    """

    def __init__(self, folder: Path, saved: Callable[[], None] = lambda: None, keep: int = 1):
        self._folder = folder.resolve()
        self._saved = saved
        self._keep = keep  # how many of the latest, besides the best
        self._writer = ocp.StandardCheckpointer()
        self._background = ThreadPoolExecutor(1)
        self._saving: Future = Future()
        self._saving.set_result(None)
        self._flaws: dict[int, str | None] = {}  # "" if the checkpoint was removed while it was checked

    @property
    def steps(self) -> list[int]:
        """The steps that were saved whole, even if damaged since.

        Raises:
          UserError: another version of this package wrote a checkpoint, in another format.
        """
        steps = []
        for step, file in _manifests(self._folder).items():
            if manifest := _read_manifest(file):
                if (found := manifest.get("format", 1)) != FORMAT:
                    writer = "an early tsallis_rl 0.1.0" if found == 1 else "another version of tsallis_rl"
                    raise UserError(
                        f"{self._folder.parent} has checkpoints of format {found}, written by {writer}, and this "
                        f"version reads format {FORMAT} alone: finish that run with the version that wrote it, or "
                        "start again in another --workdir"
                    )
                steps.append(step)
        return sorted(steps)

    @property
    def sound_steps(self) -> list[int]:
        """The steps whose files are as they were saved; the others are named on stderr."""
        return [step for step in self.steps if self._sound(step)]

    @property
    def latest(self) -> int | None:
        """The newest sound step, or None. Newer ones that are not sound are named on stderr."""
        self.wait()
        return from_first(self._latest)

    def _latest(self) -> int | None:
        whole = self.steps
        newest = max(self.sound_steps, default=None)
        for folder in _listed(self._folder):
            step = plain_step(folder.name.partition(".")[0])
            if step is not None and step not in whole and step > (-1 if newest is None else newest):
                cause = "was not saved whole, or is not yet, or its manifest cannot be read"
                say(f"WARNING: checkpoint {folder} {cause}; it is not used")
        return newest

    @property
    def best(self) -> int | None:
        """The sound step with the best quality, the latest among equals; None if there is none."""
        self.wait()
        return from_first(lambda: max(self.sound_steps, key=self._quality, default=None))

    def save(self, step: int, state: Any, quality: tuple[float, ...], control: Mapping[str, Any]) -> None:
        """Starts to save a step in the background. A step that is already saved and sound stays as it is.

        Args:
          step: updates made.
          state: a tree of arrays.
          quality: decides which checkpoint is best, compared from left to right; among equals the latest step.
          control: the run's control state, of JSON types; may hold NaN and infinities.

        Raises:
          UserError: this save or the one before failed; names the last sound checkpoint.
        """
        self.wait()
        # Decided by one process: the save is collective, and one that saw other files would not join it.
        if not from_first(lambda: self._make_room(step)):
            return
        self._flaws.pop(step, None)
        try:
            self._writer.save(self._folder / str(step), state, force=True)
        except Exception as error:
            raise self._failure(error) from error
        self._saving = self._background.submit(self._seal, step, (*quality, step), dict(control))

    def _make_room(self, step: int) -> bool:
        """Readies the folder for a save of `step`; returns False if that step is already saved and sound."""
        check_run_lock(self._folder.parent)
        if step in self.steps and self._sound(step):
            return False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manifest(step).unlink(missing_ok=True)
        except OSError as error:
            raise self._failure(error) from error
        return True

    def control(self, step: int) -> dict[str, Any]:
        """Reads the control state that was saved with `step`, one of `sound_steps`. Every process must call this.

        Raises:
          RemovedError: the checkpoint has been removed.
        """
        self.wait()
        manifest = from_first(lambda: _read_manifest(self._manifest(step))) or self._refuse(step)
        return manifest["control"]

    def update_control(self, step: int, control: Mapping[str, Any]) -> None:
        """Replaces the control state of a saved step. Every process calls; the first writes.

        Raises:
          UserError: it cannot be written.
        """
        self.wait()
        from_first(lambda: self._rewrite(step, control))

    def _rewrite(self, step: int, control: Mapping[str, Any]) -> None:
        check_run_lock(self._folder.parent)
        manifest = _read_manifest(self._manifest(step)) or {}
        _write_manifest(self._manifest(step), manifest | {"control": dict(control)})
        self._saved()

    def restore(self, step: int, like: Any) -> Any:
        """Reads the state of `step`, into the tree structure, dtypes and shardings of `like`.

        Raises:
          RemovedError: it was removed meanwhile. The reading methods below raise it too.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._whole(step, lambda folder: self._writer.restore(folder, abstract))

    def restore_params(self, step: int, like: dict) -> dict:
        """Reads the parameters of `step` and nothing else, into the shapes, dtypes and shardings of `like`."""
        return self.restore_parts(step, {"params": like})["params"]

    def restore_parts(self, step: int, like: dict[str, dict]) -> dict[str, dict]:
        """Reads those parts of the state of `step` that `like` names, into its shapes, dtypes and shardings.

        Raises:
          UserError: the checkpoint holds them in other shapes.
        """
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)
        args = ocp.args.PyTreeRestore(like, restore_args=restore_args, partial_restore=True)

        def read(folder: Path) -> dict:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                held = reader.metadata(folder).item_metadata
                if other := other_shape({name: held[name] for name in like}, like, partial=True):
                    raise UserError(
                        f"{folder} is the checkpoint of another model: {other}; config.model, or the model's "
                        "config.json, is not what the run has"
                    )
                return reader.restore(folder, args=args)

        return self._whole(step, read)

    def param_shapes(self, step: int) -> dict[str, Any]:
        """Reads the shapes and dtypes of the parameters saved with `step`, as a dict of the same structure."""

        def read(folder: Path) -> dict:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                return reader.metadata(folder).item_metadata["params"]

        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._whole(step, read))

    def _whole(self, step: int, read: Callable[[Path], Found]) -> Found:
        """Reads from the folder of `step`; every process must call this.

        If the manifest is the same after reading as before, no file was removed meanwhile, because the manifest is
        removed first. Otherwise the result is not to be trusted: orbax may read zeros for missing files.
        """
        self.wait()
        before, failure = from_first(lambda: self._mark(step)), None
        try:
            found = read(self._folder / str(step))
        except Exception as error:
            failure = error
        if from_first(lambda: before is None or self._mark(step) != before):
            self._refuse(step)
        if failure:
            raise failure
        return found

    def _mark(self, step: int) -> dict[str, str] | None:
        """Returns the checksums of the files of `step`, which change if it is saved anew; None if it was removed."""
        return (_read_manifest(self._manifest(step)) or {}).get("sha256")

    def _refuse(self, step: int) -> NoReturn:
        raise RemovedError(f"checkpoint {self._folder / str(step)} was removed while it was read")

    def digest(self, step: int) -> str:
        """Hashes the manifest of `step`, which holds the checksums of all its files; on this process only."""
        return _sha256(self._manifest(step))

    def wait(self) -> None:
        """Waits until the last save is on disk, for all processes; raises UserError on all if it failed on one."""
        on_each(self._finish)

    def close(self) -> None:
        """Waits until the last save of this process is on disk; raises UserError if it failed."""
        try:
            self._finish()
        finally:
            self._background.shutdown()
            self._writer.close()

    def _finish(self) -> None:
        saving, self._saving = self._saving, Future()
        self._saving.set_result(None)
        try:
            saving.result()
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> UserError:
        if isinstance(error, UserError):  # from `saved`
            return error
        if lost := lost_process(error):
            return LostProcessError(lost)
        sound = max(self.sound_steps, default=None)
        last = "there is no checkpoint" if sound is None else f"the last sound checkpoint is that of step {sound}"
        reason = next((cause for cause in _CAUSES if cause in str(error)), None)  # without tensorstore's file names
        if reason is None:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            reason = reason if len(reason) <= 200 else f"{reason[:40]} … {reason[-150:]}"
        return UserError(
            f"a checkpoint could not be saved in {self._folder} ({reason}); {last}; make room there, or make it "
            "writable: the same command continues from it"
        )

    def _manifest(self, step: int) -> Path:
        return self._folder / f"{step}.manifest"

    def _quality(self, step: int) -> list[float]:
        manifest = _read_manifest(self._manifest(step))
        return manifest["quality"] if manifest else []

    def _seal(self, step: int, quality: tuple[float, ...], control: dict[str, Any]) -> None:
        """Writes the manifest once the state is on disk, then removes all but the best and the latest checkpoints."""
        self._writer.wait_until_finished()
        if not is_first():
            return
        folder = self._folder / str(step)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests = {str(path.relative_to(folder)): _sha256(path) for path in files}
        check_run_lock(self._folder.parent)
        manifest = {"format": FORMAT, "step": step, "quality": quality, "control": control, "sha256": digests}
        _write_manifest(self._manifest(step), manifest)
        self._flaws[step] = None
        sound = self.sound_steps
        latest = [other for other in sound if other <= step][-self._keep :]
        kept = {str(other) for other in (*latest, max(sound, key=self._quality))}
        # Manifests first: a half-removed checkpoint then no longer counts as one.
        for path in sorted(_listed(self._folder), key=lambda path: path.is_dir()):
            name = path.name.partition(".")[0]
            if plain_step(name) is not None and (name not in kept or ".orbax" in path.name):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self._saved()

    def _sound(self, step: int) -> bool:
        """Returns whether every file is as it was saved; prints the first damaged one to stderr, once."""
        if step not in self._flaws:
            before = self._mark(step)
            flaw = self._flaw(step)
            # Files that a training run removes, after their manifest, are not damage.
            self._flaws[step] = flaw = flaw if before is not None and self._mark(step) == before else ""
            if flaw:
                say(f"WARNING: checkpoint {self._folder / str(step)} is damaged: {flaw}")
        return self._flaws[step] is None

    def _flaw(self, step: int) -> str | None:
        manifest = _read_manifest(self._manifest(step)) or {"sha256": {}}
        for name, digest in manifest["sha256"].items():
            file = self._folder / str(step) / name
            try:
                if not file.is_file():
                    return f"{name} is missing"
                if _sha256(file) != digest:
                    return f"{name} is not what was saved"
            except OSError as error:
                return f"{name} cannot be read ({error.strerror or error})"
        return None


def read_chosen(
    folder: Path, choose: Callable[[Checkpoints], Step], read: Callable[[Checkpoints, Step], Found]
) -> Found:
    """Reads from the checkpoint that `choose` chooses. Every process must call this.

    A run that is still training removes checkpoints. If the chosen one is removed before it is read, a note says so,
    and `choose` is called again on those that remain.

    Args:
      folder: `checkpoints/` of a run.
      choose: returns one of `sound_steps`, or None; may raise UserError.
      read: reads from the chosen checkpoint.

    Raises:
      UserError: `choose` raised it, or each chosen checkpoint was removed before it was read.
    """
    for _ in range(TRIES):
        with closing(Checkpoints(folder)) as checkpoints:
            step = choose(checkpoints)
            try:
                return read(checkpoints, step)
            except RemovedError as error:
                say(f"NOTE: {error}, by the run that trains there; choosing again from those that remain")
    raise UserError(
        f"{folder}: the run that trains there removed {TRIES} chosen checkpoints before they were read; keep more by "
        "config.train.keep_checkpoints, or try again when the run has ended"
    )
