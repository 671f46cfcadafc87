"""Reading a checkpoint of a run that is still training, and removes checkpoints that it does not keep."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.checkpoints import STATE, at, saved
from tsallis_rl.runs.checkpoints import Checkpoints, RemovedError, read_chosen
from tsallis_rl.runs.errors import UserError


def test_a_checkpoint_that_goes_before_it_is_read_is_chosen_again_and_that_is_said(tmp_path, capsys):
    """As of a run that trains while it is evaluated, exported or regenerated."""
    saved(tmp_path, 0.1)
    trainer = Checkpoints(tmp_path)

    def choose(reader: Checkpoints) -> int:
        step = reader.latest
        if step == 1:
            trainer.save(2, at(2), (0.9,), {})
            trainer.wait()
        return step

    like = at(0)["params"]
    step, found = read_chosen(tmp_path, choose, lambda reader, step: (step, reader.restore_params(step, like)))
    trainer.close()
    np.testing.assert_array_equal(found["w"], at(2)["params"]["w"])
    told = f"NOTE: checkpoint {tmp_path / '1'} was removed while it was read, by the run that trains there; "
    assert step == 2 and capsys.readouterr().err.count(told) == 1
    sentence = rf"{tmp_path}: the run that trains there removed 10 chosen checkpoints .*keep_checkpoints, or try again"
    with pytest.raises(UserError, match=sentence):
        read_chosen(tmp_path, lambda reader: 1, lambda reader, step: reader.control(step))


def test_files_that_go_after_their_manifest_are_no_damage_and_never_read_as_zeros(tmp_path, capsys, monkeypatch):
    saved(tmp_path, 0.9, 0.1)
    digest = hashlib.file_digest

    def gone(file, name):
        if Path(file.name).is_relative_to(tmp_path / "2"):
            (tmp_path / "2.manifest").unlink(missing_ok=True)
            shutil.rmtree(tmp_path / "2", ignore_errors=True)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", gone)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.sound_steps == [1] and "damaged" not in capsys.readouterr().err
    (tmp_path / "1.manifest").unlink()
    with pytest.raises(RemovedError, match=r"1 was removed while it was read"):
        checkpoints.restore(1, STATE)
    checkpoints.close()
