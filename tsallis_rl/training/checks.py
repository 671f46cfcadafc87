"""Checks a config's settings, alone and against the devices, before anything is loaded; then against the model.

A run checks against the available devices, --plan against those that it plans for.
"""

import copy
from collections.abc import Sequence

from ml_collections import ConfigDict

from tsallis_rl import objectives
from tsallis_rl.config.readers import is_read, unread
from tsallis_rl.config.schema import FIELDS, check_fields, value_of
from tsallis_rl.models import Architecture
from tsallis_rl.models.sharding import mesh_shape, prompt_shards
from tsallis_rl.objectives.regularizer import TERMS
from tsallis_rl.runs.errors import UserError
from tsallis_rl.sampler.schedule import rollout_tokens
from tsallis_rl.tasks.hinting import PLACES
from tsallis_rl.tasks.markers import AUTO
from tsallis_rl.training.control import check_guards
from tsallis_rl.training.reference import reads_reference

_SAMPLING = tuple(f"evaluate.{name}" for name in ("temperature", "top_k", "top_p", "greedy"))
LEAST_PROMPT, LEAST_RATIONALE = 64, 16  # tokens: budgets are not reduced below these, nor below a quarter


def check(config: ConfigDict, devices: int) -> None:
    """Refuses settings that a run would refuse later, or ignore; reads nothing but the config.

    Args:
      config: the run's settings.
      devices: over which config.mesh is laid.

    Raises:
      UserError: names the first invalid field.
    """
    check_fields(config)
    objectives.check(config.estimator, config.rollouts.num_rollouts)
    warmup, steps = config.optimizer.warmup_steps, config.train.steps
    if warmup >= steps:
        raise UserError(
            f"config.optimizer.warmup_steps={warmup} is not below config.train.steps={steps}: the run would end before "
            "its learning rate is reached"
        )
    least, most = config.rollouts.min_rationale, config.rollouts.max_rationale
    if least > most:
        raise UserError(f"config.rollouts.min_rationale={least} is above config.rollouts.max_rationale={most}")
    _check_prompts(config, devices, ("train.prompts", "evaluate.prompts", "rollouts.at_once", "train.micro_batch"))
    _check_answers(config)
    names = config.shadow.estimators
    if config.shadow.every and not (names and all(isinstance(name, str) and "," not in name for name in names)):
        raise UserError(
            f"config.shadow.estimators={names!r}: name at least one, as in "
            "--config.shadow.estimators=\"('garl@1', 'paft@0.5')\""
        )
    _check_regularizer(config)
    _check_proposal(config)
    _check_aliases(config)
    _check_refill(config)
    check_guards(config)
    _check_read(config)


def check_evaluation(config: ConfigDict, devices: int) -> None:
    """Refuses settings with which a model cannot be evaluated alone; does not check those of training.

    Raises:
      UserError: names the first invalid field.
    """
    check_fields(config)
    _check_prompts(config, devices, ("evaluate.prompts", "rollouts.at_once"))
    _check_answers(config)


def _check_answers(config: ConfigDict) -> None:
    """Refuses sampling settings of evaluations that would change nothing, or make all samples the same."""
    evaluate = config.evaluate
    for name in ("temperature", "top_k", "top_p") if evaluate.greedy else ():
        if evaluate[name] != (default := FIELDS[f"evaluate.{name}"].default):
            raise UserError(
                f"config.evaluate.{name}={evaluate[name]}: config.evaluate.greedy takes the likeliest token "
                f"whatever it is; leave it at {default}"
            )
    if evaluate.samples > 1 and (evaluate.greedy or evaluate.temperature == 0):
        cause = "greedy=True" if evaluate.greedy else "temperature=0"
        raise UserError(
            f"config.evaluate.{cause}: the {evaluate.samples} samples of an example would all be the same; set "
            "config.evaluate.samples=1"
        )


def _check_prompts(config: ConfigDict, devices: int, counts: Sequence[str]) -> None:
    """Refuses numbers of prompts, in the fields `counts`, that devices or slices cannot share equally."""
    shards, train = prompt_shards(mesh_shape(config.mesh, devices)), config.train
    for field in counts:
        section, _, name = field.partition(".")
        if config[section][name] % shards:
            raise UserError(
                f"config.{field}={config[section][name]} is not a multiple of the {shards} devices over which prompts "
                "are split"
            )
    if "train.prompts" in counts and train.micro_batch and train.prompts % train.micro_batch:
        raise UserError(
            f"config.train.micro_batch={train.micro_batch} does not divide config.train.prompts={train.prompts}"
        )
    at_once = config.rollouts.at_once
    for section in ("train", "evaluate"):
        prompts = config[section].prompts if f"{section}.prompts" in counts else 0
        if at_once and prompts > at_once and prompts % at_once:
            raise UserError(f"config.rollouts.at_once={at_once} does not divide config.{section}.prompts={prompts}")


def samples_rationales(config: ConfigDict) -> bool:
    """Returns whether evaluations sample a rationale before the answer."""
    return objectives.samples_rationales(config.evaluate.rationale, objectives.ESTIMATORS[config.estimator.name])


def measures_kl(config: ConfigDict) -> bool:
    """Returns whether a KL can be estimated from an evaluation: its rationales are drawn from the model itself."""
    return samples_rationales(config) and not any(_is_set(config, name) for name in _SAMPLING)


def _is_set(config: ConfigDict, name: str) -> bool:
    """Returns whether a field differs from its default."""
    return value_of(config, name) != FIELDS[name].default


def _check_regularizer(config: ConfigDict) -> None:
    """Refuses a regulariser, or a KL to measure, that would have nothing to act on."""
    regularizer, estimator = config.regularizer, config.estimator.name
    on = [name for name in TERMS if regularizer[name]]
    if config.evaluate.kl and samples_rationales(config) and not measures_kl(config):
        name = next(name for name in _SAMPLING if _is_set(config, name))
        raise UserError(
            "config.evaluate.kl=True: a KL is estimated from draws of the model itself, which those at "
            f"config.{name}={value_of(config, name)} are not; leave one of the two at its default"
        )
    if config.evaluate.kl and not samples_rationales(config):
        raise UserError(
            "config.evaluate.kl=True: evaluations sample no rationale to measure it on; leave it at False, or set "
            "config.evaluate.rationale=sampled"
        )
    if on and not objectives.ESTIMATORS[estimator].rationale:
        raise UserError(
            f"config.regularizer.{on[0]}={regularizer[on[0]]}: estimator {estimator} has no rationale; leave it at 0"
        )
    if on and config.rollouts.num_rollouts < 2:
        raise UserError(
            f"config.regularizer.{on[0]}={regularizer[on[0]]} compares a rollout with others of its group: it needs "
            f"at least 2 rollouts a prompt, found config.rollouts.num_rollouts={config.rollouts.num_rollouts}"
        )
    if regularizer.reference != FIELDS["regularizer.reference"].default and not reads_reference(config):
        raise UserError(
            f"config.regularizer.reference={regularizer.reference}: only config.regularizer.kl, which is off, and "
            "estimator latro read it; set one of them as well"
        )
    if bool(regularizer.length) != bool(regularizer.min_length):
        raise UserError(
            f"config.regularizer.length={regularizer.length} and .min_length={regularizer.min_length}: the penalty has "
            "a factor and a length below which it applies; set both above 0, or neither"
        )
    if (most := config.rollouts.max_rationale) < regularizer.min_length:
        raise UserError(
            f"config.regularizer.min_length={regularizer.min_length} is above config.rollouts.max_rationale={most}: no "
            "rationale is that long"
        )


def _check_proposal(config: ConfigDict) -> None:
    """Refuses a proposal beside settings that make its weights inexact, or that do not use weights."""
    name, template = config.proposal.name, config.proposal.template
    objectives.check_proposal(config.estimator, name, config.rollouts.num_rollouts)
    if name == "prior":
        return
    said = f"config.proposal.name={name}"
    if template != AUTO and not all(place in template for place in PLACES):
        raise UserError(f"config.proposal.template={template!r}: write {' and '.join(PLACES)} where they shall stand")
    reasons = dict.fromkeys(
        ("rollouts.temperature", "rollouts.top_k", "rollouts.top_p", "rollouts.min_p"),
        "importance weights are exact where tokens are sampled from the whole distribution at temperature 1",
    )
    reasons |= dict.fromkeys(
        (f"regularizer.{name}" for name in TERMS),
        "its expectation is over rationales of the plain prompt",
    )
    reasons["shadow.every"] = "the gradient comparison draws its rationales after the plain prompt"
    for field, reason in reasons.items():
        if (value := value_of(config, field)) != (default := FIELDS[field].default):
            raise UserError(f"config.{field}={value} beside {said}: {reason}; leave it at {default}")


def _check_aliases(config: ConfigDict) -> None:
    """Refuses a sum over aliases if nothing reads it, or if something reads the gold answer apart from it."""
    row = objectives.ESTIMATORS[config.estimator.name]
    if not config.rollouts.aliases:
        return
    if config.shadow.every:
        raise UserError(
            "config.rollouts.aliases=True: the gradient comparison (config.shadow.every) samples rollouts of its own "
            "and scores the gold answer alone; leave one of the two off"
        )
    of_gold = [name for name in row.quantities if name.startswith("gold_")]
    if row.answer != "gold" or of_gold:
        reads = f"reads {of_gold[0]}, of the gold answer alone" if of_gold else "reads the rewards of sampled answers"
        raise UserError(f"config.rollouts.aliases=True: estimator {row.name} {reads}; leave it at False")


def _check_refill(config: ConfigDict) -> None:
    """Refuses to replace groups if none can be without signal, or if a regulariser acts on them as well."""
    refill, row = config.train.refill, objectives.ESTIMATORS[config.estimator.name]
    if not refill:
        return
    if row.answer != "sampled":
        raise UserError(
            f"config.train.refill={refill}: it replaces groups whose sampled answers give no signal, and estimator "
            f"{row.name} trains on the gold answer and samples none; leave it at 0"
        )
    if on := [name for name in TERMS if config.regularizer[name]]:
        raise UserError(
            f"config.train.refill={refill} beside config.regularizer.{on[0]}={config.regularizer[on[0]]}: the "
            "regularizer's expectation is over all groups, and those without signal would be left out of it; leave one "
            "of the two at 0"
        )


def _check_read(config: ConfigDict) -> None:
    """Refuses a setting that would change nothing."""
    estimator, row = config.estimator, objectives.ESTIMATORS[config.estimator.name]
    for name, default in unread(config).items():
        if row.q is not None and name in ("q", "schedule"):
            reason = f"{estimator.name} has q = {row.q:g}"
        elif not is_read(config, FIELDS[f"estimator.{name}"]):
            other = FIELDS[f"estimator.{name}"].when.field.partition(".")[2]
            reason = f"estimator {estimator.name} at {other}={estimator[other]!r} does not read it"
        else:
            reason = f"estimator {estimator.name} does not read it, but {', '.join(row.options) or 'no option'}"
        raise UserError(f"config.estimator.{name}={estimator[name]!r}: {reason}; leave it at {default!r}")
    for name in estimator:
        if f"estimator.{name}" not in FIELDS and name not in row.options:
            raise UserError(
                f"config.estimator.{name}={estimator[name]!r:.60}: estimator {estimator.name} has no such option, but "
                f"{', '.join(row.options) or 'none'}; leave it out"
            )
    for name, field in FIELDS.items():
        value = value_of(config, name)
        if value != field.default and not is_read(config, field):
            reader = value_of(config, field.when.field)
            raise UserError(f"config.{name}={value}: {reader} does not read it; leave it at {field.default}")


def fit_context(config: ConfigDict, arch: Architecture, fixed: int, longest: int) -> ConfigDict:
    """Reduces budgets that do not fit the model's context, and prints them; returns the config with those that fit.

    Rationales are reduced first, down to a quarter, then prompts. The result is a function of the config and the data,
    so a run that continues has the same budgets.

    Args:
      config: the run's settings; not changed.
      arch: of the model.
      fixed: L + J, tokens of end-of-think and joint.
      longest: tokens of the longest prompt that occurs.

    Raises:
      UserError: nothing is left for prompt or rationale.
    """
    task, rollouts = config.task, config.rollouts
    room = arch.context - rollout_tokens(0, fixed, task.max_answer)
    if longest + rollouts.max_rationale <= room:
        return config
    wanted = max(LEAST_RATIONALE, rollouts.min_rationale, config.regularizer.min_length)
    least = min(rollouts.max_rationale, max(wanted, rollouts.max_rationale // 4))
    rationale = min(rollouts.max_rationale, max(least, room - longest))
    prompt = min(longest, room - rationale)
    if prompt < min(longest, max(LEAST_PROMPT, longest // 4)):
        raise UserError(
            f"prompt, rationale and answer may take {arch.context - room + longest + rollouts.max_rationale} tokens, "
            f"the model's context is {arch.context}; lower config.task.max_prompt, config.rollouts.max_rationale or "
            "config.task.max_answer"
        )
    reduced = copy.deepcopy(config)
    told = [(reduced.rollouts, "rollouts.max_rationale", rationale)] * (rationale < rollouts.max_rationale)
    told += [(reduced.task, "task.max_prompt", prompt)] * (prompt < longest)
    for section, field, value in told:
        section[field.partition(".")[2]] = value
    changes = " and ".join(f"config.{field}={value_of(config, field)} is taken as {value}" for _, field, value in told)
    print(
        f"the model's context is {arch.context} tokens, prompts have up to {longest}, and {arch.context - room} are "
        f"kept for the answer: {changes}"
    )
    return reduced
