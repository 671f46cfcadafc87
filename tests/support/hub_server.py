"""Imitates the Hugging Face hub on this machine: the endpoints from which huggingface_hub fetches files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Hub:
    """The hub's repositories, each {revision: commit} and {commit: folder}, and the requests it received.

    Attributes:
      revisions: repository → commits of its branches and tags.
      folders: repository → folder of each commit.
      gated: repositories that are listed, but whose files nobody may fetch.
      asked: "METHOD path" of every request.
      url: address at which it listens.
    """

    def __init__(self):
        self.revisions: dict[str, dict[str, str]] = {}
        self.folders: dict[str, dict[str, Path]] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.url = ""

    def push(self, repository: str, folder: Path, branch: str = "main") -> str:
        """Puts a folder at the head of a branch; returns its commit."""
        commit = hashlib.sha1(f"{repository} {folder}".encode()).hexdigest()
        self.revisions.setdefault(repository, {})[branch] = commit
        self.folders.setdefault(repository, {})[commit] = folder
        return commit

    def files_asked(self) -> set[str]:
        """Names the files whose content was fetched."""
        return {line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and "/resolve/" in line}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Answers a request for a path: status, headers and body."""
        api, parts = path.startswith("/api/models/"), path.removeprefix("/api/models").strip("/").split("/")
        repository, kind, revision = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "", "/".join(parts[3:4])
        if repository not in self.folders:
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
        commit = self.revisions[repository].get(revision, revision)
        if commit not in self.folders[repository]:
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}, b""
        folder = self.folders[repository][commit]
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        if api and kind == "revision":
            info = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in names], "tags": []}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if api and kind == "tree":
            rows = [
                {"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": self._oid(folder / name)}
                for name in names
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
        name = "/".join(parts[4:])
        if repository in self.gated:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b""
        if name not in names:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{self._oid(folder / name)}"'}, (folder / name).read_bytes()

    @staticmethod
    def _oid(file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """Serves a hub without repositories on a free port."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            hub.asked.append(f"{self.command} {self.path}")
            status, headers, body = hub.answer(self.path.partition("?")[0])
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
