"""What is checked before anything is loaded: a config's settings, alone and against the devices; and its model.

A run asks this of the devices there are, --plan of those that it plans for.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl import objectives
from tsallis_rl.config.schema import base_config, check_limits
from tsallis_rl.models import SIZES, Architecture
from tsallis_rl.models.decoder import KEPT
from tsallis_rl.models.families import pretrained_architecture
from tsallis_rl.models.sharding import mesh_shape
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import fetched
from tsallis_rl.tasks.tokenizers import Tokenizer
from tsallis_rl.training.control import ACTIONS, check_guards
from tsallis_rl.training.optimizer import make_optimizer

CHOICES = {
    "model.dtype": ("float32", "bfloat16", "float16"),
    "model.remat": ("none", *KEPT),
    "model.attention": ("auto", "xla"),
    "rollouts.unclosed": ("drop", "close"),
    "guards.on_collapse": ACTIONS,
}


def check(config: ConfigDict, devices: int) -> None:
    """Refuses settings that a run would refuse later, or ignore.

    Args:
      config: the run's settings.
      devices: over which config.mesh is laid.

    Raises:
      UserError: names the first field that is not as it must be.
    """
    check_limits(config)
    for field, choices in CHOICES.items():
        section, _, name = field.partition(".")
        if config[section][name] not in choices:
            raise UserError(f"config.{field}={config[section][name]!r}: choose from {', '.join(choices)}")
    objectives.check(config.estimator, config.rollouts.num_rollouts)
    make_optimizer(config.optimizer, config.train.steps)
    warmup, steps = config.optimizer.warmup_steps, config.train.steps
    if warmup >= steps:
        raise UserError(
            f"config.optimizer.warmup_steps={warmup} is not below config.train.steps={steps}: the run would end before "
            "its learning rate is reached"
        )
    _check_prompts(config, devices)
    names = config.shadow.estimators
    if config.shadow.every and not (names and all(isinstance(name, str) and "," not in name for name in names)):
        raise UserError(
            f"config.shadow.estimators={names!r}: name at least one, as in "
            "--config.shadow.estimators=\"('garl@1', 'paft@0.5')\""
        )
    _check_controller(config)
    check_guards(config)
    _check_read(config)


def _check_prompts(config: ConfigDict, devices: int) -> None:
    """Devices share out what goes through a program together, and slices share out the prompts of a step."""
    axes, train = mesh_shape(config.mesh, devices), config.train
    shards = axes["data"] * axes["fsdp"]
    for field in ("train.prompts", "evaluate.prompts", "rollouts.at_once", "train.micro_batch"):
        section, _, name = field.partition(".")
        if config[section][name] % shards:
            raise UserError(
                f"config.{field}={config[section][name]} is not a multiple of the {shards} devices over which prompts "
                "are split"
            )
    if train.micro_batch and train.prompts % train.micro_batch:
        raise UserError(
            f"config.train.micro_batch={train.micro_batch} does not divide config.train.prompts={train.prompts}"
        )
    at_once = config.rollouts.at_once
    for section in ("train", "evaluate"):
        prompts = config[section].prompts
        if at_once and prompts > at_once and prompts % at_once:
            raise UserError(f"config.rollouts.at_once={at_once} does not divide config.{section}.prompts={prompts}")


def _check_controller(config: ConfigDict) -> None:
    controller = config.controller
    if controller.nats and (config.estimator.name, config.estimator.schedule) != ("garl", "constant"):
        raise UserError("config.controller sets q itself: it needs config.estimator.name=garl, .schedule=constant")
    if controller.max_variance and not config.shadow.every:
        raise UserError("config.controller.max_variance is of shadow gradients: set config.shadow.every as well")
    for name in ("max_variance", "collapse_nats"):
        if controller[name] and not controller.nats:
            raise UserError(
                f"config.controller.{name}={controller[name]}: it needs config.controller.nats, which is off; set both"
            )


def unread(config: ConfigDict) -> dict[str, Any]:
    """Options of config.estimator that were changed and that neither the estimator nor a shadow reads, by default."""
    estimator = config.estimator
    row, read = objectives.ESTIMATORS[estimator.name], {"name"}
    names = {estimator.name}
    if config.guards.on_collapse == "paft" or config.controller.collapse_nats:
        names.add("paft")
    if config.shadow.every:
        names |= {shadow.partition("@")[0] for shadow in config.shadow.estimators} & objectives.ESTIMATORS.keys()
    for name in names:
        read.update(objectives.ESTIMATORS[name].options)
    if row.q is None:
        moving = {"constant": (), "per_example": ("q_end", "schedule_nats")}
        read.update(("q", "schedule"), moving.get(estimator.schedule, ("q_end", "schedule_steps")))
    defaults = base_config().estimator
    return {name: default for name, default in defaults.items() if name not in read and estimator[name] != default}


def _check_read(config: ConfigDict) -> None:
    """Refuses a setting that would change nothing."""
    estimator, optimizer = config.estimator, config.optimizer
    for name, default in unread(config).items():
        row = objectives.ESTIMATORS[estimator.name]
        if row.q is not None and name in ("q", "schedule"):
            reason = f"{estimator.name} has q = {row.q:g}"
        elif name in ("q_end", "schedule_steps", "schedule_nats"):
            reason = f"estimator {estimator.name} at schedule={estimator.schedule!r} does not read it"
        else:
            reason = f"estimator {estimator.name} does not read it, but {', '.join(row.options) or 'no option'}"
        raise UserError(f"config.estimator.{name}={estimator[name]!r}: {reason}; leave it at {default!r}")
    defaults = base_config().optimizer
    for name in ("b2", "eps"):
        if optimizer.name == "sgd" and optimizer[name] != defaults[name]:
            raise UserError(
                f"config.optimizer.{name}={optimizer[name]}: sgd does not read it; leave it at {defaults[name]}"
            )


def architecture(model: ConfigDict, tokenizer: Tokenizer) -> Architecture:
    """Of a pretrained folder, or of a row of the table of sizes with the tokeniser's vocabulary."""
    folder = fetched(model.size)
    if folder.is_dir():
        arch = pretrained_architecture(folder)  # its vocabulary may be wider than the tokeniser's
        if tokenizer.vocab_size > arch.vocab_size:
            raise UserError(
                f"{folder}: the tokeniser has {tokenizer.vocab_size} ids, the model's config.json {arch.vocab_size}"
            )
    elif model.size in SIZES:
        arch = dataclasses.replace(SIZES[model.size], vocab_size=tokenizer.vocab_size)
    else:
        raise UserError(
            f"config.model.size={model.size!r} is neither a folder that exists nor one of {', '.join(SIZES)}"
        )
    if model.lora_rank and not folder.is_dir():
        raise UserError(f"config.model.lora_rank={model.lora_rank}: only a pretrained folder is adapted, not {folder}")
    return dataclasses.replace(
        arch, dtype=model.dtype, remat=model.remat, attention=model.attention,
        lora_rank=model.lora_rank, lora_alpha=model.lora_alpha,
    )  # fmt: skip


def check_context(config: ConfigDict, arch: Architecture, joint_length: int) -> None:
    """Refuses examples that may be longer than what the model was made for; joint_length is J, in tokens."""
    longest = config.task.max_prompt + config.rollouts.max_rationale + 1 + joint_length + config.task.max_answer
    if longest > arch.context:
        raise UserError(
            f"prompt, rationale and answer may take {longest} tokens, the model's context is {arch.context}; lower "
            "config.task.max_prompt, config.rollouts.max_rationale or config.task.max_answer"
        )
