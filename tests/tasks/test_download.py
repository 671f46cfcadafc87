"""Downloads: checksums, archives, sites that do not answer."""

import functools
import hashlib
import http.server
import os
import threading
import zipfile

import pytest

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.download import fetch
from tsallis_rl.tasks.releases import Download, Release


@pytest.fixture
def site(tmp_path):
    """A folder and the address under which a local web server shows it."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def release_at(*downloads):
    return Release("fetched", "Fetched", {}, {}, iter, downloads)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_download_is_kept_where_its_checksum_is_right_and_not_fetched_twice(site, tmp_path, capsys):
    folder, address = site
    (folder / "train.json").write_bytes(b"[1]")
    release = release_at(Download(f"{address}/train.json", {"train.json": sha256(b"[1]")}))
    assert fetch(release, str(tmp_path / "here" / "deep")) == tmp_path / "here" / "deep"
    assert (tmp_path / "here" / "deep" / "train.json").read_bytes() == b"[1]"
    (folder / "train.json").unlink()
    fetch(release, str(tmp_path / "here" / "deep"))
    assert "there already, checksum as expected" in capsys.readouterr().out
    assert os.listdir(tmp_path / "here" / "deep") == ["train.json"]


def test_download_with_another_checksum_is_refused_and_removed(site, tmp_path):
    folder, address = site
    (folder / "train.json").write_bytes(b"[2]")
    release = release_at(Download(f"{address}/train.json", {"train.json": sha256(b"[1]")}))
    with pytest.raises(UserError, match=f"not kept, it has SHA-256 {sha256(b'[2]')}, expected {sha256(b'[1]')}"):
        fetch(release, str(tmp_path / "here"))
    assert os.listdir(tmp_path / "here") == []
    (tmp_path / "here" / "train.json").write_bytes(b"[3]")
    with pytest.raises(UserError, match=r"train\.json: remove it and download again; it has SHA-256"):
        fetch(release, str(tmp_path / "here"))


def test_files_are_taken_out_of_an_archive(site, tmp_path):
    folder, address = site
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        archive.writestr("data/a.jsonl", "a")
        archive.writestr("data/b.jsonl", "b")
        archive.writestr("__MACOSX/data/._a.jsonl", "no")
    contents = {"a.jsonl": sha256(b"a"), "b.jsonl": sha256(b"b")}
    fetch(release_at(Download(f"{address}/all.zip", contents, zipped=True)), str(tmp_path / "here"))
    assert sorted(os.listdir(tmp_path / "here")) == ["a.jsonl", "b.jsonl"]
    (folder / "page").write_text("<html>quota</html>")
    with pytest.raises(UserError, match=r"did not send a zip archive; fetch it in a browser and unpack a\.jsonl"):
        fetch(release_at(Download(f"{address}/page", contents, zipped=True)), str(tmp_path / "there"))
    assert os.listdir(tmp_path / "there") == []


def test_an_archive_that_is_damaged_is_one_sentence_and_leaves_nothing(site, tmp_path):
    folder, address = site
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", os.urandom(2000))
    whole = (folder / "all.zip").read_bytes()
    release = release_at(Download(f"{address}/all.zip", {"a.jsonl": ""}, zipped=True))
    for damaged in (whole[:500] + bytes(500) + whole[1000:], b"\xff" * 60 + whole[60:], whole[60:]):
        (folder / "all.zip").write_bytes(damaged)
        with pytest.raises(UserError, match=r"all\.zip: the archive is damaged \(.*\); download again"):
            fetch(release, str(tmp_path / "here"))
        assert os.listdir(tmp_path / "here") == []


def test_a_folder_where_a_file_must_be_is_one_sentence(site, tmp_path):
    (tmp_path / "here" / "train.json").mkdir(parents=True)
    release = release_at(Download(f"{site[1]}/train.json", {"train.json": ""}))
    with pytest.raises(UserError, match=r"train\.json cannot be read \(Is a directory\); remove it and download again"):
        fetch(release, str(tmp_path / "here"))


def test_site_that_does_not_answer_is_one_sentence(site, tmp_path):
    _, address = site
    for url in (f"{address}/none.json", "http://127.0.0.1:9/none.json"):
        with pytest.raises(UserError, match=f"{url} cannot be fetched .*put it into {tmp_path}"):
            fetch(release_at(Download(url, {"none.json": ""})), str(tmp_path))
