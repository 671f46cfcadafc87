"""The architecture that a config names."""

import dataclasses

from ml_collections import ConfigDict

from tsallis_rl.models.adapters import adapter_settings
from tsallis_rl.models.families import pretrained_architecture
from tsallis_rl.models.sizes import SIZES, Architecture
from tsallis_rl.runs.cache import fingerprint
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.hub import model_folder


def known_remat(remat: str) -> str:
    """Returns the remat of config.model.remat: "none" for "auto", until memory decides (`fit_memory`)."""
    return "none" if remat == "auto" else remat


def load_architecture(model: ConfigDict, vocab_size: int) -> Architecture:
    """Builds the architecture of config.model, from a pretrained folder or from SIZES.

    Args:
      model: config.model; models of the hub or an object store are downloaded.
      vocab_size: ids of the tokeniser. A pretrained model may have more, never fewer; a model of SIZES gets as many.

    Raises:
      UserError: neither a folder nor a size, a tokeniser with too many ids, adapters without a pretrained folder,
        or contradictory settings of adapters.
    """
    folder = model_folder(model.size)
    if folder.is_dir():
        arch = pretrained_architecture(folder)  # its vocabulary may be wider than the tokeniser's
        if vocab_size > arch.vocab_size:
            raise UserError(f"{folder}: the tokeniser has {vocab_size} ids, the model's config.json {arch.vocab_size}")
    elif model.size in SIZES:
        arch = dataclasses.replace(SIZES[model.size], vocab_size=vocab_size)
    else:
        raise UserError(
            f"config.model.size={model.size!r} is neither a folder that exists nor one of {', '.join(SIZES)}; a model "
            "of the Hugging Face hub is named owner/name, or owner/name@revision"
        )
    for name in ("lora_rank", "adapter"):
        if model[name] and not folder.is_dir():
            raise UserError(f"config.model.{name}={model[name]}: only a pretrained folder is adapted, not {folder}")
    return with_settings(dataclasses.replace(arch, **adapter_settings(model)._asdict()), model)


def with_settings(arch: Architecture, model: ConfigDict) -> Architecture:
    """Copies an architecture, with the dtype, remat and attention of config.model."""
    return dataclasses.replace(arch, dtype=model.dtype, remat=known_remat(model.remat), attention=model.attention)


def architecture_fingerprint(arch: Architecture) -> str:
    """Hashes the fields that decide the model's numbers.

    Fields at their default are left out, as a later version may have more; so are fields that change only speed.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(arch)}
    values = {name: value for name, value in dataclasses.asdict(arch).items() if value != defaults[name]}
    return fingerprint({name: value for name, value in values.items() if name not in ("remat", "attention")})
