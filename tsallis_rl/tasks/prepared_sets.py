"""Prepared sets: the records of a release in TFDS's array_record format, written once, without TensorFlow.

A prepared set is reused as long as its source files, and the module that reads them, have the same content. A damaged
one is made again. `tensorflow_datasets` takes a second to import, so only the functions that use it import it.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsallis_rl.runs.cache import cache_folder, writing
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.progress import Bar, say
from tsallis_rl.tasks.checked_files import read_checked, sha256, whole_folder, write_checked
from tsallis_rl.tasks.official_files import Release
from tsallis_rl.tasks.records import Record

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_INDEX = "index.json"  # in a set's folder: digests of its files, and the position of each record


def _feature(spec: Any) -> Any:
    """Makes a TFDS feature from str, int, bool, [spec] or {field: spec}.

    Floats are left out on purpose: TFDS stores them in single precision. So are lists in lists, which would need
    TensorFlow's ragged tensors.
    """
    import tensorflow_datasets as tfds

    if isinstance(spec, list):
        return tfds.features.Sequence(_feature(spec[0]))
    if isinstance(spec, Mapping):
        return tfds.features.FeaturesDict({name: _feature(inner) for name, inner in spec.items()})
    return {str: tfds.features.Text(), int: np.int64, bool: np.bool_}[spec]


def _check_stored(value: Any, spec: Any, where: str) -> None:
    """Checks that a value from a task's `read` is of its kind and can be stored.

    Raises:
      UserError: it is not; names the field.
    """
    if isinstance(spec, list):
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise UserError(f"{where} is {value!r:.60}, expected a list")
        for item in value:
            _check_stored(item, spec[0], where)
    elif isinstance(spec, Mapping):
        for name, inner in spec.items():
            if not isinstance(value, Mapping) or name not in value:
                raise UserError(f"{where}: the task's reader gives it no field {name!r}, which its release names")
            _check_stored(value[name], inner, f"{where}, field {name!r}")
    elif not isinstance(value, spec) or (spec is int and isinstance(value, bool)):
        raise UserError(f"{where} is {value!r:.60}, expected {spec.__name__}")
    elif spec is int and not -(1 << 63) <= value < 1 << 63:
        raise UserError(f"{where} is a number of more than 64 bits; store it as text")
    elif spec is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where} holds half of a surrogate pair; write the text again") from None


def _plain(value: Any, spec: Any) -> Any:
    """Converts a data source's value to plain Python: bytes to text, an object of lists to a list of objects."""
    if isinstance(spec, list) and isinstance(spec[0], Mapping):
        columns = [[_plain(item, inner) for item in value[name]] for name, inner in spec[0].items()]
        return [dict(zip(spec[0], row, strict=True)) for row in zip(*columns, strict=True)]
    if isinstance(spec, list):
        return [_plain(item, spec[0]) for item in value]
    return value.decode() if spec is str else spec(value)


def builder_class(release: Release) -> "type[tfds.core.GeneratorBasedBuilder]":
    """Makes the TFDS builder that prepares a release from its official files in TFDS's manual_dir."""
    import tensorflow_datasets as tfds

    class ReleaseBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the release's official files into this folder."
        url_infos = None  # else TFDS looks for checksums beside the code, with a package that it does not install

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=_feature({"index": int, **release.features}))

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
            files = release.find(str(dl_manager.manual_dir))
            return {split: self._generate_examples(path) for split, path in files.items()}

        def _generate_examples(self, path: Path) -> Iterator[tuple[int, Record]]:
            records = Bar(release.read(path), f"prepare {path.name}", unit=" records", leave=False)
            for index, record in enumerate(records):
                _check_stored(record, release.features, f"{path}, record {index} (the first is 0)")
                yield index, {"index": index, **record}

    attributes = {"__doc__": f"{release.title}, from its official files.", "__module__": __name__}
    return type(release.name.capitalize(), (ReleaseBuilder,), attributes, skip_registration=True)


def _content_hash(release: Release, files: Mapping[str, Path]) -> str:
    """Hashes the source files and the code that reads them: a changed reader must prepare the set again."""
    digest = hashlib.sha256(Path(inspect.getfile(release.read)).read_bytes())
    for split, path in files.items():
        with path.open("rb") as file:
            digest.update(f"{split}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class PreparedSplit:
    """Records of one prepared file, read one at a time.

    Attributes:
      name: the file's name.
      ids: the records' ids, in file order.
      indices: index of each record in `source`, which TFDS has shuffled.
      source: TFDS's data source.
      spec: field of a record -> its kind, as in `Release.features`.
      folder: the prepared set's folder, named by a hash of its content.
    """

    name: str
    ids: Sequence[str]
    indices: Sequence[int]
    source: Any
    spec: Mapping[str, Any]
    folder: Path

    @property
    def digest(self) -> str:
        """A text that changes whenever a record does."""
        return f"{self.folder.name}:{self.name}"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Record:
        try:
            row = self.source[self.indices[i]]
        except Exception as error:  # whatever the library raises on a file that changed since it was checked
            raise UserError(
                f"{self.folder}: a record of {self.name} cannot be read ({error!r:.200}); remove the folder, and the "
                "same command makes it again"
            ) from None
        return {name: _plain(row[name], inner) for name, inner in self.spec.items()}


def _check_unique(ids: Sequence[str], path: Path) -> None:
    first: dict[str, int] = {}
    for i, id in enumerate(ids):
        if id in first:
            raise UserError(f"{path}: records {first[id]} and {i} (the first is 0) have the same id {id!r}; remove one")
        first[id] = i


def prepare(release: Release, files: Mapping[str, Path]) -> dict[str, PreparedSplit]:
    """Prepares a release's files, unless a set for their content exists: split -> records.

    Args:
      release: the release.
      files: split -> file, all in one folder, as `release.find` returns them.

    Raises:
      UserError: a file is not as it must be, or the set cannot be written.
    """
    folder = cache_folder("prepared") / _content_hash(release, files)
    orders = _read_orders(folder)
    if orders is None:
        if folder.exists():
            say(f"{folder} is damaged, or of another version; the set is prepared again")
        with writing(folder):
            _write_set(release, files, folder)
        orders = _read_orders(folder)
    try:
        sources = builder_class(release)(data_dir=folder, file_format="array_record").as_data_source()
    except Exception as error:  # whatever TFDS raises on a set that another version of it wrote
        raise UserError(f"{folder} cannot be read ({error!r:.200}); remove it, and it is prepared again") from None
    return {
        split: PreparedSplit(
            files[split].name,
            [id for id, _ in order],
            [i for _, i in order],
            sources[split],
            release.features,
            folder,
        )
        for split, order in orders.items()
    }


def _read_orders(folder: Path) -> dict[str, list[tuple[str, int]]] | None:
    """Reads split -> (id, index in the data source), in file order; None if the set is missing or damaged."""
    written = read_checked(folder / _INDEX)
    if written is None or any(sha256(folder / name) != digest for name, digest in written["files"].items()):
        return None
    return written["orders"]


def _write_set(release: Release, files: Mapping[str, Path], folder: Path) -> None:
    """Prepares a set whole or not at all, in place of a damaged one."""
    import tensorflow_datasets as tfds

    with whole_folder(folder, lambda: _read_orders(folder) is not None) as partial:
        builder = builder_class(release)(data_dir=partial, file_format="array_record")
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download that it does not make
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=str(files["train"].parent))
            )
        orders = {}
        for split, source in builder.as_data_source().items():
            rows = Bar(source, f"index {files[split].name}", unit=" records", leave=False)
            order = sorted((int(row["index"]), row["id"].decode(), i) for i, row in enumerate(rows))
            _check_unique([id for _, id, _ in order], files[split])
            orders[split] = [(id, i) for _, id, i in order]
        written = sorted(path for path in partial.rglob("*") if path.is_file())
        digests = {str(path.relative_to(partial)): sha256(path) for path in written}
        write_checked(partial / _INDEX, {"files": digests, "orders": orders})
