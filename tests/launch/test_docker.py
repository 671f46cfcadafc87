"""The Dockerfile for a GPU host, which no test can build: the files it copies exist, and its command is ours."""

import re

from tests.support.paths import ROOT

TEXT = (ROOT / "launch" / "Dockerfile").read_text()


def test_what_is_copied_is_there_and_not_left_out_of_the_context():
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", TEXT, re.MULTILINE) for name in line.split()}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in and all((ROOT / name).exists() for name in copied)
    assert {"setup.py", "README.md", "tsallis_rl", "configs"} <= copied


def test_its_extras_are_those_of_the_package():
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", TEXT, re.MULTILINE)
    known = set(re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE))
    assert set(extras.split(",")) <= known >= {"tpu", "cloud"}  # the head of the file names these
    (command,) = re.findall(r"^ENTRYPOINT (.+)$", TEXT, re.MULTILINE)
    assert command == '["python", "-m", "tsallis_rl.main"]'
