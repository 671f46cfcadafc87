"""Checkpoint manifests with right digests that no run wrote: copied, edited, or of another kind."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

from tests.support.checkpoints import write_manifest
from tsallis_rl.runs.checkpoints import Checkpoints, newest_control


def saved(folder: Path, *quality: float) -> None:
    """Checkpoints of steps 1, 2, …, of these qualities."""
    checkpoints = Checkpoints(folder)
    for step, value in enumerate(quality, 1):
        checkpoints.save(step, {"w": jnp.arange(4.0)}, (value,), {})
    checkpoints.close()


@pytest.mark.parametrize(
    "changed",
    [
        {"step": 1}, {"step": "2"}, {"quality": "high"}, {"quality": [None]}, {"control": []}, {"control": None},
        {"sha256": []}, {"sha256": {"d": 5}}, {"sha256": {"../1/d": "x"}}, {"sha256": {"/etc/passwd": "x"}}, None,
    ],
)  # fmt: skip
def test_a_manifest_that_no_run_writes_is_not_used_though_its_digest_is_right(tmp_path, capsys, changed):
    saved(tmp_path, 0.9, 0.1)
    manifest = json.loads((tmp_path / "2.manifest").read_bytes().partition(b"\n")[0])
    write_manifest(tmp_path / "2.manifest", [] if changed is None else manifest | changed)
    assert (Checkpoints(tmp_path).latest, newest_control(tmp_path)) == (1, None)
    assert f"WARNING: checkpoint {tmp_path / '2'} was not saved whole" in capsys.readouterr().err


def test_a_copy_under_another_steps_name_is_no_checkpoint_of_that_step(tmp_path):
    saved(tmp_path, 0.9)
    shutil.copytree(tmp_path / "1", tmp_path / "7")
    shutil.copy(tmp_path / "1.manifest", tmp_path / "7.manifest")
    assert Checkpoints(tmp_path).latest == 1
