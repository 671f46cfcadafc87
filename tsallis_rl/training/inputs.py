"""Fingerprints of a run's inputs, compared when it continues: data, tokeniser, model, settings of jax.

A run's folder keeps a fingerprint of each in inputs.json:

    splits        the ids of prompts and gold answers, and the texts by which they are graded (`encoding.fingerprint`)
    tokenizer     the text of every id
    architecture  shape and arithmetic of the model, without fields at their defaults
    weights       of a pretrained folder, and of the adapters to start from: each file's size, first bytes and 1,024
                  blocks of it at equal distances. Reading gigabytes whole would delay every start; a matrix that was
                  trained or merged differs nearly everywhere, while one changed number may stay unseen. A model of the
                  hub is known by its commit.
    draws         settings of jax that change what is drawn

If a run continued with other inputs, it would train on other data, or its ids would change their meaning.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.models import Architecture
from tsallis_rl.runs.cache import fingerprint as short_hash
from tsallis_rl.runs.cache import reading, write_whole
from tsallis_rl.runs.devices import draw_settings
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.hub import hub_name, model_folder, weight_files
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.tasks.encoding import fingerprint
from tsallis_rl.tasks.tokenizers import Tokenizer
from tsallis_rl.training.setup import Setup

FILE = "inputs.json"
BLOCKS, BLOCK = 1024, 4096  # blocks of a weights file that are hashed, and bytes of each
_DECODED = 64  # ids a call
_MEANS = {  # what a different fingerprint means
    "splits": "its {} split is not the data that it began with: other examples, golds or prompts, or in another order; "
    "put config.task's files back",
    "tokenizer": "its tokeniser is not the one that it began with, so that ids mean other text; put its files back",
    "architecture": "the model's config.json is not what it began with; put it back",
    "weights": "{} is not what it began with; put the model's files back",
    "draws": "jax's setting {} is not what it began with, which changes what is drawn; set it as it was",
}


def keep_inputs(setup: Setup, folder: Path, *, continues: bool) -> None:
    """Writes the fingerprints to a run's folder; if the run continues, compares them with those kept there.

    Only the first process calls this.

    Raises:
      UserError: it continues with other inputs.
    """
    file, found = folder / FILE, inputs(setup)
    if continues and file.exists():
        if other := other_inputs(found, folder):
            raise UserError(f"{other}, or start in another --workdir")
        return
    if continues:
        print(
            f"WARNING: {folder} keeps no {FILE}, as the version that began the run did not write it: data, tokeniser "
            "and model cannot be compared with those that it began with; the current ones are kept from here on",
            file=sys.stderr,
        )
    write_whole(file, (json.dumps(found, indent=2) + "\n").encode())


def other_inputs(found: Mapping[str, Any], folder: Path) -> str:
    """Returns which of the inputs `found` differs from the one a run's folder keeps; "" if none does, or none is kept.

    Raises:
      UserError: the file is not one that a run writes, so nothing can be compared.
    """
    file, remedy = folder / FILE, "remove it, and what is there now is taken"
    if not file.exists():
        return ""
    kept = read_object(file, remedy)
    for kind, means in _MEANS.items():
        was, now = _named(kept.get(kind)), _named(found.get(kind))
        # Files of weights may be gone, and another version may know other settings of jax.
        if type(kept.get(kind)) is not type(found[kind]) or (kind == "splits" and was.keys() != now.keys()):
            raise UserError(f"{file} holds {kept.get(kind)!r:.60} as {kind!r}, which no run writes; {remedy}")
        for name in was.keys() & now.keys():
            if was[name] != now[name]:
                return f"{folder}: the run cannot continue here ({FILE}): {means.format(name)}"
    return ""


def _named(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {} if value is None else {"": value}


def inputs(setup: Setup) -> dict[str, Any]:
    """Computes the fingerprints of what a run is made from.

    Raises:
      UserError: a file of weights cannot be read.
    """
    return {
        "splits": {name: fingerprint(split) for name, split in sorted(setup.splits.items())},
        "tokenizer": vocabulary_fingerprint(setup.tokenizer),
        "architecture": architecture_fingerprint(setup.arch),
        "weights": dict(_weights(setup.config)),
        "draws": draw_settings(),
    }


def vocabulary_fingerprint(tokenizer: Tokenizer) -> str:
    """Hashes the text of every id, several at a time."""
    digest = hashlib.sha256(str(tokenizer.vocab_size).encode())
    for first in range(0, tokenizer.vocab_size, _DECODED):
        ids = list(range(first, min(first + _DECODED, tokenizer.vocab_size)))
        digest.update(tokenizer.decode(ids, special=True).encode(errors="replace") + b"\0")
    return digest.hexdigest()[:16]


def architecture_fingerprint(arch: Architecture) -> str:
    """Hashes the fields that decide the model's numbers.

    Fields at their default are left out, as a later version may have more; so are fields that change only speed.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(arch)}
    values = {name: value for name, value in dataclasses.asdict(arch).items() if value != defaults[name]}
    return short_hash({name: value for name, value in values.items() if name not in ("remat", "attention")})


def _weights(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yields name and fingerprint of each weights file that the run starts from; for a model of the hub, its commit."""
    for named in filter(None, (config.model.size, config.model.adapter)):
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
