"""Models by their names on the Hugging Face hub: its real client talks to a server on this machine that imitates it."""

import json
import os
import shutil
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants, file_download

from tests.support.hub_server import serve
from tests.support.model_folders import double, load, read, run_folder, write_folder
from tests.support.paths import ROOT
from tests.support.tokenizer_files import write_model
from tsallis_rl.config.saved import run_config
from tsallis_rl.config.schema import base_config
from tsallis_rl.exports.export import export
from tsallis_rl.models.architecture import load_architecture
from tsallis_rl.runs import hub as hub_module
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.hub import HubName, hub_name, model_folder, record_commit, with_recorded_commit
from tsallis_rl.training.earlier_run import find_origin
from tsallis_rl.training.setup import initial_state, prepare

NOWHERE = "http://127.0.0.1:1"
NEVER = ("pytorch_model.bin", "model.pt", "modeling_own.py", "README.md", "consolidated.safetensors")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's client, as on another machine."""

    def empty(name: str):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / name))
        forget()
        return tmp_path / name

    empty("cache")
    return empty


@pytest.fixture
def hub(monkeypatch, cache):
    with serve() as hub:
        reach(monkeypatch, hub.url)
        yield hub


def reach(monkeypatch, url: str) -> None:
    """Sets the address that $HF_ENDPOINT sets when the client is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # older clients hold it in both
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def forget() -> None:
    """As if the process had begun anew."""
    hub_module._hub_folder.cache_clear()


@pytest.fixture
def published(tmp_path):
    """A model's folder as it may be published, with what must not be fetched."""
    folder = tmp_path / "published"
    write_folder(folder, files=2)
    for name in (*NEVER, "LICENSE", "chat_template.jinja"):
        (folder / name).write_text(name)
    (folder / "original").mkdir()
    (folder / "original" / "config.json").write_text("of another format")
    return folder


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-0.6B", HubName("Qwen/Qwen3-0.6B", "")),
        ("Qwen/Qwen3-0.6B@v1.0", HubName("Qwen/Qwen3-0.6B", "v1.0")),
        ("hf://Qwen/Qwen3-0.6B@refs/pr/4", HubName("Qwen/Qwen3-0.6B", "refs/pr/4")),
        ("hf://Qwen/Qwen3-0.6B", HubName("Qwen/Qwen3-0.6B", "")),
        *((path, None) for path in ("tiny", "qwen3-0.6b", "./a/b", "../b", "/a/b", "~/b", "~me/b", "a/b/c", "a/", "", "gs://a/b")),
    ],
)  # fmt: skip
def test_what_is_a_name_of_the_hub(model, name):
    assert hub_name(model) == name


def test_a_folder_that_is_there_is_no_name_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_name("Qwen/Qwen3-0.6B") is None
    assert model_folder("Qwen/Qwen3-0.6B").is_dir()


@pytest.mark.parametrize("model", ["hf://", "hf://gpt2", "hf://datasets/a/b", "hf://a/b@", "hf://a/b@c@d"])
def test_what_follows_hf_must_be_a_model(model):
    with pytest.raises(UserError, match=r"expected hf://owner/name, or hf://owner/name@revision"):
        hub_name(model)


def test_only_files_that_are_read_are_fetched_and_weights_when_they_are_opened(hub, published, capsys):
    commit = hub.push("owner/model", published)
    folder = model_folder("owner/model")
    small = {"config.json", "model.safetensors.index.json", "LICENSE", "README.md", "chat_template.jinja"}
    assert hub.files_asked() == small
    assert f"model: owner/model at commit {commit}" in capsys.readouterr().out
    _, params = load(folder)
    assert params["embed"].shape == (420, 16)
    assert hub.files_asked() == small | {"part-0.safetensors", "part-1.safetensors"}
    assert {file.name for file in folder.rglob("*")} == hub.files_asked()


def test_weights_without_an_index_are_fetched_once_whether_one_file_or_shards(hub, tmp_path, monkeypatch):
    for name, file in (("one", "model.safetensors"), ("two", "model-00001-of-00001.safetensors")):
        write_folder(tmp_path / name)
        (tmp_path / name / "model.safetensors").rename(tmp_path / name / file)
        (tmp_path / name / "consolidated.safetensors").write_text("of another format")
        hub.push(f"owner/{name}", tmp_path / name)
        folder = model_folder(f"owner/{name}")
        assert load(folder)[1]["embed"].shape == (420, 16)
        assert {path.name for path in folder.iterdir()} == {"config.json", file}
    reach(monkeypatch, NOWHERE)
    for name in ("one", "two"):
        forget()
        assert load(model_folder(f"owner/{name}"))[1]["embed"].shape == (420, 16)


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, tmp_path):
    for branch, width in (("main", 16), ("v2", 32)):
        write_folder(tmp_path / branch, hidden_size=width)
        commit = hub.push("owner/model", tmp_path / branch, branch)
    for model, width in (
        ("owner/model", 16), ("owner/model@v2", 32), (f"owner/model@{commit}", 32), ("hf://owner/model@v2", 32)
    ):  # fmt: skip
        config = base_config()
        config.model.size = model
        assert load_architecture(config.model, 420).width == width


def test_what_is_in_the_cache_needs_no_network(hub, published, monkeypatch):
    commit = hub.push("owner/model", published)
    load(model_folder("owner/model"))
    reach(monkeypatch, NOWHERE)
    for model in ("owner/model", f"owner/model@{commit}"):
        forget()
        assert load(model_folder(model))[1]["embed"].shape == (420, 16)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget()
    assert load(model_folder("owner/model"))[1]["embed"].shape == (420, 16)


def test_weights_that_are_not_in_the_cache_are_told_where_there_is_no_network(hub, published, monkeypatch):
    commit = hub.push("owner/model", published)
    folder = model_folder("owner/model")
    reach(monkeypatch, NOWHERE)
    with pytest.raises(UserError, match=rf"hf download owner/model --revision {commit} --local-dir FOLDER"):
        load(folder)


def test_a_model_of_pickles_alone_is_refused(hub, tmp_path):
    write_folder(tmp_path / "pickled", tensors=False)
    (tmp_path / "pickled" / "pytorch_model.bin").write_text("runs code")
    hub.push("owner/pickled", tmp_path / "pickled")
    with pytest.raises(UserError, match=r"owner/pickled has no model\.safetensors.*pickled files can run code"):
        load(model_folder("owner/pickled"))
    assert hub.files_asked() == {"config.json"}


def test_a_cache_that_was_copied_elsewhere_is_a_folder_like_any_other(hub, published, tmp_path):
    hub.push("owner/model", published)
    folder = model_folder("owner/model")
    asked = len(hub.asked)
    copy = tmp_path / "copy" / folder.relative_to(tmp_path)
    shutil.copytree(folder, copy)
    with pytest.raises(UserError, match=r"part-0\.safetensors cannot be read .*copy the model's folder again"):
        load(copy)
    assert len(hub.asked) == asked


def told(model: str) -> str:
    with pytest.raises(UserError) as error:
        model_folder(model)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_way_to_fail_is_a_sentence_with_what_to_do(hub, published, cache, monkeypatch):
    hub.push("owner/model", published)
    hub.push("owner/gated", published)
    hub.gated.add("owner/gated")
    for model, facts in {
        "owner/nothing": ("owner/nothing is no folder here, and the hub has no such model",
                          "hf download owner/nothing --local-dir FOLDER", "give FOLDER in its place"),
        "owner/model@v9": ("owner/model@v9: the hub's owner/model has no revision v9",
                           "hf download owner/model --revision v9 --local-dir FOLDER"),
        f"owner/model@{'a' * 40}": (f"has no revision {'a' * 40}",),
        "owner/gated": ("accepted its terms", f"{hub.url}/owner/gated", "hf auth login"),
        "own..er/model": ("own..er/model is no folder here, and no name that the hub could have",),
    }.items():  # fmt: skip
        sentence = told(model)
        assert all(fact in sentence for fact in facts), sentence
    cache("other")
    reach(monkeypatch, NOWHERE)
    sentence = told("owner/model@v2")
    assert "owner/model@v2 is no folder here, not whole in" in sentence and "the hub cannot be reached" in sentence
    assert "hf download owner/model --revision v2 --local-dir FOLDER" in sentence
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "hf download owner/model --local-dir FOLDER" in told("owner/model")


def test_a_cache_that_cannot_be_written_is_named(hub, published, tmp_path, monkeypatch):
    hub.push("owner/model", published)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/nowhere")
    assert "/proc/nowhere cannot be written" in told("owner/model")


def test_a_run_that_goes_on_keeps_the_commit_that_it_began_with(hub, tmp_path, cache):
    for name, width in (("old", 16), ("new", 32)):
        write_folder(tmp_path / name, hidden_size=width)
    old = hub.push("owner/model", tmp_path / "old")
    config, run = base_config(), tmp_path / "run"
    config.model.size = "owner/model"
    assert with_recorded_commit(config, run) is config
    record_commit(config, run)
    hub.push("owner/model", tmp_path / "new")
    cache("of another machine")
    assert with_recorded_commit(config, run).model.size == f"owner/model@{old}"
    record_commit(config, run)
    assert json.loads((run / "model.json").read_text()) == {"model": "owner/model", "commit": old}
    (run / "config.json").write_text(config.to_json())
    assert load_architecture(run_config(run, "--run").model, 420).width == 16
    assert load_architecture(config.model, 420).width == 32  # a new run's
    config.model.size = "owner/other"
    assert with_recorded_commit(config, run) is config


def test_a_record_that_is_none_is_told(tmp_path):
    config = base_config()
    config.model.size = "owner/model"
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(
        UserError, match=r"model\.json is not JSON .*; remove the file, and the model's newest revision"
    ):
        with_recorded_commit(config, tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"model": "owner/model", "commit": "../../elsewhere"}))
    assert with_recorded_commit(config, tmp_path) is config


def test_a_run_by_name_is_exported_with_the_files_of_its_commit_wherever_the_hub_is_now(hub, tmp_path, cache):
    folders = {}
    for name in ("old", "new"):
        write_folder(tmp_path / name)
        folders[name] = write_model(tmp_path / name)
    (tmp_path / "new" / "tokenizer.json").write_text("{}")
    commit = hub.push("owner/model", folders["old"])
    run_folder(tmp_path, "hf://owner/model")
    assert json.loads((tmp_path / "run" / "model.json").read_text()) == {"model": "hf://owner/model", "commit": commit}
    hub.push("owner/model", folders["new"])
    cache("of another machine")
    export(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "old" / "tokenizer.json").read_bytes()
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):  # a new run's
        run_folder(tmp_path / "new", "hf://owner/model")


def test_a_run_starts_from_adapters_beside_the_commit_that_they_were_trained_on(hub, tmp_path, cache):
    write_folder(tmp_path / "model", jnp.float32)
    write_model(tmp_path / "model")
    first = read(tmp_path / "model")
    hub.push("owner/model", tmp_path / "model")
    config = run_folder(tmp_path, "owner/model", lora_rank=2, dtype="bfloat16")
    shutil.copytree(tmp_path / "model", tmp_path / "new")
    double(tmp_path / "new")
    hub.push("owner/model", tmp_path / "new")
    cache("of another machine")
    config.model.update(lora_rank=0, dtype="float32")
    config.train.init = f"{tmp_path / 'run'}:1"
    params = initial_state(prepare(config), find_origin(config.train.init, tmp_path / "next")).params
    np.testing.assert_array_equal(params["embed"], first["model.embed_tokens.weight"])


def test_a_command_line_plans_by_name_before_any_weight_is_fetched(tmp_path):
    folder = tmp_path / "published"
    write_folder(folder)
    write_model(folder)
    lines = [{"prompt": f"the cat {i} sat", "answer": "on"} for i in range(12)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [
        sys.executable, "-m", "tsallis_rl.main", "--config=configs/jsonl.py:start=chat,model=owner/model@main",
        "--plan", f"--config.task.path={tmp_path / 'task.jsonl'}",
        "--config.task.max_prompt=64", "--config.task.max_answer=4",
        "--config.rollouts.max_rationale=8",
    ]  # fmt: skip
    with serve() as hub:
        commit = hub.push("owner/model", folder)
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"model: owner/model at commit {commit}, in {tmp_path / 'home'}" in done.stdout
    assert "it/s" not in done.stderr  # bars are for terminals
    assert hub.files_asked() == {"config.json", "tokenizer.json", "tokenizer_config.json"}


TOGETHER = """
from tests.support.model_folders import load
from tsallis_rl.runs.errors import one_sentence
from tsallis_rl.runs.hub import model_folder
from tsallis_rl.runs.processes import join
join()
with one_sentence():
    load(model_folder("owner/model"))
"""


def two_processes(first: dict[str, str], second: dict[str, str]) -> list[tuple[int, str]]:
    """Status and stderr of two processes of one run that load owner/model, each with variables of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    shared |= {"JAX_NUM_CPU_DEVICES": "1", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    command = [sys.executable, "-c", TOGETHER]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env=shared | own | {"JAX_PROCESS_ID": str(i)}, text=True, stderr=subprocess.PIPE
        )
        for i, own in enumerate((first, second))
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [(process.returncode, told) for process, told in zip(processes, errors, strict=True)]


@pytest.mark.processes
def test_two_processes_on_one_machine_take_one_commit_and_fetch_each_file_once(tmp_path, published):
    with serve() as hub:
        hub.push("owner/model", published)
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        done = two_processes(environment, environment)
    assert [status for status, _ in done] == [0, 0], done
    fetched = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    assert len(fetched) == len(set(fetched)) == 7
    assert sum("/revision/main" in line for line in hub.asked) == 1  # by the first process alone


@pytest.mark.processes
def test_what_one_machine_cannot_fetch_is_told_by_all(tmp_path, published):
    with serve() as hub:
        hub.push("owner/model", published)
        one = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "one")}
        other = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "other")}
        done = two_processes(one, other)
    for status, told in done:
        assert status == 2 and "the hub cannot be reached" in told, told
