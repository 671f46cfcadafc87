"""Keeps a report current while its run or sweep continues, and serves it read-only to this machine.

The pages on disk are the same as those of a report made once. The served pages have a script added, report/watch.js,
which fetches the page again and replaces what has changed.
"""

import glob
import hashlib
import html
import os
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from tsallis_rl.report.rollout_page import file_stamp, link, saved_step
from tsallis_rl.runs.errors import UserError, sentence, shortened, visible
from tsallis_rl.runs.run_lock import is_held

PORT, PORTS = 8765, 20  # the first port that is tried by default, and how many
SECONDS = 2.0  # between looks at the files, or as long as drawing took if that is longer
_SCRIPT = Path(__file__).with_name("watch.js")
_NAMES = {"127.0.0.1", "localhost", "::1"}  # in the Host header; its port may differ, through ssh -L
_TYPES = {
    ".html": "text/html; charset=utf-8", ".json": "application/json", ".jsonl": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8", ".png": "image/png",
}  # fmt: skip
_SAFE = {  # a foreign page in the folder can neither load from nor send to another server
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_ADDED = """<p id="watch" role="status" data-own hidden></p>
<style>
html { overflow-anchor: none; scroll-padding-top: 3rem; }
@media (max-width: 44rem) { html { scroll-padding-top: 6rem; } }
#watch { bottom: 0; } #state { top: 0; }
#state, #watch { position: sticky; margin: 0; padding: .3rem 0; z-index: 1; background: var(--page, Canvas); }
#watch, #drawing { font-weight: 600; }
</style>
<script src="/watch.js"></script>
"""


class PageServer(ThreadingHTTPServer):
    """Serves the files of a folder on 127.0.0.1, one thread per request.

    Attributes:
      folder: the folder of the run or sweep.
      note: why the page could not be drawn the last time, or "".
    """

    daemon_threads = True
    request_queue_size = 128  # several windows may ask at the same moment

    def __init__(self, folder: Path, port: int):
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder, self.note = folder, ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints why a request failed, unless the browser just went away."""
        if not isinstance(error := sys.exception(), ConnectionError | TimeoutError):
            print(f"WARNING: a request failed: {type(error).__name__}: {error}", file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = 30

    def do_GET(self) -> None:
        """Sends a file of the folder, or an error that says why not."""
        if not self._is_local():
            self.send_error(HTTPStatus.FORBIDDEN, "ask by http://127.0.0.1 or http://localhost, on this machine")
            return
        address = self.path.partition("?")[0]
        parts = [os.fsdecode(unquote_to_bytes(part)) for part in address.split("/") if part] or ["report.html"]
        if parts == ["watch.js"]:
            self._send(_SCRIPT.read_bytes(), "text/javascript; charset=utf-8")
            return
        kind = _TYPES.get(Path(parts[-1]).suffix)
        try:
            if kind is None:
                raise FileNotFoundError
            with open_inside(self.server.folder, parts) as file:
                if parts[-1].endswith(".html"):
                    self._send(self._live(file.read(), parts), kind)
                else:
                    self._stream(file, kind)
        except (OSError, ValueError) as error:  # ValueError: a name with NUL
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            if parts == ["report.html"]:
                self._send(self._live(_waiting_page(self.server.folder), parts), _TYPES[".html"])
            else:
                self.send_error(HTTPStatus.NOT_FOUND, "there is no such page of this run")

    do_HEAD = do_GET

    def _is_local(self) -> bool:
        """Returns whether the Host header names this machine; another name may be DNS rebinding."""
        try:
            names = [urlsplit(f"//{host}").hostname for host in self.headers.get_all("Host", [])]
        except ValueError:
            return False
        return len(names) == 1 and names[0] in _NAMES

    def _live(self, page: bytes, parts: list[str]) -> bytes:
        """Adds to a page its script, the newest step, and why it could not be drawn anew."""
        top = f'<p id="drawing">{html.escape(self.server.note)}</p>\n' if self.server.note else ""
        top += _newest(self.server.folder.joinpath(*parts))
        opening = re.search(rb"<body[^>]*>", page)
        end = page.rfind(b"</body>")
        if not opening or end < 0:
            return page
        begin = opening.end()
        return page[:begin] + b"\n" + top.encode() + page[begin:end] + _ADDED.encode() + page[end:]

    def _send(self, body: bytes, kind: str) -> None:
        mark = f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
        if mark in self.headers.get("If-None-Match", ""):
            self._begin(HTTPStatus.NOT_MODIFIED, {"ETag": mark})
            return
        self._begin(HTTPStatus.OK, {"ETag": mark, "Content-Type": kind, "Content-Length": str(len(body))})
        if self.command == "GET":
            self.wfile.write(body)

    def _stream(self, file: BinaryIO, kind: str) -> None:
        """Sends a file up to its present length; a run may append to it meanwhile."""
        left = os.fstat(file.fileno()).st_size
        self._begin(HTTPStatus.OK, {"Content-Type": kind, "Content-Length": str(left)})
        while self.command == "GET" and left and (data := file.read(min(left, 1 << 20))):
            self.wfile.write(data)
            left -= len(data)

    def _begin(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | _SAFE).items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers in one plain sentence; a method other than GET and HEAD is refused."""
        headers = {"Content-Type": "text/plain; charset=utf-8", "Connection": "close"}
        if code == HTTPStatus.NOT_IMPLEMENTED:
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, "pages are only read here: GET and HEAD"
            headers["Allow"] = "GET, HEAD"
        self._begin(HTTPStatus(code), headers)
        if self.command != "HEAD":
            self.wfile.write(f"{message or HTTPStatus(code).phrase}\n".encode(errors="replace"))

    def version_string(self) -> str:
        """Names the server without versions."""
        return "tsallis_rl"

    def log_message(self, format: str, *args: Any) -> None:
        """Logs no requests."""


def open_inside(folder: Path, parts: list[str]) -> BinaryIO:
    """Opens a file below `folder`; follows no link, and accepts no `.` or `..`.

    Raises:
      OSError: there is no such file, or it is not a plain file.
    """
    if any(part in (".", "..") or "/" in part for part in parts):
        raise FileNotFoundError
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            above, at = at, os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(above)
        file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)
    opened = os.fdopen(file, "rb")
    if not stat.S_ISREG(os.fstat(file).st_mode):
        opened.close()
        raise FileNotFoundError
    return opened


def _newest(page: Path) -> str:
    """Writes the line above a page of saved texts: the newest step, with a link; "" for any other page."""
    step, begin = saved_step(page), page.stem.rpartition("_")[0]
    if step is None:
        return ""
    others = {
        found: other
        for other in page.parent.glob(f"{glob.escape(begin)}_*.html")
        if (found := saved_step(other)) is not None
    }
    newest = max([step, *others])
    text = "This is the newest step. "
    if newest > step:
        text = f'<a id="newest" href="{link(others[newest], page.parent)}">Newest: step {newest}</a> '
    box = '<label><input type="checkbox" id="follow"> open newer steps as they come</label>'
    return f'<p id="state">{text}{box}</p>\n'


def _waiting_page(folder: Path) -> bytes:
    text = "Nothing to show yet: the folder has no run. This page shows it as soon as it has begun."
    if _stamps(folder):
        text = "The page is being drawn, and comes by itself."
    name = html.escape(visible(folder.resolve().name))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>Waiting for {name}</title>\n'
        "<style>:root { color-scheme: light dark; } body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; "
        "margin: 2rem auto; padding: 0 1rem; } h1 { overflow-wrap: anywhere; }</style></head>\n"
        f'<body><h1>{name}</h1><p id="state">{text}</p>\n</body></html>\n'
    ).encode(errors="replace")


def open_server(folder: Path, port: int | None) -> PageServer:
    """Opens the server at `port`; 0 takes any free port, None the first free one from PORT on.

    Raises:
      UserError: the port is not available.
    """
    tried = [port] if port is not None else [*range(PORT, PORT + PORTS), 0]
    for one in tried:
        try:
            return PageServer(folder, one)
        except OSError as error:
            failed = error
    said = "no port is free" if port is None else f"--port={port}"
    raise UserError(f"{said}: {failed.strerror}; choose another, or 0 for a free one")


class Watch:
    """Draws a report anew when the run's files have changed."""

    def __init__(self, server: PageServer, draw: Callable[[], Any]):
        self._server, self._draw = server, draw
        self._drawn: Any = None
        self._told: set[str] = set()

    def update(self) -> None:
        """Draws if something has changed; a failure is reported once, and the next call tries again."""
        try:
            now = _stamps(self._server.folder)
            if now != self._drawn and now:
                self._draw()
                self._drawn = now
            self._server.note = ""
        except Exception as error:  # a file that is half written, or from another version, can raise anything
            if isinstance(error, UserError):
                text = str(error)
            else:
                text = sentence(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            self._server.note = f"The page could not be drawn anew: {shortened(visible(text), 400)}"
            if self._server.note not in self._told:
                self._told.add(self._server.note)
                print(f"WARNING: {self._server.note}", file=sys.stderr)


def _stamps(folder: Path) -> list[tuple[Any, ...]]:
    """Lists what changes when a run or a sweep makes progress; empty if neither has begun."""
    runs = [folder, *(file.parent for file in sorted(folder.glob("*/config.json")))]
    files = [run / name for run in runs for name in ("config.json", "metrics.jsonl")]
    files += [file for run in runs for name in ("rollouts", "evaluations") for file in (run / name).glob("*.jsonl")]
    found = [(file, *stamp) for file in sorted([folder / "sweep.json", *files]) if (stamp := file_stamp(file))]
    return [*found, *((run, is_held(run)) for run in runs)] if found else []


def watch(folder: Path, port: int | None, draw: Callable[[], Any]) -> None:
    """Serves the report of `folder` and draws it anew until Ctrl-C.

    Raises:
      UserError: `folder` is a file, or the port is not available.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name the folder of a run or of a sweep")
    server = open_server(folder, port)
    port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(
        f"watching {folder}: open http://127.0.0.1:{port} (Ctrl-C ends it)\n"
        f"from another machine: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}, then the same address there",
        flush=True,
    )
    if not folder.exists():
        print(f"there is no {folder} yet: the page shows the run as soon as it begins", flush=True)
    os.nice(5)  # training on the same cores comes first
    current = Watch(server, draw)
    while True:
        began = time.monotonic()
        current.update()
        time.sleep(max(SECONDS, time.monotonic() - began))
