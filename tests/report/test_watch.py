"""The watched report: what its server serves and refuses, and that the page follows the run."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.command_line import refused
from tests.support.written_runs import append, make_run
from tsallis_rl.report.__main__ import main
from tsallis_rl.report.page import write_page
from tsallis_rl.report.rollout_page import write_pages
from tsallis_rl.report.runs import read
from tsallis_rl.report.watch import Watch, open_server


def ask(server, path, method="GET", **headers):
    """Status, headers and body of an answer; a header named Host takes the place of the usual one."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, body


def draw(folder):
    """The report without its figures, which take seconds."""
    runs = read(folder)
    return write_page(folder, runs, [], {r.folder: write_pages(r.folder, "", folder / "report.html") for r in runs})


@pytest.fixture
def served(tmp_path):
    """A server of tmp_path/run, which is not there, and its watch."""
    server = open_server(tmp_path / "run", 0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server, Watch(server, lambda: draw(server.folder))
    server.shutdown()
    server.server_close()


def begin(server):
    return make_run(server.folder, advantage=(0.1,), log_p=(-3.0,), validation=())


def rollouts(folder, step):
    (folder / "rollouts").mkdir(exist_ok=True)
    (folder / "rollouts" / f"step_{step:06d}.jsonl").write_text('{"example": "a", "rollout": 0}\n')


def test_the_page_waits_for_the_run_and_follows_its_steps(served):
    server, current = served
    current.update()
    assert "the folder has no run" in ask(server, "/")[2] and not server.folder.exists()
    folder = begin(server)
    assert "The page is being drawn" in ask(server, "/")[2]
    current.update()
    status, headers, page = ask(server, "/")
    assert status == 200 and "stopped before its end, step 1 of 4, last change <time" in page
    assert ask(server, "/", If_None_Match=headers["ETag"])[0] == 304
    append(folder, {"step": 1, "train/loss": 1.0})
    rollouts(folder, 1)
    current.update()
    status, fresh, page = ask(server, "/report.html", If_None_Match=headers["ETag"])
    assert status == 200 and "step 2 of 4" in page and fresh["ETag"] != headers["ETag"]
    assert '<a href="rollouts/step_000001.html">newest rollouts (step 1)</a>' in page
    assert 'id="newest"' not in ask(server, "/rollouts/step_000001.html")[2]
    rollouts(folder, 3)
    current.update()
    page = ask(server, "/rollouts/step_000001.html")[2]
    assert '<a id="newest" href="step_000003.html">Newest: step 3</a>' in page and page.endswith("</body></html>\n")


def test_what_is_on_disk_fetches_nothing(served):
    server, current = served
    rollouts(begin(server), 0)
    current.update()
    for name in ("report.html", "rollouts/step_000000.html"):
        assert "watch.js" in ask(server, f"/{name}")[2]
        assert not re.search(r"watch\.js|fetch\(", (server.folder / name).read_text())
    assert "fetch(" in ask(server, "/watch.js")[2]


def test_a_page_is_drawn_again_only_after_a_change_and_a_failure_is_told_once(served, capsys):
    server, _ = served
    folder, drawn = begin(server), []

    def once_more():
        drawn.append(len(drawn))
        if len(drawn) in (2, 3):
            raise ValueError("half <written>")

    current = Watch(server, once_more)
    for _ in range(3):
        current.update()
    assert drawn == [0]
    append(folder, {"step": 1, "train/loss": 1.0})
    draw(folder)
    current.update()
    assert "The page could not be drawn anew: ValueError: half &lt;written&gt;</p>" in ask(server, "/")[2]
    for _ in range(3):
        current.update()
    assert drawn == [0, 1, 2, 3] and capsys.readouterr().err.count("half <written>") == 1
    assert "could not be drawn" not in ask(server, "/")[2]


@pytest.mark.parametrize(
    "path",
    ["/../secret.txt", "/rollouts/../../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "//../secret.txt",
     "/link.txt", "/up/secret.txt", "/rollouts", "/rollouts/", "/pipe.txt", "/parameters.bin", "/owner.lock", 
     "/a%00.txt", "/nothing.html", "/report.html/x.txt", "//[/x.html"],
)  # fmt: skip
def test_nothing_but_files_of_the_folder_is_given(served, path):
    server, current = served
    folder = begin(server)
    rollouts(folder, 0)
    current.update()
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "up").symlink_to(folder.parent)
    os.mkfifo(folder / "pipe.txt")
    for name in ("parameters.bin", "owner.lock"):
        (folder / name).write_text("secret")
    status, headers, body = ask(server, path)
    assert (status, body) == (404, "there is no such page of this run\n") and "text/plain" in headers["Content-Type"]


def test_pages_are_read_by_this_machine_alone_and_never_written(served):
    server, current = served
    folder = begin(server)
    current.update()
    before = sorted(folder.rglob("*"))
    for method in ("POST", "PUT", "DELETE", "BREW"):
        status, headers, body = ask(server, "/report.html", method)
        assert (status, headers["Allow"], body) == (405, "GET, HEAD", "pages are only read here: GET and HEAD\n")
    for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "[", ""):
        status, _, body = ask(server, "/", Host=host)
        assert status == 403 and body == "ask by http://127.0.0.1 or http://localhost, on this machine\n", host
    for host in ("localhost:9000", "127.0.0.1", "[::1]:8765"):
        assert ask(server, "/", Host=host)[0] == 200, host
    status, headers, body = ask(server, "/metrics.jsonl", "HEAD")
    assert (status, body, int(headers["Content-Length"])) == (200, "", (folder / "metrics.jsonl").stat().st_size)
    assert json.loads(ask(server, "/metrics.jsonl")[2].splitlines()[0])["step"] == 0
    assert "default-src 'none'" in headers["Content-Security-Policy"] and sorted(folder.rglob("*")) == before


def test_a_port_that_is_taken_is_named_and_the_default_has_others(served, tmp_path, capfd):
    taken = served[0].server_port
    told = refused(capfd, main, str(tmp_path), "--watch", f"--port={taken}")
    assert told == f"--port={taken}: Address already in use; choose another, or 0 for a free one"
    assert "--port=80 is read with --watch" in refused(capfd, main, str(tmp_path), "--port=80")
    assert "b' is one too many: give one RUN_OR_SWEEP_DIR;" in refused(capfd, main, "a", "b")
    (tmp_path / "file").touch()
    assert "file is a file; name the folder" in refused(capfd, main, str(tmp_path / "file"), "--watch", "--port=0")
    first, second = open_server(tmp_path, None), open_server(tmp_path, None)
    assert first.server_port != second.server_port
    for server in (first, second):
        server.server_close()


# An interrupt ends it also where the tests are a shell's background job, which ignores interrupts.
UNIGNORED = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('tsallis_rl.report', run_name='__main__', alter_sys=True)"
)


def test_the_command_says_its_address_and_ends_by_an_interrupt(tmp_path):
    command = [sys.executable, "-c", UNIGNORED, str(tmp_path / "run"), "--watch", "--port=0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    said = process.stdout.readline()
    assert re.fullmatch(r"watching .*run: open http://127\.0\.0\.1:\d+ \(Ctrl-C ends it\)\n", said)
    assert process.stdout.readline().startswith("from another machine: ssh -L ")
    assert process.stdout.readline().startswith(f"there is no {tmp_path / 'run'} yet")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "stopped by SIGINT; the pages stay as they are\n"
    while process.poll() is None:  # an impatient person
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    assert process.returncode == 130 and process.communicate() == ("", "")
