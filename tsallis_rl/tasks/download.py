"""Downloads of a release's official files, checked against known SHA-256 sums."""

import errno
import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from tsallis_rl.runs.cache import beside, remove_left
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import is_remote
from tsallis_rl.runs.paths import local_path
from tsallis_rl.runs.progress import Bar
from tsallis_rl.tasks.official_files import Download, Release

_CHUNK = 1 << 20
_PATIENCE = 60  # seconds without a byte


def fetch(release: Release, folder: str) -> Path:
    """Downloads the files that are missing in `folder` (`release.download_folder` if empty) and returns the folder.

    Raises:
      UserError: a site cannot be reached, or a file is not the one that is expected.
    """
    if is_remote(folder):
        raise UserError(f"config.task.folder={folder!r}: downloads go to a folder of this machine")
    into = local_path(folder, "config.task.folder") if folder else release.download_folder
    try:
        into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"config.task.folder={folder!r} cannot be made ({error.strerror})") from None
    for download in release.downloads:
        missing = {name: digest for name, digest in download.contents.items() if not (into / name).exists()}
        for name in download.contents.keys() - missing.keys():
            _check(into / name, download.contents[name], f"{into / name}: remove it and download again; it")
            print(f"{into / name}: there already, checksum as expected")
        if missing:
            _fetch(download, missing, into)
    return into


def _check(path: Path, expected: str, what: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); remove it and download again") from None
    if found != expected:
        raise UserError(f"{what} has SHA-256 {found}, expected {expected}")


def _fetch(download: Download, missing: dict[str, str], into: Path) -> None:
    remove_left(into / "download")
    partial = beside(into / "download")
    try:
        _save(download.url, partial, into)
        if not download.zipped:
            ((name, digest),) = missing.items()
            _keep(partial, into / name, digest, download.url)
            return
        if not zipfile.is_zipfile(partial):
            raise UserError(
                f"{download.url} did not send a zip archive; fetch it in a browser and unpack {', '.join(missing)} "
                f"into {into}"
            )
        try:
            _unpack(partial, missing, into, download.url)
        except UserError:
            raise
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise UserError(f"{download.url}: the archive is damaged ({error}); download again") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a cut archive names places before the file's start
            raise UserError(f"{download.url}: the archive is damaged ({error.strerror}); download again") from None
        raise UserError(
            f"{into} cannot be written ({error.strerror or error}); make room there, or name another"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
        partial.with_suffix(".unpacked").unlink(missing_ok=True)


def _unpack(archived: Path, missing: dict[str, str], into: Path, url: str) -> None:
    """Takes the missing files out of a zip archive."""
    with zipfile.ZipFile(archived) as archive:
        members = {Path(member).name: member for member in archive.namelist()}
        for name, digest in missing.items():
            if name not in members:
                raise UserError(f"{url}: the archive has no {name}")
            unpacked = archived.with_suffix(".unpacked")
            with archive.open(members[name]) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
            _keep(unpacked, into / name, digest, url)


def _keep(file: Path, name: Path, digest: str, url: str) -> None:
    _check(file, digest, f"{url}: what came for {name.name} is not kept, it")
    file.replace(name)
    print(f"{name}: downloaded, checksum as expected")


def _save(url: str, target: Path, into: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "tsallis_rl"})
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as response, target.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0) or None
            with Bar(total=total, desc=url.rpartition("/")[2][:40], unit="B", unit_scale=True) as progress:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    progress.update(len(chunk))
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise UserError(f"{url} cannot be fetched ({error}); fetch it in a browser and put it into {into}") from None
