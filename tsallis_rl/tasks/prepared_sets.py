"""Prepared sets: the records of a release in TFDS's array_record format, written once, without TensorFlow.

A prepared set is reused as long as its source files, and the module that reads them, have the same content.
`tensorflow_datasets` takes a second to import, so that only functions that use it import it.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from tsallis_rl.runs.cache import cache_folder, write_whole
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.tasks.official_files import Release
from tsallis_rl.tasks.records import Record

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


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


def _plain(value: Any, spec: Any) -> Any:
    """Turns a value of a data source into plain Python: text, and a list of objects for an object of lists."""
    if isinstance(spec, list) and isinstance(spec[0], Mapping):
        columns = [[_plain(item, inner) for item in value[name]] for name, inner in spec[0].items()]
        return [dict(zip(spec[0], row, strict=True)) for row in zip(*columns, strict=True)]
    if isinstance(spec, list):
        return [_plain(item, spec[0]) for item in value]
    return value.decode() if spec is str else spec(value)


def builder_class(release: Release) -> "type[tfds.core.GeneratorBasedBuilder]":
    """Makes the TFDS builder that prepares a release from its official files, which lie in TFDS's manual_dir."""
    import tensorflow_datasets as tfds

    class ReleaseBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the release's official files into this folder."
        url_infos = None  # TFDS looks for checksums beside the code, by a package that it does not install

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=_feature({"index": int, **release.features}))

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
            files = release.find(str(dl_manager.manual_dir))
            return {split: self._generate_examples(path) for split, path in files.items()}

        def _generate_examples(self, path: Path) -> Iterator[tuple[int, Record]]:
            records = tqdm(release.read(path), f"prepare {path.name}", unit=" records", leave=False, disable=None)
            for index, record in enumerate(records):
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
      ids: in file order.
      indices: index of each record in `source`, which TFDS has shuffled.
      source: TFDS's data source.
      spec: field of a record -> its kind, see `Release.features`.
    """

    ids: Sequence[str]
    indices: Sequence[int]
    source: Any
    spec: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Record:
        row = self.source[self.indices[i]]
        return {name: _plain(row[name], inner) for name, inner in self.spec.items()}


def _check_unique(ids: Sequence[str], path: Path) -> None:
    first: dict[str, int] = {}
    for i, id in enumerate(ids):
        if id in first:
            raise UserError(f"{path}: records {first[id]} and {i} (the first is 0) have the same id {id!r}; remove one")
        first[id] = i


def prepare(release: Release, files: Mapping[str, Path]) -> dict[str, PreparedSplit]:
    """Prepares a release's files, unless a set for their content is there: split -> records.

    Args:
      release: the release.
      files: split -> file, all in one folder, as `release.find` returns them.

    Raises:
      UserError: a file is not as it must be.
    """
    import tensorflow_datasets as tfds

    builder = builder_class(release)(
        data_dir=cache_folder("prepared") / _content_hash(release, files), file_format="array_record"
    )
    index = Path(builder.data_path) / "order.json"  # split -> (id, index in the data source), in file order
    if not index.exists():
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS tells of a download that it does not make
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=str(files["train"].parent))
            )
        orders = {}
        for split, source in builder.as_data_source().items():
            rows = tqdm(source, f"index {files[split].name}", unit=" records", leave=False, disable=None)
            order = sorted((int(row["index"]), row["id"].decode(), i) for i, row in enumerate(rows))
            _check_unique([id for _, id, _ in order], files[split])
            orders[split] = [(id, i) for _, id, i in order]
        write_whole(index, json.dumps(orders).encode())
    sources = builder.as_data_source()
    return {
        split: PreparedSplit([id for id, _ in order], [i for _, i in order], sources[split], release.features)
        for split, order in read_object(index, "remove the file; the set is indexed again").items()
    }
