"""Fetches models of the Hugging Face hub, owner/name, into the hub's own cache.

The small files (config.json, tokeniser) are fetched when a model is named, so that an unusable model is refused before
its gigabytes arrive; the safetensors are fetched when they are opened. Pickles and code are never fetched. Processes on
one machine wait for each other by huggingface_hub's locks, so that each machine fetches once; the first process decides
the commit for all.
"""

import errno
import functools
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tsallis_rl.runs.cache import reading, write_whole
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.runs.object_store import fetched
from tsallis_rl.runs.paths import check_no_device, dangling

SCHEME = "hf://"
NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^@\s]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
INDEX = "model.safetensors.index.json"
SMALL = [
    "config.json", "generation_config.json", INDEX, "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_template.json", "adapter_config.json", "LICENSE", "README.md",
]  # fmt: skip
CANNOT_WRITE = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EIO
}  # fmt: skip
RECORD = "model.json"  # in a run's folder: the commit that it began with


class HubName(NamedTuple):
    """A model of the hub: owner/name, and its branch, tag or commit ("" is the main branch)."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


def hub_name(model: str) -> HubName | None:
    """Reads owner/name, owner/name@revision or hf://…; None for any other text, an existing path included.

    Raises:
      UserError: what follows hf:// is not a model's name.
    """
    found = NAME.fullmatch(model.removeprefix(SCHEME))
    if model.startswith(SCHEME):
        if not found:
            raise UserError(f"{model}: expected hf://owner/name, or hf://owner/name@revision, of a model")
    elif not found or Path(model).exists() or dangling(Path(model)):
        return None
    return HubName(found["repository"], found["revision"] or "")


def model_folder(model: str) -> Path:
    """Returns the folder of a model on this machine: fetched from the hub or an object store, or as it is named.

    For a model of the hub, the folder lacks the safetensors until `fetch_weights` adds them. Without a network, a copy
    in the hub's cache is enough. Every process of a run must call this.

    Raises:
      UserError: the hub has no such model or revision, denies access to it, or cannot be reached.
    """
    name = hub_name(model)
    if name is not None:
        return _hub_folder(name)
    folder = fetched(model)
    if not folder.exists() and (link := dangling(folder)):
        raise UserError(f"config.model.size={model}: {link}; name a model's folder that is there")
    if folder.is_dir():
        for file in folder.iterdir():  # all of them: any may be read, or copied by an export
            with reading(file, "copy the model's folder again"):
                check_no_device(file)
    return folder


@functools.cache
def _hub_folder(name: HubName) -> Path:
    """Fetches the small files of a model; all processes use the commit that the first one finds."""
    from tsallis_rl.runs.processes import on_each

    commit = _on_first(lambda: _snapshot(name, SMALL).name)
    folder = on_each(lambda: _snapshot(HubName(name.repository, commit), SMALL))
    print(f"model: {name.repository} at commit {commit}, in {folder}")
    return folder


def _on_first(function: Callable[[], Any]) -> Any:
    """Calls `from_first` in a run of several processes, and `function` itself otherwise, without starting devices."""
    import jax  # here, because callers that read only a task or a tokeniser do not need it

    from tsallis_rl.runs.processes import from_first

    return from_first(function) if jax.distributed.is_initialized() else function()


def fetch_weights(folder: Path) -> None:
    """Adds the safetensors to a model's folder in the hub's cache; leaves any other folder alone.

    Raises:
      UserError: the hub cannot be reached.
    """
    repository = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    name = HubName(repository, folder.name)
    if not COMMIT.fullmatch(folder.name) or folder != _cached(name):
        return
    files = weight_files(folder)
    if not files or not all((folder / file).is_file() for file in files):
        _snapshot(name, files or ["model.safetensors", "model-*.safetensors", "adapter_model.safetensors"])
        if missing := [file for file in files if not (folder / file).is_file()]:
            raise UserError(f"{folder / INDEX} names {missing[0]}, which the hub's {name.repository} lacks")
        if not any(folder.glob("*.safetensors")):
            raise UserError(
                f"the hub's {name.repository} has no model.safetensors, nor shards of it, and pickled files can run "
                "code and are never fetched; choose a model in safetensors"
            )


def weight_files(folder: Path) -> list[str]:
    """Lists the safetensors that a folder's index names, or its model.safetensors; empty if it has neither."""
    single = folder / "model.safetensors"
    weight_map = read_object(folder / INDEX).get("weight_map") if (folder / INDEX).exists() else None
    if isinstance(weight_map, dict):
        return sorted({file for file in weight_map.values() if isinstance(file, str) and file.endswith(".safetensors")})
    return [single.name] if single.is_file() else []


def _snapshot(name: HubName, files: list[str]) -> Path:
    """Fetches the files of a model that match `files`, and returns its folder in the hub's cache."""
    import huggingface_hub
    from huggingface_hub.utils import tqdm

    from tsallis_rl.runs.progress import doing  # here: tqdm reads variables of the environment at import

    class Bar(tqdm):
        """Shows a bar on a terminal only."""

        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **{"disable": None} | options)

    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    sign = "config.json" if files == SMALL else "*.safetensors"
    with _told(name), doing(f"fetching {name.repository}"):
        if COMMIT.fullmatch(name.revision) and not any(_cached(name).glob(sign)):
            # Fails at once, whereas fetching a commit would retry for half a minute.
            huggingface_hub.HfApi().model_info(name.repository, revision=name.revision)
        folder = huggingface_hub.snapshot_download(
            name.repository,
            revision=name.revision or None,
            allow_patterns=files,
            ignore_patterns=["*/*"],
            tqdm_class=Bar,
        )
    return Path(folder)


def _cached(name: HubName) -> Path:
    """Names the folder of a model's commit in the hub's cache."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    return cache / f"models--{name.repository.replace('/', '--')}" / "snapshots" / name.revision


@contextmanager
def _told(name: HubName) -> Iterator[None]:
    """Turns an exception of huggingface_hub into a UserError that says what to do."""
    from huggingface_hub import constants, errors

    revision = f" --revision {name.revision}" if name.revision else ""
    fetch = f"`hf download {name.repository}{revision} --local-dir FOLDER`"
    elsewhere = f"fetch it where that is possible by {fetch}, copy FOLDER here and give FOLDER in its place"
    no_folder = f"{name} is no folder here"
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"the hub gives {name.repository} only to those who accepted its terms: accept them on "
            f"{constants.ENDPOINT}/{name.repository}, run `hf auth login`, then the same command again; or {elsewhere}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{no_folder}, and the hub has no such model, or a private one; correct the name, run `hf auth login` if "
            f"it is private, or {elsewhere}"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{name}: the hub's {name.repository} has no revision {name.revision}; name a branch, a "
            f"tag or a whole commit that it has, as {fetch} would need too"
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"{no_folder}, and no name that the hub could have ({_reason(error)})") from None
    except Exception as error:  # each network client has its own
        if getattr(error, "errno", None) in CANNOT_WRITE:
            raise UserError(
                f"{constants.HF_HUB_CACHE} cannot be written ({getattr(error, 'strerror', error)}); make room there, "
                "or name another folder by the variable HF_HOME: the same command then continues"
            ) from error
        raise UserError(
            f"{no_folder}, not whole in {constants.HF_HUB_CACHE}, and the hub cannot be reached ({_reason(error)}); "
            f"{elsewhere}"
        ) from error


def _reason(error: BaseException) -> str:
    """Shortens the innermost cause of an error to one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def with_recorded_commit(config: ConfigDict, run: Path) -> ConfigDict:
    """Returns a run's config with the model's commit that the run began with, if its folder records one.

    A continued run, and whatever reads its checkpoints, then has the config.json and the tokeniser that it began with,
    even if the hub's main branch has moved.
    """
    name = hub_name(config.model.size)
    if name is None or not (commit := _on_first(lambda: _recorded_commit(config.model.size, run))):
        return config
    config = config.copy_and_resolve_references()
    config.model.size = str(HubName(name.repository, commit))
    return config


def _recorded_commit(model: str, run: Path) -> str:
    """Reads which commit of a model a run's folder records, or ""."""
    if not (run / RECORD).exists():
        return ""
    record = read_object(run / RECORD, "remove the file, and the model's newest revision is taken")
    commit = str(record.get("commit"))
    return commit if record.get("model") == model and COMMIT.fullmatch(commit) else ""


def record_commit(config: ConfigDict, run: Path) -> None:
    """Writes into a run's folder which commit of the hub's model it uses; keeps an existing record."""
    if hub_name(config.model.size) and not (run / RECORD).exists():
        record = {"model": config.model.size, "commit": model_folder(config.model.size).name}
        write_whole(run / RECORD, (json.dumps(record, indent=2) + "\n").encode())
