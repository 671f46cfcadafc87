"""Writes the model of a run as a Hugging Face folder, or its adapters as a peft folder."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict
from safetensors import SafetensorError

from tsallis_rl.config.saved import run_config
from tsallis_rl.exports.model_card import Card, model_card
from tsallis_rl.exports.rounding import Kept, kept_of_factors, kept_of_parameters
from tsallis_rl.models import Architecture, lora, parameter_shapes
from tsallis_rl.models.adapters import adapter_settings, save_adapter
from tsallis_rl.models.architecture import architecture_fingerprint, with_settings
from tsallis_rl.models.families import pretrained_architecture, read_config
from tsallis_rl.models.pretrained import merge_with_pretrained, save_pretrained
from tsallis_rl.models.sharding import make_mesh, with_shardings
from tsallis_rl.runs.cache import writing
from tsallis_rl.runs.checkpoints import Checkpoints, read_chosen
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.fingerprints import other_model, weights_fingerprints
from tsallis_rl.runs.hub import hub_name, model_folder
from tsallis_rl.tasks.pretrained_tokenizers import pretrained_tokenizer
from tsallis_rl.tasks.tokenizers import vocabulary_fingerprint

BESIDE = (  # files of a model's folder that training does not change
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json", "LICENSE",
)  # fmt: skip


class Exported(NamedTuple):
    """The facts about a written export.

    Attributes:
      step: of the checkpoint.
      dtype: of the tensors.
      kept: the part of training's change that the tensors keep; None in float32, which keeps it all.
    """

    step: int
    dtype: str
    kept: Kept | None


def export(run: Path, out: Path, step: int | None = None, dtype: str = "float32", *, adapter: bool = False) -> Exported:
    """Writes a run's model, config and tokeniser into `out`, or with `adapter` its adapters alone; and a model card.

    Training changes float32 masters, so only float32 keeps all of the change. That holds for adapters, too: the
    pretrained matrices may be exact in bfloat16, but their sum with α/r in × out is not. Frozen parameters are read
    from the pretrained folder, not from the checkpoint, where they have the type of the computation.

    Args:
      run: a run's folder.
      out: does not exist, or is empty.
      step: of the checkpoint; None is the best on validation.
      dtype: of the tensors: float32, float16 or bfloat16.
      adapter: write the adapters as a peft folder instead of merging them.

    Raises:
      UserError: there is no such run or checkpoint, its pretrained folder is gone or is not what the run began with,
        `out` holds files, or adapters are asked of a run that has none.
    """
    config = run_config(run, "--checkpoint")
    if not (run / "checkpoints").is_dir():
        raise UserError(f"--checkpoint: the run in {run} has no checkpoints")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out: {out} is a file, or holds files; choose a folder that does not exist")
    source = model_folder(config.model.size)
    if not source.is_dir():
        raise UserError(
            f"--checkpoint: the run's model is {str(source)!r}, which is not a pretrained folder here; only a model "
            "from such a folder can be exported, with the folder's config.json and tokeniser"
        )
    arch = dataclasses.replace(pretrained_architecture(source), **adapter_settings(config.model)._asdict())
    if adapter and not arch.lora_rank:
        raise UserError(f"--adapter: the run in {run} trained all parameters and has no adapters; leave --adapter out")
    _check_source(run, config, source, arch)
    chosen, trained = _restore(run, arch, step)
    params = {} if adapter else trained
    if arch.lora_rank and not adapter:
        params = merge_with_pretrained(trained, source, arch, _mesh())
    kept = None
    if dtype != "float32":
        kept = kept_of_factors(trained, arch, dtype) if adapter else kept_of_parameters(params, arch, source, dtype)
    base, revision = hub_name(config.model.size) or ("", "")
    card = Card(
        run=run, config=config, source=source, base=base, step=chosen, dtype=dtype, adapter=adapter, kept=kept
    )  # fmt: skip
    text = model_card(card)
    with writing(out), _filled(out):
        if adapter:
            save_adapter(trained, arch, out, dtype=dtype, base=base or str(source.absolute()), revision=revision)
        else:
            _save_model(params, arch, source, out, dtype)
        (out / "README.md").write_text(text, encoding="utf-8")
    return Exported(chosen, dtype, kept)


@contextmanager
def _filled(out: Path) -> Iterator[None]:
    """Makes the folder `out` for a block that fills it; empties it again if the block fails.

    Raises:
      OSError: the tensors cannot be written.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException as error:
        for file in out.iterdir():
            file.unlink()
        if made:
            out.rmdir()
        if isinstance(error, SafetensorError):
            raise OSError(str(error)) from error
        raise


def _mesh() -> Mesh:
    """Makes a mesh that replicates parameters over the available devices."""
    return make_mesh(ConfigDict({"data": 0, "fsdp": 1, "tensor": 1}))


def _restore(run: Path, arch: Architecture, step: int | None) -> tuple[int, dict]:
    """Reads the trained parameters from the checkpoint of a step, by default the best one; returns the step as well.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """

    def choose(checkpoints: Checkpoints) -> int:
        chosen = checkpoints.best if step is None else step
        sound = checkpoints.sound_steps
        if chosen not in sound:
            raise UserError(f"--step: {run} has sound checkpoints of {sound or 'no step'}, not of {chosen}")
        return chosen

    like = with_shardings(lora.trained(parameter_shapes(arch)), _mesh())
    return read_chosen(run / "checkpoints", choose, lambda checkpoints, at: (at, checkpoints.restore_params(at, like)))


def _check_source(run: Path, config: ConfigDict, source: Path, arch: Architecture) -> None:
    """Refuses a pretrained folder that is not what the run began with: parts of it go into the export."""
    tokenizer = pretrained_tokenizer(source)
    whole = dataclasses.replace(with_settings(arch, config.model), absent_ids=tokenizer.absent_ids(arch.vocab_size))
    found: dict[str, Any] = {
        "tokenizer": vocabulary_fingerprint(tokenizer),
        "architecture": architecture_fingerprint(whole),
    }
    if arch.lora_rank:
        found["weights"] = dict(weights_fingerprints(config.model.size))
    if other := other_model(found, run):
        raise UserError(f"--checkpoint: {run} cannot be exported beside {source} {other}")


def _save_model(params: dict, arch: Architecture, source: Path, out: Path, dtype: str) -> None:
    """Writes the tensors, the tokeniser's files, and config.json with the tensors' type."""
    save_pretrained(params, arch, out, dtype=dtype)
    for name in BESIDE:
        if (source / name).exists():
            shutil.copy(source / name, out / name)
    fields: dict[str, Any] = read_config(source)
    fields["dtype" if "dtype" in fields else "torch_dtype"] = dtype
    (out / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
