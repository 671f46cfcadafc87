"""Fingerprints of a run's inputs, as its folder keeps them in inputs.json: data, tokeniser, model, settings of jax.

    splits        the ids of prompts and gold answers, and the texts by which they are graded (`encoding.fingerprint`)
    tokenizer     the text of every id (`tokenizers.vocabulary_fingerprint`)
    architecture  shape and arithmetic of the model, without fields at their defaults (`architecture_fingerprint`)
    weights       of a pretrained folder, and of the adapters to start from: each file's size, first bytes and 1,024
                  blocks of it at equal distances. Reading gigabytes whole would delay every start; a matrix that was
                  trained or merged differs nearly everywhere, while one changed number may stay unseen. A model of the
                  hub is known by its commit.
    draws         settings of jax that change what is drawn
    code          files of the user's own task, grader and estimators (`code_fingerprints`); another one is only told,
                  since it may compute the same

If a run continued with other inputs, it would train on other data, or its ids would change their meaning. Its
evaluation or export would be that of another model.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from tsallis_rl.runs.cache import reading
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.hub import hub_name, model_folder, weight_files
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.runs.progress import say

FILE = "inputs.json"
BLOCKS, BLOCK = 1024, 4096  # blocks of a weights file that are hashed, and bytes of each
_MEANS = {  # what a different fingerprint means
    "splits": "its {} split is not the data that it began with: other examples, golds or prompts, or in another order; "
    "put config.task's files back",
    "tokenizer": "its tokeniser is not the one that it began with, so that ids mean other text; put its files back",
    "architecture": "the model's config.json, or its adapter's adapter_config.json, is not what it began with; put it "
    "back",
    "weights": "{} is not what it began with; put the model's files back",
    "draws": "jax's setting {} is not what it began with, which changes what is drawn; set it as it was",
}


def other_inputs(found: Mapping[str, Any], folder: Path) -> str:
    """Returns which of the inputs `found` differs from the one a run's folder keeps; "" if none does, or none is kept.

    Raises:
      UserError: the file is not one that a run writes, so nothing can be compared.
    """
    file, remedy = folder / FILE, "remove it, and what is there now is taken"
    if not file.exists():
        return ""
    kept = read_object(file, remedy)
    for kind in found:
        was, now = _named(kept.get(kind)), _named(found[kind])
        # Files of weights may be gone, and another version may know other settings of jax.
        if type(kept.get(kind)) is not type(found[kind]) or (kind == "splits" and was.keys() != now.keys()):
            raise UserError(f"{file} holds {kept.get(kind)!r:.60} as {kind!r}, which no run writes; {remedy}")
        for name in was.keys() & now.keys():
            if was[name] != now[name]:
                return f"({FILE}): {_MEANS[kind].format(name)}"
    return ""


def other_model(found: Mapping[str, Any], folder: Path) -> str:
    """Compares tokeniser, architecture or weights as `other_inputs` does; says so if a run's folder keeps none.

    Raises:
      UserError: as `other_inputs`.
    """
    if not (folder / FILE).exists():
        say(
            f"WARNING: {folder} keeps no {FILE}, as the version that began the run did not write it: whether the model "
            "is still the run's cannot be told"
        )
    return other_inputs(found, folder)


def other_code(found: Mapping[str, str], folder: Path) -> str:
    """Returns which of the user's modules differs from what a run's folder keeps of it; "" if none does.

    Raises:
      UserError: the file cannot be read.
    """
    kept = _named(read_object(folder / FILE).get("code") if (folder / FILE).exists() else None)
    for module in kept.keys() & found.keys():
        if kept[module] != found[module]:
            return f"the file of {module} is not what the run began with ({FILE})"
    return ""


def _named(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {} if value is None else {"": value}


def weights_fingerprints(*models: str) -> Iterator[tuple[str, str]]:
    """Yields name and fingerprint of each weights file of models or adapters; for one of the hub, its commit."""
    for named in filter(None, models):
        folder = model_folder(named)
        if (hub := hub_name(named)) is not None:
            yield hub.repository, folder.name
        elif folder.is_dir():
            names = weight_files(folder) or sorted(file.name for file in folder.glob("*.safetensors"))
            for file in (folder / name for name in names):
                if file.is_file():  # not needed by a run that continues: its checkpoints hold all parameters
                    yield file.name, file_fingerprint(file)


def file_fingerprint(file: Path) -> str:
    """Hashes a file's size and BLOCKS blocks, from its first bytes to its last; a file no larger than these, whole.

    Raises:
      UserError: it cannot be read.
    """
    with reading(file), file.open("rb") as data:
        size = file.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        if size <= BLOCKS * BLOCK:
            digest.update(data.read())
        else:
            for i in range(BLOCKS):
                data.seek(i * (size - BLOCK) // (BLOCKS - 1))
                digest.update(data.read(BLOCK))
    return digest.hexdigest()[:16]


def other_shape(held: dict, wanted: dict, *, partial: bool = False) -> str:
    """Returns the first array whose shape differs between two trees, with both shapes; "" if none does.

    With `partial`, arrays that are not wanted do not count.
    """
    there, here = (
        {name: list(leaf.shape) for name, leaf in flatten_dict(tree, sep="/").items()} for tree in (held, wanted)
    )
    for name in sorted(here if partial else there | here):
        if there.get(name) != here.get(name):
            return f"{name} has shape {there.get(name, 'none')} there and {here.get(name, 'none')} here"
    return ""
