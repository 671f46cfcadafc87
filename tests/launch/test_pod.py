"""Several processes of a run: the local pod trains as one process does."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.paths import ROOT
from tests.support.runs import ROUNDING, rollout_texts
from tsallis_rl.runs.run_lock import hold_run_lock

pytestmark = pytest.mark.processes

SMALL = runs.SMALL | {
    "train.steps": 6,
    "train.micro_batch": 0,
    "train.save_rollouts_every": 1,
    "train.save_rollouts_prompts": 4,
}
SHAPES = {"one": (1, 1), "pod": (2, 2)}  # processes, and devices of each


def start(cache: Path, workdir: Path, processes: int, devices: int, *more: str) -> subprocess.Popen:
    settings = [f"--config.{name}={value}" for name, value in SMALL.items()]
    return subprocess.Popen(
        [
            *("launch/local_pod.sh", f"--processes={processes}", f"--devices={devices}", f"--logs={cache / 'logs'}"),
            *("--", f"--workdir={workdir}", *settings, *more),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "TSALLIS_RL_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pod(*arguments) -> subprocess.CompletedProcess:
    process = start(*arguments)
    try:
        out, err = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.terminate()  # it stops its workers
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("first", ["one", pytest.param("pod", marks=pytest.mark.slow)])
def test_a_run_stopped_continues_in_one_process_and_in_two_of_two_devices_with_the_same_data_and_keys(tmp_path, first):
    begun = start(tmp_path / "cache", tmp_path / "run-one", *SHAPES[first])
    metrics = tmp_path / "run-one" / "metrics.jsonl"
    while begun.poll() is None and not (metrics.exists() and '"step": 1, "train/' in metrics.read_text()):
        time.sleep(0.01)
    begun.terminate()
    assert begun.communicate()[1].count("stopped by SIGTERM") == 1
    assert begun.returncode == 128 + signal.SIGTERM
    shutil.copytree(tmp_path / "run-one", tmp_path / "run-pod")
    for name, shape in SHAPES.items():
        done = pod(tmp_path / name, tmp_path / f"run-{name}", *shape)
        assert done.returncode == 0, done.stderr + "".join(f.read_text() for f in tmp_path.glob("*/logs/*.log"))
        assert "continuing" in done.stdout
    assert done.stdout.count("train:       10 examples of hops") == 1  # one process speaks
    assert len(list((tmp_path / "cache" / "base").iterdir())) == 1
    assert not (tmp_path / "pod" / "base").exists()  # a run that continues needs no base model

    one, two = (
        [json.loads(line) for line in (tmp_path / f"run-{name}" / "metrics.jsonl").read_text().splitlines()]
        for name in SHAPES
    )
    assert [record["step"] for record in one if "train/loss" in record] == list(range(6))
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        clocks = {name for name in left if "second" in name}
        exact = {name: value for name, value in left.items() if name not in clocks}
        assert {name: right[name] for name in exact} == pytest.approx(exact, **ROUNDING)
    assert rollout_texts(tmp_path / "run-one") == rollout_texts(tmp_path / "run-pod")


def test_the_first_process_grades_for_all(tmp_path):
    flags = ["--config=configs/hops.py:estimator=grpo", "--config.base.steps=0", "--config.guards.on_collapse=best"]
    flags += [f"--config.task.{name}=tests.support.own_reward.of_another_opinion" for name in ("metric", "reward")]
    done = pod(tmp_path, tmp_path / "run", 2, 1, *flags, "--config.rollouts.answer_needs_end=False")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rewards = [record["train/reward"] for record in records if "train/reward" in record]
    assert len(rewards) == SMALL["train.steps"]
    assert min(rewards) > 0.7  # a rollout without an answer earns nothing
    assert not any("guard/collapse" in record for record in records)


def each(cache: Path, commands: list[list[str]], folders=None, limit=60) -> list[subprocess.CompletedProcess]:
    """Runs a process for each command; all must end in time, whatever becomes of the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    common |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(len(commands))}
    common |= {"TSALLIS_RL_CACHE": str(cache)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(command, cwd=folder, env=os.environ | common | {"JAX_PROCESS_ID": str(i)}, **pipes)
        for i, (command, folder) in enumerate(zip(commands, folders or [ROOT] * len(commands), strict=True))
    ]
    ended = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=limit)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return ended


def statuses(ended: list[subprocess.CompletedProcess]) -> list[int]:
    return [process.returncode for process in ended]


def errors(ended: list[subprocess.CompletedProcess]) -> list[list[str]]:
    """The errors that each process told."""
    return [[line for line in process.stderr.splitlines() if line.startswith("error: ")] for process in ended]


def command(workdir: Path, *more: str) -> list[str]:
    settings = [f"--config.{name}={value}" for name, value in (SMALL | {"base.steps": 0}).items()]
    main = [sys.executable, "-m", "tsallis_rl.main", "--distributed", f"--workdir={workdir}"]
    return [*main, *settings, *more]


def test_processes_with_other_settings_are_refused(tmp_path):
    run = tmp_path / "run"
    first, second = each(tmp_path, [command(run), command(run, "--config.optimizer.learning_rate=0.5")])
    assert (first.returncode, second.returncode) == (2, 2)
    assert "error: config.optimizer.learning_rate is 0.5 in process 1 and 0.001 in process 0; start" in first.stderr
    assert not run.exists()


@pytest.mark.parametrize("second", ["waits", pytest.param("fails", marks=pytest.mark.slow)])
def test_processes_that_fail_end_the_others_with_their_message(tmp_path, second):
    """The last of three fails alone, or with the second; the first waits for it."""
    name = {"waits": "lacks_in_last", "fails": "lacks_in_later"}[second]
    more = (
        "--config.train.prompts=3",
        "--config.evaluate.prompts=3",
        f"--config.task.metric=tests.support.own_reward.{name}",
    )
    ended = each(tmp_path, [command(tmp_path / "run", *more)] * 3)
    message = f"config.task.metric='tests.support.own_reward.{name}': tests.support.own_reward has no function"
    told = errors(ended)
    assert statuses(ended) == [2, 2, 2]
    assert [len(lines) for lines in told] == [1, 1, 1]
    assert re.match(rf"error: process [12] of the run failed: {re.escape(message)}", told[0][0])
    assert message in told[1][0] and message in told[2][0]


def test_a_closed_pipe_after_the_first_ends_the_others(tmp_path):
    reads_a_line = 'exec > >(head -n 1 >/dev/null); exec "$@"'
    commands = [["bash", "-c", reads_a_line, "", *command(tmp_path / "run")], command(tmp_path / "run")]
    ended = each(tmp_path, commands)
    assert statuses(ended) == [141, 141]
    assert errors(ended) == [[], ["error: process 0 of the run failed: its standard output was closed"]]


def test_a_folder_in_use_has_the_same_status_as_in_one_process(tmp_path):
    with hold_run_lock(tmp_path / "run"):
        ended = each(tmp_path, [command(tmp_path / "run")] * 2)
    assert statuses(ended) == [75, 75]
    assert "stop that one first" in ended[0].stderr


@pytest.mark.slow
def test_processes_that_see_different_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    ended = each(tmp_path, [command(Path("run"))] * 2, folders, limit=120)
    assert statuses(ended) == [2, 2]
    assert "--workdir=run: process 1 does not see there what process 0 has written" in ended[0].stderr


@pytest.mark.slow
@pytest.mark.parametrize("full", [0, 1])
def test_a_disk_that_is_full_for_one_process_ends_both(tmp_path, full):
    commands = [command(tmp_path / "run")] * 2
    commands[full] = ["bash", "-c", 'ulimit -f 20; exec "$@"', "", *commands[full]]
    ended = each(tmp_path, commands)
    assert statuses(ended) == [2, 2]
    assert "error: a checkpoint could not be saved" in ended[full].stderr
    assert f"error: process {full} of the run failed: a checkpoint could not be saved" in ended[1 - full].stderr


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_killed_before_the_first_step_ends_the_other(tmp_path, signum):
    slow = [*command(tmp_path / "run"), "--config.base.steps=3000"]
    dies = [sys.executable, "-m", "tests.support.dying_program", str(int(signum)), "base model", *slow[3:]]
    ended = each(tmp_path, [slow, dies])
    assert statuses(ended) == [1, -signum]
    assert "error: another process of the run has ended" in errors(ended)[0][0]


@pytest.mark.slow
def test_a_process_that_is_killed_while_a_checkpoint_is_saved_ends_the_other(tmp_path):
    whole = command(tmp_path / "run")
    dies = [sys.executable, "-m", "tests.support.dying_program", str(int(signal.SIGKILL)), "save", *whole[3:]]
    ended = each(tmp_path, [whole, dies])
    assert statuses(ended) == [1, -signal.SIGKILL]
    assert "error: another process of the run has ended" in errors(ended)[0][0]


@pytest.mark.slow
def test_a_pod_replaces_the_groups_that_one_process_replaces(tmp_path):
    flags = ["--config=configs/hops.py:estimator=grpo,start=warm", "--config.train.refill=2", "--config.train.steps=2"]
    flags += ["--config.task.train_examples=30", "--config.task.reward=tests.support.own_reward.rare"]
    flags += ["--config.rollouts.answer_needs_end=False"]
    steps, positions = {}, {}
    for name, shape in SHAPES.items():
        done = pod(tmp_path / "cache", tmp_path / name, *shape, *flags)
        assert done.returncode == 0, done.stderr + "".join(f.read_text() for f in tmp_path.glob("cache/logs/*.log"))
        records = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        steps[name] = [
            {figure: x for figure, x in record.items() if "second" not in figure}
            for record in records
            if "train/refill_replaced" in record
        ]
        rows = (tmp_path / name / "rollouts" / "step_000001.jsonl").read_text().splitlines()
        positions[name] = [json.loads(row)["position"] for row in rows[::4]]
    assert max(positions["one"]) >= 4  # of a further batch
    assert positions["pod"] == positions["one"]
    assert steps["pod"] == [pytest.approx(record, **ROUNDING) for record in steps["one"]]
    assert rollout_texts(tmp_path / "one") == rollout_texts(tmp_path / "pod")


@pytest.mark.slow
def test_a_pod_continues_where_it_stopped_and_refuses_another_config_once(tmp_path):
    assert pod(tmp_path, tmp_path / "run", 2, 1).returncode == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = pod(tmp_path, tmp_path / "run", 2, 1)
    assert again.returncode == 0, again.stderr
    assert "continuing" in again.stdout
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    other = pod(tmp_path, tmp_path / "run", 2, 1, "--config.seed=1")
    assert other.returncode == 2
    assert other.stderr.count("error: ") == 1
    assert "holds a run with config.seed = 0, this one has 1" in other.stderr
