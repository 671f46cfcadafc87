"""Several processes of a run: the local pod trains as one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import test_train
from tests.test_train import ROOT

SMALL = test_train.SMALL | {
    "train.steps": 3,
    "train.micro_batch": 0,
    "train.save_rollouts_every": 2,
    "train.save_rollouts_prompts": 4,
}


def pod(cache: Path, workdir: Path, processes: int, devices: int, *more: str) -> subprocess.CompletedProcess:
    settings = [f"--config.{name}={value}" for name, value in SMALL.items()]
    return subprocess.run(
        [
            *("launch/local_pod.sh", f"--processes={processes}", f"--devices={devices}", f"--logs={cache / 'logs'}"),
            *("--", f"--workdir={workdir}", *settings, *more),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "TSALLIS_RL_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_of_two_devices_train_as_one_does(tmp_path):
    for name, processes, devices in (("one", 1, 1), ("pod", 2, 2)):
        done = pod(tmp_path / name, tmp_path / f"run-{name}", processes, devices)
        assert done.returncode == 0, done.stderr + "".join(f.read_text() for f in tmp_path.glob("*/logs/*.log"))
    assert done.stdout.count("hops train: 10 examples") == 1  # one process speaks
    assert len(list((tmp_path / "pod" / "base").iterdir())) == 1

    one, two = (
        [json.loads(line) for line in (tmp_path / f"run-{name}" / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "pod")
    )
    assert len(one) == len(two) == 8
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        clocks = {name for name in left if "seconds" in name}
        exact = {name: value for name, value in left.items() if name not in clocks}
        assert {name: right[name] for name in exact} == pytest.approx(exact, rel=2e-3, abs=1e-5)
    for file in (tmp_path / "run-one" / "rollouts").iterdir():
        left, right = (
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in (file, tmp_path / "run-pod" / "rollouts" / file.name)
        )
        texts = ("example", "rollout", "prompt", "rationale", "closed", "gold", "answer")
        assert [[row[name] for name in texts] for row in left] == [[row[name] for name in texts] for row in right]


@pytest.mark.slow
def test_a_pod_goes_on_where_it_stopped_and_refuses_another_config_once(tmp_path):
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
