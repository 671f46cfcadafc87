"""Runs, models and data on an object store: a local server that imitates S3, reached as the real one is."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support.model_folders import load, write_folder
from tests.support.paths import ROOT
from tests.support.runs import SMALL, rollout_texts, small, without_clocks
from tsallis_rl.runs.cache import cache_folder
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.mirror import LOCK, Mirror, run_folder
from tsallis_rl.runs.object_store import fetched
from tsallis_rl.runs.run_directory import RunDirectory
from tsallis_rl.tasks.jsonl import load as load_jsonl
from tsallis_rl.training.loop import train


def amazon(patch: pytest.MonkeyPatch):
    pytest.importorskip("s3fs", reason="needs the extra test: s3fs")
    moto = pytest.importorskip("moto.server", reason="needs the extra test: moto, flask")
    stand_in = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    stand_in.start()
    patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*stand_in.get_host_and_port()))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "stand-in")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return stand_in


def google(patch: pytest.MonkeyPatch):
    pytest.importorskip("gcsfs", reason="needs the extra cloud: gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs the package gcp-storage-emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stand_in = emulator.create_server("127.0.0.1", port, in_memory=True)
    stand_in.start()
    patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    return stand_in


@pytest.fixture(scope="module", params=[amazon, google], ids=["s3", "gs"])
def store(request):
    """The file system of a stand-in; programs that tests start reach it through the same variables."""
    import fsspec

    with pytest.MonkeyPatch.context() as patch:
        stand_in = request.param(patch)
        files = fsspec.filesystem("s3" if request.param is amazon else "gs")
        files.mkdir("bucket")
        yield files
        stand_in.stop()


@pytest.fixture
def bucket(store) -> str:
    return f"{store.protocol[0]}://bucket"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Another cache: another machine, as far as a run can tell."""
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    fetched.cache_clear()


def content(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_model_folder_is_copied_once_and_again_when_it_changes(store, bucket, tmp_path):
    tensors = write_folder(tmp_path / "model", files=2)
    store.put(str(tmp_path / "model"), f"{bucket}/models/qwen", recursive=True)
    copy = fetched(f"{bucket}/models/qwen")
    assert content(copy) == content(tmp_path / "model")
    assert load(copy)[1]["embed"].shape == tensors["model.embed_tokens.weight"].shape
    (copy / "config.json").write_text("left as it is")
    fetched.cache_clear()
    assert fetched(f"{bucket}/models/qwen/") == copy and (copy / "config.json").read_text() == "left as it is"
    store.pipe_file(f"{bucket}/models/qwen/config.json", b"{}")
    fetched.cache_clear()
    assert (fetched(f"{bucket}/models/qwen") / "config.json").read_text() == "{}"


def test_a_run_that_removes_a_checkpoint_while_it_is_copied_is_copied_again(store, bucket, monkeypatch, capsys):
    for step in (1, 2):
        store.pipe_file(f"{bucket}/going/checkpoints/{step}/state", b"state")
    get = store.get_file

    def slow(name, *arguments, **more):
        if name.endswith("1/state"):
            store.rm_file(f"{bucket}/going/checkpoints/1/state")
        return get(name, *arguments, **more)

    monkeypatch.setattr(store, "get_file", slow)
    assert content(fetched(f"{bucket}/going")) == {"checkpoints/2/state": b"state"}
    assert f"NOTE: {bucket}/going changed while it was copied" in capsys.readouterr().err
    assert [path.suffix for path in cache_folder("fetched").iterdir()] == [""]


def test_a_file_of_examples_is_read_from_the_store(store, bucket):
    lines = [{"prompt": f"the cat {i} sat", "answer": "on"} for i in range(40)]
    store.pipe_file(f"{bucket}/data/mine.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    config = small().task
    config.update(path=f"{bucket}/data/mine.jsonl", start="cold", metric="exact", train_examples=0)
    assert fetched(config.path).name == "mine.jsonl"
    assert sum(len(split.examples) for split in load_jsonl(config).splits.values()) > 20


def test_what_is_not_there_and_a_name_that_leaves_the_folder_are_one_sentence(store, bucket, monkeypatch):
    with pytest.raises(UserError, match=rf"{bucket}/nothing: there is nothing there"):
        fetched(f"{bucket}/nothing")
    with pytest.raises(UserError, match=r"no-such-bucket/x(: there is nothing| cannot be reached)"):
        fetched(f"{store.protocol[0]}://no-such-bucket/x")
    # What a store may hold, though not every stand-in takes it.
    monkeypatch.setattr(store, "find", lambda root, **_: {f"{root}/../../outside": {"size": 1, "type": "file"}})
    with pytest.raises(UserError, match=r"a name with \.\. in it is not copied"):
        fetched(f"{bucket}/evil")


def test_a_store_whose_client_is_not_installed_names_the_extra(monkeypatch):
    pytest.importorskip("fsspec.registry")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in ("gs", "gcs"):  # loaded by another test
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, name, raising=False)
    with pytest.raises(UserError, match=r"gs://bucket/x: install tsallis_rl with the extra cloud"):
        fetched("gs://bucket/x")


def write(folder, **files: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def test_a_run_on_a_store_is_what_the_next_machine_finds(store, bucket, tmp_path, monkeypatch):
    import jax.numpy as jnp

    state = {"w": jnp.arange(1000.0)}
    with run_folder(f"{bucket}/runs/a") as (folder, push):
        write(folder, **{"config.json": "{}", "metrics.jsonl": "1"})
        checkpoints = Checkpoints(folder / "checkpoints", push)
        for step, quality in ((1, 0.9), (2, 0.1), (3, 0.2)):
            checkpoints.save(step, state, (quality,), {})
            checkpoints.wait()
            names = store.find(f"{bucket}/runs/a/checkpoints")
            assert {name.split("/")[4].partition(".")[0] for name in names} == {"1", str(step)}  # best and latest
        checkpoints.close()
        write(folder, **{"metrics.jsonl": "12", "half.1.partial": "x"})
        first = content(folder)
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "elsewhere"))
    with run_folder(f"{bucket}/runs/a/") as (folder, _):
        assert folder.is_relative_to(tmp_path / "elsewhere")
        assert content(folder) == {name: data for name, data in first.items() if not name.endswith(".partial")}
        assert Checkpoints(folder / "checkpoints").latest == 3
    # A checkpoint that was on its way when its machine went is not whole here either.
    store.rm(f"{bucket}/runs/a/checkpoints/3.manifest")
    with run_folder(f"{bucket}/runs/a") as (folder, _):
        assert Checkpoints(folder / "checkpoints").latest == 1


def test_a_manifest_comes_to_the_store_after_its_files_and_goes_before_them(store, bucket, monkeypatch):
    did = []
    for name in ("put_file", "pipe_file", "rm_file"):
        call = getattr(store, name)
        monkeypatch.setattr(store, name, lambda *a, call=call, name=name: (did.append((name, a)), call(*a))[1])
    with run_folder(f"{bucket}/runs/order") as (folder, push):
        for step in (1, 2):
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            (folder / "checkpoints" / str(step)).mkdir(parents=True)
            write(folder / "checkpoints", **{f"{step}.manifest": "m", f"{step}/data": "d"})
            push()
    calls = [(name, str(a[-1]).rpartition("checkpoints/")[2]) for name, a in did if "checkpoints/" in str(a[-1])]
    second = calls.index(("put_file", "2/data"))
    assert calls[second:] == [
        ("put_file", "2/data"), ("put_file", "2.manifest"), ("rm_file", "1.manifest"), ("rm_file", "1/data"),
    ]  # fmt: skip


def test_a_file_that_a_logger_removes_meanwhile_is_left_out(store, bucket, monkeypatch):
    with run_folder(f"{bucket}/runs/gone") as (folder, push):
        (folder / "wandb").mkdir()
        write(folder / "wandb", a="1", b="1", c="1")
        names, mark = Mirror._names, Mirror._mark
        with monkeypatch.context() as patch:
            patch.setattr(Mirror, "_names", lambda self: [*names(self), "wandb/d"])  # gone behind the listing
            push()
            patch.setattr(Mirror, "_mark", lambda self, name: mark(self, name) or (1, 1))  # or before it is read
            write(folder / "wandb", a="22")
            (folder / "wandb" / "b").unlink()
            push()
    assert {name.rpartition("gone/")[2] for name in store.find(f"{bucket}/runs/gone")} == {"wandb/a", "wandb/c"}


def test_a_run_on_a_store_has_one_owner(store, bucket, tmp_path, monkeypatch):
    lock = f"{bucket}/runs/own/owner.lock"
    with run_folder(f"{bucket}/runs/own"):
        assert json.loads(store.cat_file(lock))["pid"] == os.getpid()
        with (
            pytest.raises(UserError, match=rf"belongs to process {os.getpid()} on"),
            run_folder(f"{bucket}/runs/own"),
        ):
            pass
    assert not store.exists(lock)
    store.pipe_file(lock, b'{"host": "elsewhere", "pid": 7, "started": "2026-01-01 00:00:00"}')
    refused = pytest.raises(
        UserError, match=rf"belongs to process 7 on elsewhere.*; if that one has ended, remove {lock}"
    )
    with refused, run_folder(f"{bucket}/runs/own"):
        pass
    store.pipe_file(lock, json.dumps({"host": socket.gethostname(), "pid": 7, "started": "x"}).encode())
    with run_folder(f"{bucket}/runs/own"):  # of this host, whose folder in the cache nobody holds: it has ended
        pass
    refused = pytest.raises(UserError, match=r"several processes need a folder that all of them see; mount the bucket")
    with refused, run_folder(f"{bucket}/runs/own", 2):
        pass


def test_a_store_that_fails_stops_the_run_with_its_name(store, bucket, monkeypatch):
    def fail(*_):
        raise PermissionError("Access Denied")

    with (
        pytest.raises(UserError, match=rf"{bucket}/runs/b cannot be reached \(Access Denied\); check"),
        run_folder(f"{bucket}/runs/b") as (folder, push),
    ):
        monkeypatch.setattr(store, "put_file", fail)
        checkpoints = Checkpoints(folder / "checkpoints", push)
        checkpoints.save(1, {"w": 1.0}, (0.0,), {})
        checkpoints.close()


@pytest.mark.slow
def test_a_run_stopped_on_one_machine_ends_on_another_as_if_it_had_not(store, bucket, tmp_path, monkeypatch):
    six = {"train.steps": 6, "train.save_rollouts_every": 1, "train.save_rollouts_prompts": 4}
    config = small(**{name.replace(".", "__"): value for name, value in six.items()})
    whole = train(config, tmp_path / "whole")
    fields = [f"--config.{name}={value}" for name, value in (SMALL | six).items()]
    command = [sys.executable, "-m", "tsallis_rl.main", f"--workdir={bucket}/runs/c", *fields]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(cache_folder("runs").glob("*/run/rollouts/step_000002.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert f"saved in {bucket}/runs/c" in process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM
    elsewhere = os.environ | {"TSALLIS_RL_CACHE": str(tmp_path / "elsewhere")}
    done = subprocess.run(command, cwd=ROOT, env=elsewhere, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout
    copy = fetched(f"{bucket}/runs/c")
    assert without_clocks(RunDirectory(copy, config).records()) == without_clocks(whole)
    assert rollout_texts(copy) == rollout_texts(tmp_path / "whole")
    assert Checkpoints(copy / "checkpoints").latest == 6
    assert LOCK not in content(copy)
