"""Writes the model of a run as a Hugging Face folder."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
from ml_collections import ConfigDict

from tsallis_rl.config.saved import run_config
from tsallis_rl.models import lora
from tsallis_rl.models.decoder import initialize
from tsallis_rl.models.families import pretrained_architecture, read_config
from tsallis_rl.models.pretrained import Safetensors, save_pretrained
from tsallis_rl.models.sharding import make_mesh, state_shardings
from tsallis_rl.runs.cache import writing
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.hub import model_folder

BESIDE = (  # files of a model's folder that training does not change
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json", "LICENSE",
)  # fmt: skip


def export(run: Path, out: Path, step: int | None = None, dtype: str | None = None) -> tuple[int, str]:
    """Writes config.json, safetensors and the tokeniser's files into `out`.

    Args:
      run: a run's folder.
      out: does not exist, or is empty.
      step: of the checkpoint; None is the best on validation.
      dtype: of the tensors; None is that of the pretrained ones.

    Returns:
      the step and dtype written.

    Raises:
      UserError: there is no such run or checkpoint, its pretrained folder is gone, or `out` holds files.
    """
    config = run_config(run, "--checkpoint")
    if not (run / "checkpoints").is_dir():
        raise UserError(f"--checkpoint: the run in {run} has no checkpoints")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out: {out} is a file, or holds files; choose a folder that does not exist")
    source = model_folder(config.model.size)
    if not source.is_dir():
        raise UserError(
            f"--checkpoint: the run's model is {str(source)!r}, which is no pretrained folder here; only a model that "
            "came from one is exported, with that folder's config.json and tokeniser"
        )
    arch = dataclasses.replace(
        pretrained_architecture(source), lora_rank=config.model.lora_rank, lora_alpha=config.model.lora_alpha
    )
    checkpoints = Checkpoints(run / "checkpoints")
    chosen = checkpoints.best if step is None else step
    sound = checkpoints.sound_steps
    if chosen not in sound:
        raise UserError(f"--step: {run} has sound checkpoints of {sound or 'no step'}, not of {chosen}")
    shapes = jax.eval_shape(functools.partial(initialize, arch), jax.random.key(0))
    shardings = state_shardings(make_mesh(ConfigDict({"data": 0, "fsdp": 1, "tensor": 1})), shapes)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    params = lora.merge(checkpoints.restore_params(chosen, like), arch)
    checkpoints.close()

    dtype = dtype or Safetensors(source).dtype("model.embed_tokens.weight")
    fields = read_config(source)
    fields["dtype" if "dtype" in fields else "torch_dtype"] = dtype
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        save_pretrained(params, arch, out, dtype=dtype)
        for name in BESIDE:
            if (source / name).exists():
                shutil.copy(source / name, out / name)
        (out / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    return chosen, dtype
