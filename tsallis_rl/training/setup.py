"""Everything about a run that its config decides and no step changes."""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsallis_rl.evaluation.evaluator import Evaluation, Evaluator
from tsallis_rl.models import Architecture, lora
from tsallis_rl.models.architecture import load_architecture
from tsallis_rl.models.sharding import make_mesh, mesh_shape, prompt_shards, with_shardings
from tsallis_rl.runs.cache import cache_folder
from tsallis_rl.runs.checkpoints import Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.progress import count_of, labelled
from tsallis_rl.sampler.keys import VALIDATION
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.sampler.sampler import RolloutShape
from tsallis_rl.sampler.sampling_settings import Sampling, evaluation_sampling, make_sampling, without_rationale
from tsallis_rl.sampler.schedule import rollout_tokens
from tsallis_rl.tasks import LoadedTask, load_with_tokenizer
from tsallis_rl.tasks.base import Task
from tsallis_rl.tasks.encoded_cache import encode_cached, unattainable_cached
from tsallis_rl.tasks.encoding import EncodedSplit, encode_aliases
from tsallis_rl.tasks.hinting import hinted_split
from tsallis_rl.tasks.markers import Markers
from tsallis_rl.tasks.prompt_widths import share_widths
from tsallis_rl.tasks.tokenizers import Tokenizer
from tsallis_rl.training.base_model import base_parameters
from tsallis_rl.training.checks import check, fit_context, measures_kl, samples_rationales
from tsallis_rl.training.earlier_run import Origin, earlier_parameters
from tsallis_rl.training.gradient_comparison import GradientComparison
from tsallis_rl.training.optimizer import START, State, make_optimizer, sharded_start, state_shapes
from tsallis_rl.training.reference import held_references, rescore, rescoring_slices, sum_log_ratio


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run's config and what was loaded and built for it.

    Attributes:
      config: the run's settings, with budgets that fit the model's context (`checks.fit_context`).
      task: examples and grader.
      tokenizer: of the model.
      markers: the ids around rationales and answers.
      splits: the task's encoded splits that were asked for; with training's also `hinted`, if config.proposal draws
        after hinted prompts.
      arch: of the model.
      sampling: the sampler's numbers and ids.
      comparison: of other estimators' gradients; None where config.shadow.every is 0.
      room: tokens of prompts and rollouts that an update takes at a time on a device (`Slices.room`), if its memory
        decides; 0: config.train decides.
    """

    config: ConfigDict
    task: Task
    tokenizer: Tokenizer
    markers: Markers
    splits: dict[str, EncodedSplit]
    arch: Architecture
    sampling: Sampling
    comparison: GradientComparison | None
    room: int = 0

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The mesh over the available devices."""
        return make_mesh(self.config.mesh)

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """The evaluator of the run's model, whose batches are no larger than the largest evaluated split needs."""
        config = copy.deepcopy(self.config)
        evaluated = [split for name, split in self.splits.items() if name not in ("train", "hinted")]
        fit_examples(config, max(len(split) for split in evaluated or self.splits.values()))
        samples = samples_rationales(self.config)
        sampling = self.sampling if samples else without_rationale(self.sampling)
        return Evaluator(
            task=self.task,
            tokenizer=self.tokenizer,
            markers=self.markers,
            arch=self.arch,
            mesh=self.mesh,
            sampling=evaluation_sampling(sampling, self.config.evaluate),
            samples_rationales=samples,
            config=config,
        )

    @functools.cached_property
    def _validator(self) -> Evaluator:
        """The evaluator of validation: with smaller batches if its examples fill at most half of one."""
        config, split = copy.deepcopy(self.evaluator.config), self.splits["validation"]
        fit_examples(config, min(config.evaluate.examples or len(split), len(split)))
        if 2 * config.evaluate.prompts > self.evaluator.config.evaluate.prompts:
            return self.evaluator  # its programs are compiled already
        return dataclasses.replace(self.evaluator, config=config)

    def validate(self, state: State) -> Evaluation:
        """Evaluates a state's parameters on config.evaluate.examples of validation, .save_prompts of them as text.

        Guards and the choice of the best checkpoint depend on it, so regenerating a step of a run makes the same call.
        If the state holds the parameters of the start, and rationales are drawn from the model itself, the KL to the
        start is measured as well.
        """
        return self._validator(
            state.params,
            self.splits["validation"],
            VALIDATION,
            examples=self.config.evaluate.examples,
            texts=self.config.evaluate.save_prompts,
            log_ratio=self.log_ratio_to(state.references.get(START), state.params),
        )

    def log_ratio_to(self, start: dict | None, params: dict) -> Callable[[Rollouts], Array] | None:
        """Returns what computes log p(z) − log p_start(z) of an evaluation's rollouts; None if there is no such KL."""
        if start is None or not measures_kl(self.config):
            return None

        return functools.partial(self.log_ratio, params, reference=start)

    def log_ratio(self, params: dict, rollouts: Rollouts, *, reference: dict, answers: bool = False) -> Array:
        """Computes log p − log p_ref of rollouts that have a rationale: [P, M, …] → [P, M].

        One program scores both, so that the ratio of equal parameters is exactly 0. The sampler's log p would differ
        by rounding, in bfloat16 by 0.02 nats a token: noise that an optimiser scales up where nothing else is learnt.

        Args:
          params: the run's.
          rollouts: [P, M, …], sampled under the run's rules.
          reference: of the trained part of `params`; both are rounded to its dtype.
          answers: sum over the answers' tokens as well.
        """
        own = jax.tree.map(lambda x, like: x.astype(like.dtype), lora.trained(params), reference)
        ours, theirs = (self.rescore(params, rollouts, reference=x, answers=answers) for x in (own, reference))
        return sum_log_ratio(ours, theirs, rollouts, answers=answers)

    def rescore(
        self, params: dict, rollouts: Rollouts, *, reference: dict | None = None, answers: bool = False
    ) -> Array:
        """Computes log-probabilities of the sampled targets of rollouts that have a rationale: [P, M, T] → [P, M, T].

        Args:
          params: the run's.
          rollouts: [P, M, T], sampled under the run's rules.
          reference: replaces the trained part of `params`; None keeps it.
          answers: see `reference.rescore`.
        """
        reference = lora.trained(params) if reference is None else reference
        slices = rescoring_slices(self.config, len(rollouts.prompt), self.mesh.size)
        return rescore(params, reference, rollouts, self.sampling.rules, arch=self.arch, slices=slices, answers=answers)

    def counted_config(self) -> ConfigDict:
        """Copies the settings for counting memory, with the width of the widest prompt that occurs."""
        config = copy.deepcopy(self.config)
        config.task.max_prompt = max(split.max_prompt for split in self.splits.values())
        return config

    def rollout_shape(self, *, num_rollouts: int, samples_answers: bool) -> RolloutShape:
        """Returns the shape that this run's rollouts are compiled for, with sampled or gold answers."""
        return RolloutShape(
            arch=self.arch,
            num_rollouts=num_rollouts,
            max_rationale=self.config.rollouts.max_rationale,
            max_answer=self.config.task.max_answer if samples_answers else 0,
        )


def fit_examples(config: ConfigDict, examples: int) -> None:
    """Lowers config.evaluate.prompts to what `examples` need; batches would be padded otherwise."""
    unit = prompt_shards(mesh_shape(config.mesh, jax.device_count()))
    if config.rollouts.at_once < -(-examples // unit) * unit:  # else all are rolled out at a time
        unit = math.lcm(unit, config.rollouts.at_once or 1)
    config.evaluate.prompts = min(config.evaluate.prompts, -(-examples // unit) * unit)


def prepare(config: ConfigDict, devices: int | None = None) -> Setup:
    """Checks the settings, loads the task and tokenises it, for `devices` devices; None takes those present.

    Raises:
      UserError: a setting or a file is invalid.
    """
    check(config, devices or jax.device_count())
    return load_setup(config, ("train", "validation", "test"))


def load_setup(config: ConfigDict, splits: Sequence[str]) -> Setup:
    """Loads the task, tokeniser and architecture of checked settings, and tokenises `splits`.

    Raises:
      UserError: a file is invalid, or a setting does not suit the task.
    """
    loaded = load_with_tokenizer(config, cache_folder("tokenizers"))
    task, tokenizer, markers = loaded
    if config.base.steps and task.supervised is None:
        raise UserError(
            f"config.base.steps={config.base.steps}: task {task.name} has no examples with rationales to train a base "
            "model on; leave it at 0"
        )
    arch = load_architecture(config.model, tokenizer.vocab_size)
    arch = dataclasses.replace(arch, absent_ids=tokenizer.absent_ids(arch.vocab_size))
    config, encoded = _encode_splits(config, loaded, arch, splits)
    chosen = {name: encoded[name] for name in splits}
    if config.rollouts.aliases and "train" in chosen:
        train = chosen["train"]
        if not any(encode_aliases(train, i, tokenizer, markers) for i in range(len(train))):
            raise UserError(
                f"config.rollouts.aliases=True: no training example of task {task.name} has an alias that is another "
                "text than its answer; leave it at False"
            )
    if config.train.refill and "train" in chosen and len(chosen["train"]) <= config.train.prompts:
        raise UserError(
            f"config.train.refill={config.train.refill}: the {len(chosen['train'])} training examples are no more than "
            f"config.train.prompts={config.train.prompts}, so that a step has no further ones; leave it at 0, or lower "
            "config.train.prompts"
        )
    if config.proposal.name != "prior" and "train" in chosen:
        chosen["hinted"] = _encode_hinted(config, loaded, arch, chosen["train"])
    sampling = make_sampling(config.rollouts, markers)
    comparison = GradientComparison(config, arch, sampling) if config.shadow.every else None
    for note in (*task.notes, *markers.notes):
        print(note)
    return Setup(
        config=config,
        task=task,
        tokenizer=tokenizer,
        markers=markers,
        splits=chosen,
        arch=arch,
        sampling=sampling,
        comparison=comparison,
    )


def _encode_splits(
    config: ConfigDict, loaded: LoadedTask, arch: Architecture, asked: Sequence[str]
) -> tuple[ConfigDict, dict[str, EncodedSplit]]:
    """Tokenises the task's splits and prints how many examples those asked for have.

    All are tokenised, whichever are asked for, so that budgets and widths, which follow from all, are the same in every
    command.

    Returns:
      the config with budgets that fit, and the splits.
    """
    task, tokenizer, markers = loaded

    def encode(config: ConfigDict, wider: Mapping[str, EncodedSplit]) -> dict[str, EncodedSplit]:
        budgets = {"max_prompt": config.task.max_prompt, "max_answer": config.task.max_answer}
        return {
            name: encode_cached(split, tokenizer, markers, **budgets, name=name, wider=wider.get(name))
            for name, split in task.splits.items()
        }

    splits = encode(config, {})
    longest = max(int(encoded.prompt_length.max(initial=0)) for encoded in splits.values())
    fitted = fit_context(config, arch, markers.fixed_tokens, longest)
    if fitted.task.max_prompt < longest:
        splits = encode(fitted, splits)
    for name in asked:
        encoded = splits[name]
        counts = [f"{count_of(len(encoded), 'example')} of {task.name}"]
        counts += [f"{encoded.trimmed} with a trimmed prompt"] * (encoded.trimmed > 0)
        counts += [f"{count} left out: {reason}" for reason, count in encoded.dropped.items()]
        unattainable = unattainable_cached(encoded, tokenizer, markers, task, config.task)
        counts += [f"{count} kept: {reason}" for reason, count in unattainable.items()]
        print(labelled(name, "; ".join(counts)))
        if not len(encoded):
            advice = (not encoded.dropped and task.splits[name].advice) or _advice(name, encoded)
            found = "; ".join(["0 examples", *counts[1:]])
            raise UserError(f"no example of {task.name}'s {name} split can be used: {found}; {advice}")
    return fitted, share_widths(splits, config.rollouts.prompt_widths, fitted.task.max_prompt)


def _encode_hinted(config: ConfigDict, loaded: LoadedTask, arch: Architecture, train: EncodedSplit) -> EncodedSplit:
    """Tokenises the training prompts with their answers shown.

    Raises:
      UserError: the longest does not fit the model's context.
    """
    task, tokenizer, markers = loaded
    widths, template = config.rollouts.prompt_widths, config.proposal.template
    hinted = hinted_split(train, task, template, tokenizer, markers, widths)
    rationale, longest = config.rollouts.max_rationale, int(hinted.prompt_length.max())
    needed = longest + rollout_tokens(rationale, markers.fixed_tokens, config.task.max_answer)
    if needed > arch.context:
        raise UserError(
            f"config.proposal.name={config.proposal.name}: hinted prompts have up to {longest} tokens and may take "
            f"{needed} with rationale and answer, the model's context is {arch.context}; lower config.task.max_prompt "
            f"or config.rollouts.max_rationale by {needed - arch.context}"
        )
    return hinted


def _advice(name: str, encoded: EncodedSplit) -> str:
    """Returns what to do about a split without examples, judging by what was left out of it."""
    fields = [f"config.task.{x}" for x in ("max_prompt", "max_answer") if f"task.{x}=" in " ".join(encoded.dropped)]
    if fields:
        return f"raise {' and '.join(fields)}, as far as the model's context allows"
    needs = {"train": "updates", "validation": "the choice of the best checkpoint", "test": "the figures at the end"}
    return f"give the {name} split at least one example, for {needs.get(name, 'what reads it')}"


def initial_state(setup: Setup, origin: Origin | None = None) -> State:
    """Makes the state before the first step: parameters of `origin`, else of the base model, and a fresh optimiser."""
    config = setup.config
    if origin:
        params = earlier_parameters(origin, config, setup.tokenizer, setup.arch, setup.mesh)
    else:
        params = base_parameters(config, setup.task, setup.markers, setup.arch, setup.mesh)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    return sharded_start(setup.mesh, params, optimizer, held_references(config), setup.arch.dtype)


def saved_state(setup: Setup, checkpoints: Checkpoints, step: int) -> State:
    """Restores the state that was saved at a step, onto the mesh of the available devices."""
    optimizer = make_optimizer(setup.config.optimizer, setup.config.train.steps)
    shapes = state_shapes(setup.arch, optimizer, held_references(setup.config))
    return checkpoints.restore(step, with_shardings(shapes, setup.mesh))


def fill_cache(config: ConfigDict) -> None:
    """Makes what the runs of a config share, once, so that runs that start at the same time find it."""
    setup = prepare(config)
    if not config.train.init:
        base_parameters(config, setup.task, setup.markers, setup.arch, setup.mesh)
