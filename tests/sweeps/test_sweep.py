"""Sweeps of tiny runs: cells, failures, stopping, and the list of commands."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.checkpoints import write_manifest
from tests.support.command_line import call, refused
from tests.support.paths import ROOT
from tests.support.runs import SMALL, small, without_clocks
from tsallis_rl.main import main as train
from tsallis_rl.runs.run_lock import hold_run_lock
from tsallis_rl.sweep import main, tell_end
from tsallis_rl.sweeps.cells import Cell, _state, read_states, run_cells
from tsallis_rl.sweeps.standing import steps_made

FIELDS = [f"--config.{name}={value}" for name, value in SMALL.items()]


def sweep(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tsallis_rl.sweep", *FIELDS, *arguments]


def run(capfd, *arguments: str) -> tuple[int | str | None, str, str]:
    """The sweep in this process, its cells in others: exit status, and what was printed and told."""
    capfd.readouterr()
    code = call(main, *FIELDS, *arguments)
    return code, *capfd.readouterr()


def states(out: Path) -> dict[str, str]:
    return {name: cell["state"] for name, cell in json.loads((out / "sweep.json").read_text()).items()}


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--q=0.5,.50"], "the cell garl-q0.5-seed0 comes twice; name each value once"),
        (["--estimators=iwae,em,iwae"], "--estimators=iwae,em,iwae: iwae comes twice; name each value once"),
        (["--q="], "--q=: a value is empty; name values with commas between them"),
        (["--estimators=garl,,paft"], "--estimators=garl,,paft: a value is empty"),
        (["--q=0,nan"], "--q=0,nan: choose numbers from 0 to 1"),
        (["--q=0,high"], "--q=0,high: choose numbers from 0 to 1"),
        (["--estimators=garlic"], "estimator 'garlic' is not known: choose from garl, paft"),
        (["--config.estimator.q=0.5"], "config.estimator.q=0.5: a sweep sets it by --q; use that"),
        (["--config.estimator.name=paft"], "config.estimator.name=paft: a sweep sets it by --estimators; use that"),
        (["--config.seed=7"], "config.seed=7: a sweep sets it by --seeds; use that"),
        (["--config=configs/hops.py:start=warm,q=0.5"], "a sweep sets q by --q; leave it out after the colon"),
        (["--cost=nan"], "--cost=nan: give the price of an hour as a number"),
        (["--seeds=0"], "flag --seeds=0: 0 is not a positive integer"),
        (["--out=s3://bucket/sweep"], "--out=s3://bucket/sweep: only a run's --workdir may be in an object store"),
        (["garl"], "'garl' is not a flag"),
        (["--estimator=garl"], "--estimator=garl is not a flag; did you mean --estimators or"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_grid_that_cannot_be_meant_is_refused(arguments, sentence, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert sentence in refused(capfd, main, "--dry-run", *arguments)


@pytest.mark.processes
def test_a_failing_cell_is_shown_and_the_others_continue(tmp_path, capfd, monkeypatch):
    """Of a grid file, whose cells are run as those of flags are."""
    monkeypatch.chdir(ROOT)
    block = 'Block("configs/hops.py", {"garl": (0.75,), "grpo": ()}, seeds=1, name="")'
    made = f"from tsallis_rl.sweeps.grid import Block\n\n\ndef get_grid():\n    return [{block}]\n"
    (tmp_path / "pair.py").write_text(made)
    arguments = [f"--grid={tmp_path / 'pair.py'}", f"--out={tmp_path}", "--jobs=2", "--cost=3"]
    (tmp_path / "garl-q0.75-seed0").mkdir()
    (tmp_path / "garl-q0.75-seed0" / "rollouts").touch()  # where the run must make a folder
    code, printed, told = run(capfd, *arguments)
    assert code == 1
    assert states(tmp_path) == {"garl-q0.75-seed0": "failed", "grpo-seed0": "done"}
    assert "1 of 2 cells are done" in printed
    assert printed.endswith(f"report: python -m tsallis_rl.report {tmp_path}\n")
    tested = [record for record in records(tmp_path / "grpo-seed0") if "eval/test/checkpoint_step" in record][-1]
    figures = f"p@1 {tested['eval/test/pass@1']:.3f}, m@4 {tested['eval/test/maj@4']:.3f}"
    assert f"\ngrpo-seed0:       done {figures}\n" in printed and "\ngarl-q0.75-seed0: failed error: " in printed
    assert f"failed: garl-q0.75-seed0: error: {tmp_path}/garl-q0.75-seed0/rollouts" in told
    assert "2 cells, 0 done; 8 steps to go, 2 at a time: how long that takes is known when a cell that this" in printed
    seconds = json.loads((tmp_path / "sweep.json").read_text())["grpo-seed0"]["seconds"]
    assert 0 < seconds < 600
    rate = f"at {seconds / 4:.3g} seconds a step as in cells that ended (1)"
    assert f"2 cells, 1 done; 4 steps to go, 1 at a time: about {seconds:.0f} seconds, " in printed
    assert f"{seconds / 1200:.2f} at 3 an hour, {rate}" in printed

    (tmp_path / "garl-q0.75-seed0" / "rollouts").unlink()
    before = (tmp_path / "grpo-seed0" / "metrics.jsonl").stat().st_mtime_ns
    code, printed, told = run(capfd, *arguments)
    assert code == 0, told
    assert states(tmp_path) == {"garl-q0.75-seed0": "done", "grpo-seed0": "done"}
    assert (tmp_path / "grpo-seed0" / "metrics.jsonl").stat().st_mtime_ns == before
    assert rate in printed  # before the start

    other = "holds a run with config.optimizer.eps = 1e-08, this one has 1e-12"
    assert other in refused(capfd, main, *FIELDS, *arguments, "--config.optimizer.eps=1e-12")
    # A dry run goes by what the folders hold as well, not by what sweep.json says of them.
    for field, told in (("optimizer.eps=1e-12", other), ("train.steps=5", "2 cells, 0 done; 2 steps to go")):
        assert call(main, *FIELDS, *arguments, f"--config.{field}", "--dry-run") is None
        listed, estimated = capfd.readouterr()
        assert told in estimated and listed.count("--workdir=") == 2
    (tmp_path / "sweep.json").write_text('{"garl')
    assert "sweep.json is not JSON" in refused(capfd, main, *FIELDS, *arguments)


@pytest.mark.processes
def test_a_stopped_sweep_continues_and_ends_as_its_commands_would(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["--q=1", "--estimators=garl", "--seeds=2", "--jobs=1", "--config.train.steps=30"]
    process = subprocess.Popen(sweep(*arguments, f"--out={tmp_path}"), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "garl-q1-seed0" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"train/loss"' in metrics.read_text()):
        time.sleep(0.01)
    assert states(tmp_path) == {"garl-q1-seed0": "running", "garl-q1-seed1": "waiting"}
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, told
    assert states(tmp_path) == {"garl-q1-seed0": "stopped", "garl-q1-seed1": "waiting"}
    assert "1 cell(s) not begun; the same command continues the sweep" in told
    assert run(capfd, *arguments, f"--out={tmp_path}")[0] == 0
    assert set(states(tmp_path).values()) == {"done"}
    timed = {name: "seconds" in cell for name, cell in json.loads((tmp_path / "sweep.json").read_text()).items()}
    assert timed == {"garl-q1-seed0": False, "garl-q1-seed1": True}  # a part of a cell's time is none

    capfd.readouterr()
    assert not call(main, *FIELDS, *arguments, f"--out={tmp_path / 'alone'}", "--dry-run")
    listed = capfd.readouterr().out.splitlines()
    assert [line.split()[2] for line in listed] == ["tsallis_rl.main"] * 3
    assert [line.split()[-1].partition("=")[0] for line in listed] == ["--prepare", "--workdir", "--workdir"]
    assert call(train, *shlex.split(listed[1])[3:]) is None
    alone, swept = (records(folder / "garl-q1-seed0") for folder in (tmp_path / "alone", tmp_path))
    assert without_clocks(alone) == without_clocks(swept)


def test_states_that_a_killed_sweep_left_are_put_right(tmp_path):
    ended = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": ""})  # its number is another's now
    for name in ("mine", "ended", "at work"):
        (tmp_path / name).mkdir()
    (tmp_path / "ended" / "owner.lock").write_text(ended)
    found = {name: {"state": "running"} for name in ("mine", "ended", "at work", "gone", "../away")}
    (tmp_path / "sweep.json").write_text(json.dumps(found | {"failed": {"state": "failed", "error": "no"}}))
    with hold_run_lock(tmp_path / "at work"):
        states = read_states([Cell(tmp_path / "mine", small(), [])], tmp_path)
    assert {name: state["state"] for name, state in states.items()} == {
        "mine": "waiting", "ended": "stopped", "at work": "running", "gone": "stopped", "../away": "stopped",
        "failed": "failed",
    }  # fmt: skip


# A process that holds the lock of folders until another file is there, then leaves the last one's cell done.
AT_WORK = """
import contextlib, shutil, sys, time
from pathlib import Path
from tsallis_rl.runs.run_lock import hold_run_lock

manifest, end, *folders = map(Path, sys.argv[1:])
with contextlib.ExitStack() as stack:
    for folder in folders:
        stack.enter_context(hold_run_lock(folder))
    print("held", flush=True)
    while not end.exists():
        time.sleep(0.02)
    (folder / "checkpoints").mkdir()
    shutil.copy(manifest, folder / "checkpoints")
"""
# A cell that finds another process at work when it begins, and is done when it begins again.
LATE = """
import shutil, subprocess, sys
from pathlib import Path
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_lock import hold_run_lock

folder, manifest, at_work = Path(sys.argv[1]), *sys.argv[2:]
if (folder / "first").exists():
    sys.exit(shutil.copytree(Path(manifest).parent, folder / "checkpoints") is None)
(folder / "other").mkdir()
command = [sys.executable, "-c", at_work, manifest, str(folder / "first"), str(folder), str(folder / "other")]
other = subprocess.Popen(command, stdout=subprocess.PIPE)
other.stdout.readline()
try:
    with hold_run_lock(folder):
        pass
except UserError as error:
    (folder / "first").touch()
    sys.exit(error.status)
"""


def test_a_cell_at_which_another_process_works_is_waited_for_and_never_failed(tmp_path, capfd, monkeypatch):
    """As after a kill -9 of a sweep, whose cells live on; the others are begun meanwhile."""
    monkeypatch.setattr("tsallis_rl.sweeps.cells.LOOK", 0.1)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folders = {name: tmp_path / "out" / name for name in ("left", "done", "mine", "late")}
    kept = {"format": 2, "step": 4, "quality": [0.5], "control": {"tested_at": 4}, "sha256": {}}
    manifest = tmp_path / "whole" / "4.manifest"
    manifest.parent.mkdir()
    write_manifest(manifest, kept)
    run = f"mkdir checkpoints; echo >> ran; cp {manifest} checkpoints"
    commands = {name: ["sh", "-c", f"cd {folder}; {run}"] for name, folder in folders.items()}
    commands["late"] = [sys.executable, "-c", LATE, str(folders["late"]), str(manifest), AT_WORK]
    ends = [str(manifest), str(folders["mine"] / "ran"), str(folders["left"]), str(folders["done"])]
    other = subprocess.Popen([sys.executable, "-c", AT_WORK, *ends], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    found = run_cells([Cell(folder, small(), commands[name]) for name, folder in folders.items()], tmp_path / "out", 4)
    assert {name: state["state"] for name, state in found.items()} == dict.fromkeys(folders, "done")
    assert [name for name, folder in folders.items() if (folder / "ran").exists()] == ["left", "mine"]
    told, who = capfd.readouterr().out, f"process {other.pid} on {socket.gethostname()}, started "
    for name in ("left", "done"):
        assert re.search(rf"\n{name}: +{who}[-: 0-9]+, works on it; the sweep waits for its end\n", told), told
    assert re.search(rf"\nleft: +{who}[-: 0-9]+, has left it unfinished; the sweep continues it\n", told)
    assert re.search(r"\nlate: +another process began it first; it is checked again\n", told) and "failed" not in told
    assert ["seconds" in found[name] for name in folders] == [True, False, True, True]
    other.wait()


def test_a_cell_whose_folder_cannot_be_used_or_goes_leaves_the_others_alone(tmp_path):
    """And what another sweep writes of its cells in the same sweep.json stays there."""
    (tmp_path / "file").touch()
    kept = json.dumps({"theirs": {"state": "failed", "error": "no"}, "last": {"state": "done"}, "none": 3})
    commands = {
        "file": "exit 0",
        "gone": "rm -r gone; exit 3",
        "full": "head -c 200000 /dev/zero; echo; echo error: it ends here; echo and on; exit 3",
        "last": f"sleep 0.3; echo '{kept}' > sweep.json; exit 3",
    }
    cells = [Cell(tmp_path / x, small(), ["sh", "-c", f"cd {tmp_path}; {y}"]) for x, y in commands.items()]
    found = run_cells(cells, tmp_path, 1)
    assert found == json.loads((tmp_path / "sweep.json").read_text())
    assert {name: state["state"] for name, state in found.items()} == dict.fromkeys([*commands, "theirs"], "failed")
    assert f"log.txt cannot be written ({tmp_path / 'file'} is a file, where a folder" in found["file"]["error"]
    assert [found[x]["error"] for x in ("gone", "full")] == ["exit status 3 without a word", "error: it ends here"]


def test_a_cell_that_was_stopped_from_elsewhere_is_not_counted_as_done(tmp_path, capsys):
    cells = [Cell(tmp_path / name, small(), []) for name in ("one", "two", "three")]
    states = {"one": {"state": "done"}, "two": {"state": "stopped"}, "three": {"state": "failed", "error": "error: x"}}
    assert not tell_end(cells, states, tmp_path)
    printed, told = capsys.readouterr()
    assert printed == f"1 of 3 cells are done: {tmp_path}\nreport: python -m tsallis_rl.report {tmp_path}\n"
    assert told == (
        f"stopped: two: the same command continues it (all of it: {tmp_path / 'two' / 'log.txt'})\n"
        f"failed: three: error: x (all of it: {tmp_path / 'three' / 'log.txt'})\n"
    )
    assert tell_end(cells[:1], states, tmp_path)


@pytest.mark.parametrize(("name", "state"), [("TERM", "stopped"), ("INT", "stopped"), ("KILL", "failed")])
def test_a_cell_that_a_signal_ends_after_its_last_step_is_stopped(tmp_path, name, state):
    command = [sys.executable, "-c", f"import os, signal; os.kill(os.getpid(), signal.SIG{name})"]
    if name == "INT":
        command[2] = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); " + command[2]
    cell = Cell(tmp_path / "cell", small(), command)
    assert run_cells([cell], tmp_path, jobs=1)["cell"]["state"] == state


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", 0),
        ('{"step": 0, "eval/test/pass@1": 0}\n', 0),
        ('{"step": 41, "train/loss": 1}\n{"step": 42, "eval/validation/pass@1": 0}\n', 42),
        ('{"step": 41, "train/loss": 1}\n{"step": 42, "train/lo', 42),
        ('{"step": 41, "train/loss": 1}\n[1]\n{"step": "9", "train/loss": 1}\n', 42),
        ('{"step": 41, "train/loss": 1}\n' + "[" * 5000 + '\n{"step": -5, "train/loss": 1}\n', 42),
        ("x" * 100_000 + '\n{"step": 7, "train/loss": 1}\n', 8),
        ('{"step": 7, "train/loss": 1}\n' + "x" * 100_000, 0),
    ],
    ids=["empty", "before", "evaluated", "cut", "hostile", "nested", "long", "too long"],
)
def test_steps_of_a_cell_are_counted_by_the_end_of_its_metrics(tmp_path, text, steps):
    assert steps_made(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text(text)
    assert steps_made(tmp_path) == steps


def test_a_mistake_in_the_config_is_told_once_and_no_cell_begins(tmp_path, capfd):
    told = refused(capfd, main, *FIELDS, "--config.train.micro_batch=3", f"--out={tmp_path}")
    assert told == "config.train.micro_batch=3 does not divide config.train.prompts=4"
    assert not list(tmp_path.iterdir())


def test_a_cell_that_another_process_writes_beside_failed_by_its_own_error(tmp_path):
    (tmp_path / "log.txt").write_text("error: it belongs to process 7; stop that one first\n  step 20  0.167\n")
    assert _state(Cell(tmp_path, small(), []), -9)["error"].startswith("ended by the signal SIGKILL, as by a machine")
    failed = _state(Cell(tmp_path, small(), []), 2)
    assert failed == {"state": "failed", "error": "error: it belongs to process 7; stop that one first"}
