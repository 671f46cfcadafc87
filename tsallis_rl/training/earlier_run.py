"""Starts from the parameters of another run: config.train.init = RUN[:step].

The step that RUN:best or RUN:latest means is looked up once, when a run begins, and kept in its init.json; a run that
continues, or begins again in the same folder, starts from that very checkpoint or not at all.
"""

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsallis_rl.config.schema import base_config
from tsallis_rl.models import Architecture, lora, parameter_shapes
from tsallis_rl.models.adapters import Adapter, adapter_settings
from tsallis_rl.models.architecture import architecture_fingerprint
from tsallis_rl.models.pretrained import merge_with_pretrained
from tsallis_rl.models.sharding import with_shardings
from tsallis_rl.runs.cache import write_whole
from tsallis_rl.runs.checkpoints import Checkpoints, RemovedError
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.fingerprints import FILE as INPUTS
from tsallis_rl.runs.fingerprints import other_inputs, other_model, other_shape, weights_fingerprints
from tsallis_rl.runs.hub import model_folder, with_recorded_commit
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.runs.object_store import fetched
from tsallis_rl.runs.paths import dangling, plain_number
from tsallis_rl.runs.processes import from_first
from tsallis_rl.runs.progress import say
from tsallis_rl.runs.run_directory import read_settings
from tsallis_rl.tasks.tokenizers import Tokenizer, vocabulary_fingerprint
from tsallis_rl.training.optimizer import held_shapes

FILE = "init.json"
WORDS = ("best", "latest")
NO_CHECKPOINT = "has no sound checkpoint; let that run reach one"


class Origin(NamedTuple):
    """The checkpoint that a run starts from.

    Attributes:
      run: the other run's folder, as config.train.init names it.
      step: of the checkpoint.
      sha256: of its manifest, which holds the checksums of its files.
    """

    run: str
    step: int
    sha256: str


def find_origin(init: str, workdir: Path) -> Origin | None:
    """Finds the checkpoint that config.train.init names: as kept in `workdir`, else by look-up; None if init is "".

    Every process must call this.

    Raises:
      UserError: there is no such run or checkpoint.
    """
    if not init:
        return None
    run, word = _parse(init)
    kept = from_first(lambda: _kept(workdir))
    if kept and kept["run"] == run and word in (*WORDS, str(kept["step"])):
        return Origin(**kept)
    folder = fetched(run)
    from_first(lambda: _check_folder(init, folder, workdir))
    with closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        steps = from_first(lambda: checkpoints.sound_steps)
        step = {"best": checkpoints.best, "latest": checkpoints.latest}[word] if word in WORDS else int(word)
        if step not in steps:
            there = f"has sound checkpoints of {', '.join(map(str, steps))}, not of {step}; choose one of these"
            raise UserError(f"config.train.init={init!r}: {folder} {there if steps else NO_CHECKPOINT}")
        return Origin(run, step, from_first(lambda: checkpoints.digest(step)))


def keep_origin(origin: Origin | None, workdir: Path) -> None:
    """Writes the origin of the run in `workdir` to its init.json. Every process must call this."""
    if origin:
        text = json.dumps(origin._asdict(), indent=2) + "\n"
        from_first(lambda: write_whole(workdir / FILE, text.encode()))


def _kept(workdir: Path) -> dict[str, Any] | None:
    """Reads init.json of a run's folder; None if there is none."""
    file, remedy = workdir / FILE, "remove it, and the checkpoint is looked up again"
    if not file.exists():
        return None
    kept = read_object(file, remedy)
    if {name: type(value) for name, value in kept.items()} != Origin.__annotations__:
        raise UserError(f"{file} does not name a run, a step and a checksum; {remedy}")
    return kept


def _check_folder(init: str, folder: Path, workdir: Path) -> None:
    """Refuses a folder that is not a run's, or that is this run's own."""
    if folder.resolve() == workdir.resolve():
        raise UserError(f"config.train.init={init!r} is this run's own folder; choose another --workdir")
    if not (folder / "config.json").is_file():
        found = dangling(folder) or f"{folder} is not the folder of a run"
        raise UserError(f"config.train.init={init!r}: {found}; write RUN, RUN:best, RUN:latest or RUN:STEP")


def _parse(init: str) -> tuple[str, str]:
    """Splits RUN[:step] into the folder and the step, or the word for it."""
    run, colon, step = init.rpartition(":")  # s3://… has one too
    return (run, step) if colon and (plain_number(step) is not None or step in WORDS) else (init, "best")


def earlier_parameters(
    origin: Origin, config: ConfigDict, tokenizer: Tokenizer, arch: Architecture, mesh: Mesh
) -> dict:
    """Reads the parameters of `origin` for this run's model and mesh; merges adapters if this run has none.

    Every process must call this.

    Raises:
      RemovedError: the checkpoint is gone or is another one now.
      UserError: its model or tokeniser is not this run's.
    """
    folder = fetched(origin.run)
    who = f"config.train.init: {folder}"
    settings = base_config()  # fields that an older run lacks are at their defaults
    settings.update(from_first(lambda: _settings(folder, origin)))
    model = with_recorded_commit(settings, folder).model
    theirs = dataclasses.replace(arch, **adapter_settings(model)._asdict())
    if arch.lora_rank:
        _check_adapters(who, theirs, arch)
        _check_base(who, model.size, config.model.size)
    from_first(lambda: _check_tokenizer(who, folder, tokenizer))
    # Merging needs the frozen parameters in float32; a checkpoint has them in the dtype of the computation.
    merges = bool(theirs.lora_rank and not arch.lora_rank and model.dtype != "float32")
    base = _base(who, folder, model, config.model.size) if merges else None
    shapes = held_shapes(arch) if arch.lora_rank else parameter_shapes(theirs)
    with closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        from_first(lambda: _check_same(checkpoints, folder, origin))
        if other := other_shape(checkpoints.param_shapes(origin.step), shapes):
            sizes = f"there config.model.size={model.size!r}, here {config.model.size!r}"
            raise UserError(f"{who} holds another model: {other}; {sizes}")
        begun = dataclasses.replace(theirs, dtype=model.dtype)
        weights = model.size if arch.lora_rank or merges else ""
        from_first(lambda: _check_model(who, folder, begun, weights))
        wanted = lora.trained(shapes) if base else shapes
        params = checkpoints.restore_params(origin.step, with_shardings(wanted, mesh))
    print(f"starting from the parameters of {origin.run} at step {origin.step}")
    if base:
        return merge_with_pretrained(params, base, theirs, mesh)
    return params if arch.lora_rank else lora.merge(params, theirs)


def _settings(folder: Path, origin: Origin) -> dict[str, Any]:
    """Reads the settings of the run that this one begins from."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"config.train.init: this run began from step {origin.step} of {folder}, which is no folder of a run any "
            "more; put it back, or start in another --workdir"
        )
    return read_settings(folder)


def _check_adapters(who: str, theirs: Architecture, ours: Architecture) -> None:
    """Refuses a run that trained no adapters, or adapters with other settings than this run's."""
    if not theirs.lora_rank:
        raise UserError(
            f"{who} trained all parameters, and this run adapters (config.model.lora_rank={ours.lora_rank}); export "
            "that run, and name the exported folder as config.model.size"
        )
    for field in Adapter._fields:
        there, here = getattr(theirs, field), getattr(ours, field)
        if there != here:
            raise UserError(f"{who} has config.model.{field}={there}, this run {here}; give this run the same")


def _check_base(who: str, there: str, here: str) -> None:
    """Refuses adapters of another model: an export would put them beside this run's model."""
    if model_folder(there).resolve() != model_folder(here).resolve():
        raise UserError(
            f"{who} trained adapters beside config.model.size={there!r}, this run has {here!r}; give this run the same"
        )


def _base(who: str, folder: Path, theirs: ConfigDict, ours: str) -> Path | None:
    """Finds the folder of the weights beside which a run's adapters were trained; None if they are not here.

    It is the folder that the run names, or the one that this run names, if its weights are the same. Every process must
    call this.
    """
    named, other = model_folder(theirs.size), model_folder(ours)
    if from_first(named.is_dir):
        return named

    def is_same() -> bool:
        found = dict(weights_fingerprints(ours))
        return bool(found) and (folder / INPUTS).exists() and not other_inputs({"weights": found}, folder)

    if from_first(is_same):
        return other
    say(
        f"WARNING: {who}: its config.model.size={theirs.size!r} is no folder here, so that its frozen parameters are "
        f"taken from the checkpoint, where they were rounded to {theirs.dtype}"
    )
    return None


def _check_tokenizer(who: str, folder: Path, tokenizer: Tokenizer) -> None:
    """Refuses a run whose token ids mean other text, as with a tokeniser trained on another task."""
    if other_inputs({"tokenizer": vocabulary_fingerprint(tokenizer)}, folder):
        raise UserError(
            f"{who} has another tokeniser: its token ids mean other text here; start from a run of the same model, "
            "task and start, or from a pretrained model"
        )


def _check_model(who: str, folder: Path, theirs: Architecture, model: str) -> None:
    """Refuses a run whose arithmetic, or weights of the named `model`, are not those that this run starts from."""
    found = {"architecture": architecture_fingerprint(theirs), "weights": dict(weights_fingerprints(model))}
    if other := other_model(found, folder):
        raise UserError(f"{who} holds another model than this run starts from {other}")


def _check_same(checkpoints: Checkpoints, folder: Path, origin: Origin) -> None:
    """Refuses a checkpoint that is gone, damaged, or not the one that was there."""
    steps = checkpoints.sound_steps
    if origin.step not in steps or checkpoints.digest(origin.step) != origin.sha256:
        now = "is another one now" if origin.step in steps else "is not there any more, or damaged"
        raise RemovedError(
            f"config.train.init: this run began from step {origin.step} of {folder}, which {now}; choose another "
            f"--workdir, and one of {', '.join(map(str, steps)) or 'another run'}"
        )
