"""Runs that survive what these tests break on purpose, and how they do it."""

import errno
import fcntl
import itertools
import json
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support.backends import only_on_cpu
from tests.support.checkpoints import STATE, at, flip, largest, saved, saved_state, write_manifest
from tests.support.command_line import call
from tests.support.paths import ROOT
from tests.support.runs import ROUNDING, SMALL, rollout_texts, small, without_clocks
from tsallis_rl.main import main
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_directory import RunDirectory
from tsallis_rl.runs.run_lock import hold_run_lock, is_held
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.training import base_model
from tsallis_rl.training.loop import train
from tsallis_rl.training.regeneration import regenerate

DAMAGE = {
    "a flipped bit": (flip, "is not what was saved"),
    "a truncated file": (lambda file: os.truncate(file, file.stat().st_size // 2), "is not what was saved"),
    "a missing file": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_the_newest_sound_checkpoint_is_used(tmp_path, capsys, damage):
    saved(tmp_path, 0.9, 0.1, 0.2)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "1.manifest", "3", "3.manifest"}  # best and latest
    harm, told = DAMAGE[damage]
    file = largest(tmp_path / "3")
    harm(file)
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.latest, checkpoints.best) == (1, 1)
    assert f"WARNING: checkpoint {tmp_path / '3'} is damaged: {file.relative_to(tmp_path / '3')} {told}" in (
        capsys.readouterr().err
    )
    np.testing.assert_array_equal(checkpoints.restore(1, STATE)["params"]["w"], at(1)["params"]["w"])
    checkpoints.save(3, at(3), (0.2,), {})  # the run comes there again
    checkpoints.close()
    assert Checkpoints(tmp_path).latest == 3


@pytest.mark.parametrize("harm", [Path.unlink, flip, lambda file: file.write_bytes(b"")])
def test_a_checkpoint_without_its_whole_manifest_is_not_taken_for_whole(tmp_path, capsys, harm):
    saved(tmp_path, 0.9, 0.1)
    harm(tmp_path / "2.manifest")
    assert Checkpoints(tmp_path).latest == 1
    assert f"WARNING: checkpoint {tmp_path / '2'} was not saved whole" in capsys.readouterr().err


def test_the_control_state_comes_back_as_it_was_saved(tmp_path):
    control = {"q": 0.1, "level": None, "best": -math.inf, "last": math.nan, "counts": [1, 2], "paft": True}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, at(1), (0.5,), control)
    found = checkpoints.control(1)
    checkpoints.close()
    assert math.isnan(found.pop("last")) and math.isnan(control.pop("last"))
    assert found == control
    assert Checkpoints(tmp_path).control(1)["best"] == -math.inf


@pytest.mark.parametrize(
    ("found", "writer"), [(None, "format 1, written by an early"), (3, "format 3, written by ano")]
)
def test_a_checkpoint_of_another_format_is_refused_with_what_to_do(tmp_path, found, writer):
    folder = tmp_path / "checkpoints"
    saved(folder, 0.5)
    body, _, _ = (folder / "1.manifest").read_bytes().rstrip(b"\n").rpartition(b"\n")
    manifest = json.loads(body)
    del manifest["format"]
    write_manifest(folder / "1.manifest", manifest | ({} if found is None else {"format": found}))
    checkpoints = Checkpoints(folder)
    for read in (lambda: checkpoints.latest, lambda: checkpoints.best, lambda: checkpoints.sound_steps):
        with pytest.raises(UserError, match=rf"{tmp_path} has .*{writer}.*or start again in another --workdir"):
            read()


def test_a_disk_that_is_full_stops_the_run_and_tells_the_last_sound_checkpoint(tmp_path):
    saved(tmp_path, 0.5)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
        with pytest.raises(UserError, match=r"could not be saved in .*; the last sound checkpoint is that of step 1;"):
            checkpoints.save(2, at(2), (0.6,), {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        checkpoints.close()
    assert Checkpoints(tmp_path).latest == 1


def test_a_folder_that_cannot_be_written_stops_the_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"could not be saved in .*there is no checkpoint; make room"):
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, at(1), (0.0,), {})


@pytest.mark.parametrize("write", ["log", "write_rows", "rewind"])
def test_a_full_disk_under_any_file_of_a_run_is_one_sentence(tmp_path, write):
    run = RunDirectory(tmp_path, small())
    file = tmp_path / "metrics.jsonl"
    if write == "log":
        file.symlink_to("/dev/full")
    elif write == "write_rows":
        file = tmp_path / "rollouts" / "step_000001.jsonl"
        (tmp_path / "rollouts").touch()
    else:  # it writes a file beside this one first
        file.write_text('{"step": 0}\n')
    remedy = "move that file" if write == "write_rows" else "make room there"
    arguments = {"log": (1, {"x": 1}), "write_rows": ("rollouts/step", 1, []), "rewind": (0,)}[write]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if write == "rewind":
            resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
        with pytest.raises(UserError, match=rf"{file} cannot be written \(.*\); {remedy}"):
            getattr(run, write)(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if write == "rewind":
        assert file.read_text() == '{"step": 0}\n'  # what was there is there


@pytest.mark.parametrize("place", ["file", "file/below", "/sys/run"])
def test_a_work_directory_that_cannot_be_made_is_one_sentence(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"owner\.lock cannot be written \(.*\); .* or choose another folder"):
        train(small(), tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


def test_metrics_that_cannot_be_read_are_one_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be read \(Is a directory\); make it readable"):
        RunDirectory(tmp_path, small()).records()


HOLD = "import sys, time; from pathlib import Path; from tsallis_rl.runs.run_lock import hold_run_lock\n"
HOLD += "with hold_run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_one_process_holds_a_run_directory_and_a_dead_one_is_recognised(tmp_path, capsys):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    who = rf"process {other.pid} on {socket.gethostname()}, started \d{{4}}-"
    with pytest.raises(UserError, match=rf"belongs to {who}.*; stop that one first"), hold_run_lock(tmp_path):
        pass
    other.kill()
    other.wait()
    with hold_run_lock(tmp_path):
        assert json.loads((tmp_path / "owner.lock").read_text())["pid"] == os.getpid()
    assert f"process {other.pid} on" in capsys.readouterr().err
    with hold_run_lock(tmp_path):  # given back: nothing to say
        pass
    assert capsys.readouterr().err == ""
    (tmp_path / "owner.lock").write_text('{"host": "elsewhere", "pid": 7, "started": "2026-01-01 00:00:00"}')
    refused = pytest.raises(UserError, match=r"process 7 on elsewhere.*; if that one has ended, remove .*owner.lock")
    with refused, hold_run_lock(tmp_path):
        pass


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_file_stands_for_one_and_is_never_judged_left_over(tmp_path, monkeypatch, reason):
    def flock(*_):
        raise OSError(reason, os.strerror(reason))  # what network file systems without locks answer

    monkeypatch.setattr(fcntl, "flock", flock)
    held = tmp_path / "owner.held"
    with hold_run_lock(tmp_path):
        refused = pytest.raises(UserError, match=rf"process {os.getpid()} on .*has no locks.*remove {held}")
        with refused, hold_run_lock(tmp_path):
            pass
        assert held.exists() and is_held(tmp_path)
    assert not held.exists() and not is_held(tmp_path)
    held.touch()  # of a process that was killed
    with pytest.raises(UserError, match=rf"an unknown process.*: if it has, remove {held}"), hold_run_lock(tmp_path):
        pass
    held.unlink()
    with hold_run_lock(tmp_path):
        assert json.loads((tmp_path / "owner.lock").read_text())["pid"] == os.getpid()


TWICE = """
import signal, time
from tsallis_rl.runs.signals import stop_requests
with stop_requests() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
        if stop.agreed():
            print(stop.agreed(), flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_quits_at_once(signum):
    process = subprocess.Popen([sys.executable, "-c", TWICE], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signum)
    assert int(process.stdout.readline()) == signum
    process.send_signal(signum)
    assert process.wait(5) == -signum


def test_ctrl_c_while_the_base_model_is_trained_is_one_sentence(tmp_path, capfd, monkeypatch):
    record, steps = base_model.supervised_record, itertools.count()

    def interrupted(*arguments) -> Rollouts:
        if next(steps) == 3:
            assert (tmp_path / "owner.lock").exists()  # made before the base model
            os.kill(os.getpid(), signal.SIGINT)  # while no call of jax is half done in this process
        return record(*arguments)

    monkeypatch.setattr(base_model, "supervised_record", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert call(main, *command(tmp_path)[3:], "--config.base.steps=3000") == 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "stopped by SIGINT; what was saved stays, the same command continues from it\n"
    assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()


SIX = {"train.steps": 6, "train.save_rollouts_every": 1, "evaluate.every": 2}


def command(workdir: Path) -> list[str]:
    fields = [f"--config.{name}={value}" for name, value in (SMALL | SIX).items()]
    return [sys.executable, "-m", "tsallis_rl.main", f"--workdir={workdir}", *fields]


def six():
    config = small()
    config.update_from_flattened_dict(SIX)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(six(), folder)
    return folder


def assert_same_run(found: Path, expected: Path) -> None:
    records = [without_clocks(RunDirectory(folder, six()).records()) for folder in (found, expected)]
    assert records[0] == records[1]
    for file in (expected / "rollouts").iterdir():
        assert (found / "rollouts" / file.name).read_bytes() == file.read_bytes()
    for (path, x), y in zip(
        jax.tree.leaves_with_path(saved_state(found, 6)), jax.tree.leaves(saved_state(expected, 6)), strict=True
    ):
        np.testing.assert_array_equal(x, y, err_msg=str(path))


def run_killed(workdir: Path, moment: float | str) -> bool:
    """Runs until `moment`: seconds after its first word in metrics.jsonl, or "save"; True if kill -9 came in time."""
    process = subprocess.Popen(command(workdir), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = workdir / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_mtime_ns != before):
        time.sleep(0.002)
    if moment == "save":  # of a step after the first updates
        saves = workdir / "checkpoints"
        while process.poll() is None and not (
            (saves / "2.manifest").exists()
            and any(not (saves / f"{p.name[0]}.manifest").exists() for p in saves.iterdir())
        ):
            time.sleep(0.001)
    else:
        time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.processes
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(["save", 0.3], id="two"),
        pytest.param(
            ["save", "save", *np.random.default_rng(0).uniform(0, 2, 18)], id="twenty", marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_killed_again_and_again_is_bit_for_bit_the_run_that_was_not(tmp_path, whole, moments):
    killed, folder = 0, tmp_path / "run0"
    for moment in moments:
        if run_killed(folder, moment):
            killed += 1
        else:  # it reached its end before the moment came
            assert call(main, *command(folder)[3:]) is None
            assert_same_run(folder, whole)
            folder = tmp_path / f"run{killed}"
    assert killed >= len(moments) // 2
    assert call(main, *command(folder)[3:]) is None
    assert_same_run(folder, whole)


@pytest.mark.processes
@only_on_cpu
@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_six_steps_are_three_a_stop_and_three_more_on_another_mesh(tmp_path, whole, axis):
    process = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"step": 2, "train/' in metrics.read_text()):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    stopped = Checkpoints(tmp_path / "checkpoints").latest
    assert 3 <= stopped < 6
    two = {"XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"}
    split = [] if axis == "data" else [f"--config.mesh.{axis}=2"]  # data takes what is left
    done = subprocess.run(
        [*command(tmp_path), *split], cwd=ROOT, env=os.environ | two, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"at step {stopped}" in done.stdout
    assert (f"config.mesh.{axis} was 1, and is 2 from here on" in done.stdout) == bool(split)
    found, expected = (without_clocks(RunDirectory(folder, six()).records()) for folder in (tmp_path, whole))
    for left, right in zip(found, expected, strict=True):
        assert left == pytest.approx(right, **ROUNDING)
    assert rollout_texts(tmp_path) == rollout_texts(whole)


def test_neither_micro_batches_nor_the_prompts_of_an_evaluation_change_a_draw(tmp_path, whole):
    config = six()
    config.train.micro_batch, config.evaluate.prompts = 0, 6  # 2 and 4 in the other
    found = without_clocks(train(config, tmp_path))
    for left, right in zip(found, without_clocks(RunDirectory(whole, six()).records()), strict=True):
        assert left == pytest.approx(right, **ROUNDING)
    assert rollout_texts(tmp_path) == rollout_texts(whole)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(tmp_path):
    port = 20000 + os.getpid() % 10000
    shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    env = os.environ | shared | {"JAX_NUM_CPU_DEVICES": "1", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    processes = [
        subprocess.Popen(
            [*command(tmp_path), "--distributed"],
            cwd=ROOT,
            env=env | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
        )
        for i in range(2)
    ]
    metrics = tmp_path / "metrics.jsonl"
    while processes[0].poll() is None and not (metrics.exists() and '"step": 2, "train/' in metrics.read_text()):
        time.sleep(0.005)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2
    assert 3 <= Checkpoints(tmp_path / "checkpoints").latest < 6


def test_one_rollout_is_drawn_again_alone_and_not_from_a_damaged_checkpoint(tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(3, at(3), (2.0,), {})  # of another run, and then damaged: restoring it would not do
    checkpoints.close()
    flip(largest(tmp_path / "run" / "checkpoints" / "3"))
    lines = (whole / "rollouts" / "step_000003.jsonl").read_text().splitlines()
    expected = json.loads(lines[1 * 4 + 2])  # of the second example, the third
    found = regenerate(tmp_path / "run", step=3, example=expected["example"], rollout=2)
    assert "checkpoints/3 is damaged: " in capsys.readouterr().err
    for name in ("example", "rollout", "prompt", "rationale", "closed", "gold", "answer"):
        assert found[name] == expected[name]
    assert found["log_w"] == pytest.approx(expected["log_w"], rel=1e-4)
    with pytest.raises(UserError, match="--rollout=4: the run has 4, counted from 0"):
        regenerate(whole, step=3, example=1, rollout=4)


@pytest.mark.processes
@only_on_cpu
def test_a_rollout_is_drawn_again_on_the_mesh_of_its_run_or_where_its_prompts_can_be_shared(tmp_path, whole):
    """Split as in a run over four devices; three cannot share the batch of four prompts."""
    settings = (whole / "config.json").read_text()
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(
        settings.replace('"fsdp": 1', '"fsdp": 2').replace('"tensor": 1', '"tensor": 2')
    )
    expected = json.loads((whole / "rollouts" / "step_000003.jsonl").read_text().splitlines()[1 * 4 + 2])
    command = [sys.executable, "-m", "tsallis_rl.regenerate", f"--run={tmp_path / 'run'}"]
    command += ["--step=3", f"--example={expected['example']}", "--rollout=2"]
    environments = {devices: os.environ | {"JAX_NUM_CPU_DEVICES": devices} for devices in ("4", "3")}
    ends = {
        devices: subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        for devices, environment in environments.items()
    }
    assert ends["4"].returncode == 0, ends["4"].stderr
    found = json.loads(ends["4"].stdout[ends["4"].stdout.index("{") :])
    assert [found[name] for name in ("rationale", "answer")] == [expected[name] for name in ("rationale", "answer")]
    assert found["log_w"] == pytest.approx(expected["log_w"], rel=1e-4)
    assert ends["3"].returncode == 2 and ends["3"].stderr.splitlines()[-1] == (
        "error: --run: config.train.prompts=4 is not a multiple of the 3 devices over which prompts are split; show "
        "this command as many devices as the run had, or one (CUDA_VISIBLE_DEVICES=0)"
    )


MEMORY = """
import sys
from pathlib import Path
from tests.support.runs import small
from tsallis_rl import train as module

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

seen, call = [], module.Step.__call__
def watched(self, state, step, *rest):
    seen.append(resident())
    return call(self, state, step, *rest)
module.Step.__call__ = watched
config = small()
config.train.steps, config.evaluate.every, config.train.save_rollouts_every = 500, 100, 50
module.train(config, Path(sys.argv[1]))
print("MiB", seen[150], seen[-1])
"""


@pytest.mark.slow
def test_five_hundred_steps_leave_resident_memory_flat(tmp_path):
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    early, late = map(float, done.stdout.split("MiB ")[1].split())
    print(done.stdout[-60:])
    assert late < early * 1.05
