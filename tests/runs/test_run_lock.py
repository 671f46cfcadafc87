"""The run lock while its holder works: before each write the holder checks that the lock is still its own."""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.support.runs import small
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.mirror import run_folder
from tsallis_rl.runs.run_directory import RunDirectory
from tsallis_rl.runs.run_lock import HELD, LOCK, check_run_lock, hold_run_lock

STATE = {"w": jnp.arange(4.0)}
OTHER = json.dumps({"host": "elsewhere", "pid": 7, "started": "2026-01-01 00:00:00"})
LOST = {
    "removed": (lambda file: file.unlink(), "owner.lock was removed while this process worked in"),
    "another": (lambda file: file.write_text(OTHER), "names process 7 on elsewhere, started 2026-01-01 00:00:00 now"),
    "emptied": (lambda file: file.write_text(""), "owner.lock names an unknown process now"),
    "made again": (lambda file: (file.unlink(), file.write_text(OTHER)), "names process 7 on elsewhere"),
    "unreadable": (lambda file: (file.unlink(), file.mkdir()), "owner.lock cannot be read"),
}
WRITES = {
    "log": lambda run, saves: run.log(1, {"x": 1}),
    "rows": lambda run, saves: run.write_rows("rollouts/step", 1, [{}]),
    "rewind": lambda run, saves: run.rewind(5),
    "claim": lambda run, saves: run.claim(),
    "save": lambda run, saves: saves.save(2, STATE, (0.5,), {}),
    "control": lambda run, saves: saves.update_control(1, {"q": 1}),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != LOCK}


@pytest.mark.parametrize("loss", LOST)
def test_a_holder_that_lost_its_lock_writes_nothing_more(tmp_path, loss):
    lose, told = LOST[loss]
    run, saves = RunDirectory(tmp_path, small()), Checkpoints(tmp_path / "checkpoints")
    with hold_run_lock(tmp_path):
        for write in WRITES.values():
            write(run, saves)
        saves.wait()
        before = contents(tmp_path)
        lose(tmp_path / LOCK)
        for name, write in WRITES.items():
            with pytest.raises(UserError, match=rf"{told}.*nothing more is written here.*the same command") as refused:
                write(run, saves)
            assert str(tmp_path) in str(refused.value), name
        assert contents(tmp_path) == before
    saves.close()


def test_a_lock_that_is_lost_while_a_checkpoint_is_saved_leaves_it_without_a_manifest(tmp_path, monkeypatch):
    saves = Checkpoints(tmp_path / "checkpoints")
    with hold_run_lock(tmp_path):
        wait = saves._writer.wait_until_finished
        monkeypatch.setattr(
            saves._writer, "wait_until_finished", lambda: (wait(), (tmp_path / LOCK).unlink(missing_ok=True))
        )
        saves.save(1, STATE, (0.5,), {})
        with pytest.raises(UserError, match=r"owner.lock was removed"):
            saves.wait()
    assert saves.steps == []


def test_a_link_that_leads_elsewhere_meanwhile_is_no_longer_the_holders_folder(tmp_path):
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "run").symlink_to("mine")
    run = RunDirectory(tmp_path / "run", small())
    with hold_run_lock(tmp_path / "run"):
        run.log(1, {"x": 1})
        Checkpoints(tmp_path / "run" / "checkpoints").save(1, STATE, (0.5,), {})
        (tmp_path / "run").unlink()
        (tmp_path / "run").symlink_to("other")
        with pytest.raises(UserError, match=r"owner.lock was removed while this process worked in .*run: "):
            run.log(2, {"x": 2})
    assert not list((tmp_path / "other").iterdir()) and len((tmp_path / "mine" / LOCK).read_text()) > 0


def test_a_run_that_another_process_made_since_the_folder_was_looked_at_is_not_taken_over(tmp_path):
    late = RunDirectory(tmp_path, small(optimizer__eps=1e-3))
    with hold_run_lock(tmp_path):
        RunDirectory(tmp_path, small()).claim()
        RunDirectory(tmp_path, small()).log(0, {"x": 1})
    with (
        hold_run_lock(tmp_path),
        pytest.raises(UserError, match=r"holds a run with config.optimizer.eps = 1e-08, this"),
    ):
        late.claim()
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["eps"] == 1e-8


def test_who_never_took_the_lock_is_not_asked(tmp_path):
    check_run_lock(tmp_path)
    with hold_run_lock(tmp_path):
        check_run_lock(tmp_path)
        check_run_lock(tmp_path / "another")
    check_run_lock(tmp_path)
    (tmp_path / LOCK).write_text(OTHER)
    check_run_lock(tmp_path)


def test_a_stand_in_for_a_lock_that_another_made_again_is_not_taken_away(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with hold_run_lock(tmp_path):
        (tmp_path / HELD).rename(tmp_path / "away")
        (tmp_path / HELD).touch()
    assert (tmp_path / HELD).exists()


def test_a_run_on_a_store_sends_nothing_once_the_stores_lock_is_lost(tmp_path, monkeypatch):
    class Bucket(LocalFileSystem):
        """A folder under the address of a store."""

        protocol = "s3"

        @classmethod
        def _strip_protocol(cls, path):
            return f"{tmp_path}/{path.removeprefix('s3://')}" if path.startswith("s3://") else path

    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", Bucket)
    (tmp_path / "bucket" / "run").mkdir(parents=True)
    lock = tmp_path / "bucket" / "run" / LOCK
    lost = pytest.raises(UserError, match=r"s3://bucket/run/owner.lock names process 7 on elsewhere")
    with lost, run_folder("s3://bucket/run") as (folder, push):
        (folder / "metrics.jsonl").write_text("{}\n")
        push()
        (folder / "later").write_text("x")
        lock.write_text(OTHER)
        push()
    assert lock.read_text() == OTHER and not (lock.parent / "later").exists()
    lock.unlink()
    with run_folder("s3://bucket/run") as (folder, _):
        assert (folder / "metrics.jsonl").read_text() == "{}\n"
    assert not lock.exists()
