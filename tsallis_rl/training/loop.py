"""The loop: roll out → weigh → update → evaluate → checkpoint.

A run is a function of (config, step): data order comes from (seed, step), keys from (seed, step, example, rollout,
position). So a run that was stopped goes on exactly where it was.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from tsallis_rl import objectives
from tsallis_rl.evaluation.evaluator import Evaluator, group_at, sampling_numbers
from tsallis_rl.models import Architecture
from tsallis_rl.models.sharding import make_mesh, over_prompts, prompts_sharding, state_shardings, to_host
from tsallis_rl.objectives import Coefficients
from tsallis_rl.runs.cache import cache_folder
from tsallis_rl.runs.checkpoints import UNMEASURED, Checkpoints
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.processes import from_first
from tsallis_rl.runs.run_directory import RunDirectory
from tsallis_rl.runs.run_lock import owned
from tsallis_rl.runs.signals import Interrupted, stop_requests
from tsallis_rl.sampler.record import ESTIMATOR, TEST, TRAIN, VALIDATION, Rollouts, Sampling, address
from tsallis_rl.sampler.sampler import roll_out_counted
from tsallis_rl.sampler.transcripts import answer_texts, closing_rates, rows
from tsallis_rl.tasks import load_task, load_tokenizer
from tsallis_rl.tasks.base import Task
from tsallis_rl.tasks.encoding import EncodedSplit, encode_split
from tsallis_rl.tasks.tokenizers import Tokenizer
from tsallis_rl.training import guards
from tsallis_rl.training.base_model import base_parameters
from tsallis_rl.training.checks import architecture, check, check_context
from tsallis_rl.training.gradient_comparison import Shadows
from tsallis_rl.training.learner import TrainState, make_optimizer, start_state, update
from tsallis_rl.training.packing import pack

Metrics = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything about a run that its config decides and no step changes."""

    config: ConfigDict
    task: Task
    tokenizer: Tokenizer
    splits: dict[str, EncodedSplit]
    arch: Architecture
    sampling: Sampling
    shadows: Shadows | None

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Over the devices there are."""
        return make_mesh(self.config.mesh)


def prepare(config: ConfigDict, devices: int | None = None) -> Setup:
    """Checks the settings, loads the task and tokenises it; for as many devices as there are, unless told.

    Raises:
      UserError: a setting or a file is not as it must be.
    """
    check(config, devices or jax.device_count())
    task = load_task(config.task, config.seed)
    if config.base.steps and task.supervised is None:
        raise UserError(
            f"config.base.steps={config.base.steps}: task {task.name} has no examples with rationales to train a base "
            "model on; leave it at 0"
        )
    tokenizer = load_tokenizer(config, task, cache_folder("tokenizers"))
    arch = architecture(config.model, tokenizer)
    check_context(config, arch, len(tokenizer.encode(task.joint)))
    sampling = sampling_numbers(config.rollouts, tokenizer, task.joint)
    shadows = Shadows(config, arch, sampling) if config.shadow.every else None
    for note in task.notes:
        print(note)
    splits = {}
    for name, split in task.splits.items():
        splits[name] = encoded = encode_split(
            split, tokenizer, max_prompt=config.task.max_prompt, max_answer=config.task.max_answer
        )
        counts = [f"{len(encoded)} examples"] + [f"{encoded.trimmed} with a trimmed prompt"] * (encoded.trimmed > 0)
        counts += [f"{count} left out: {reason}" for reason, count in encoded.dropped.items()]
        print(f"{task.name} {name}: {'; '.join(counts)}")
        if not len(encoded):
            raise UserError(f"no example of {task.name}'s {name} split can be used: {'; '.join(counts)}")
    return Setup(config, task, tokenizer, splits, arch, sampling, shadows)


def batch_indices(parts: Sequence[str], batch: int, seed: int, step: int) -> np.ndarray:
    """Which examples step `step` trains on, [batch]: epoch after epoch, each in an order drawn from (seed, epoch).

    The examples' parts are spread evenly over the epoch, so that every batch holds them in the split's proportions.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    epochs = {epoch: _epoch(parts, seed, epoch) for epoch in set(places // len(parts))}
    return np.array([epochs[place // len(parts)][place % len(parts)] for place in places])


def _epoch(parts: Sequence[str], seed: int, epoch: int) -> np.ndarray:
    """An order of the examples: a part's k-th of n stands at (k + ½)/n of the way."""
    order = np.random.default_rng([seed, epoch]).permutation(len(parts))
    way, shuffled = np.empty(len(parts)), np.asarray(parts)[order]
    for part in set(parts):
        of_part = shuffled == part
        way[of_part] = (np.arange(of_part.sum()) + 0.5) / of_part.sum()
    return order[np.argsort(way, kind="stable")]


class Step:
    """One training step, its programs compiled once."""

    def __init__(self, setup: Setup, state: TrainState):
        config, train = setup.config, setup.config.train
        self.setup = setup
        self.estimator = objectives.ESTIMATORS[config.estimator.name]
        self.sampling = setup.sampling if self.estimator.rationale else setup.sampling._replace(budget=jnp.int32(0))
        optimizer = make_optimizer(config.optimizer, train.steps)
        micro_batches = train.prompts // (train.micro_batch or train.prompts)
        shards = setup.mesh.shape["data"] * setup.mesh.shape["fsdp"]
        slices = {"micro_batches": micro_batches, "micro_rollouts": train.micro_rollouts, "shards": shards}
        self._pack = functools.partial(pack, **slices, sharding=prompts_sharding(setup.mesh))
        self._update = jax.jit(
            functools.partial(update, arch=setup.arch, optimizer=optimizer, **slices),
            out_shardings=(jax.tree.map(lambda x: x.sharding, state), None),
            donate_argnums=0,
        )
        self.numbers = objectives.numbers(config.estimator)
        below_eps = functools.partial(objectives.below_eps, b2=config.optimizer.b2, eps=config.optimizer.eps)
        self._below_eps = jax.jit(below_eps) if config.optimizer.name == "adamw" else None
        self._weigh = objectives.compiled_weigh(config.estimator)

    def __call__(
        self, state: TrainState, step: int, previous: Metrics
    ) -> tuple[TrainState, Rollouts, Coefficients, Metrics]:
        """Rolls out, weighs and updates; returns the new state, what it was made from, and metrics.

        `previous` are the metrics of the step before, from which the controller decides; empty at the first.
        """
        config, shadows = self.setup.config, {}
        if self.setup.shadows and step % config.shadow.every == 0:
            shadows = self._shadows(state.params, step)

        started = time.perf_counter()
        slots = np.arange(config.train.prompts)
        rollouts, coefficients, measured = self.roll_out(state.params, step, slots, previous)
        jax.block_until_ready(coefficients)
        rolled = time.perf_counter()
        packed, packing = self._pack(rollouts, coefficients)
        state, update_metrics = self._update(state, packed)
        if self._below_eps:
            measured |= {"below_eps": self._below_eps(state.opt_state)}

        metrics = {name: float(value) for name, value in to_host(measured | update_metrics).items()}
        lengths, closed = to_host((rollouts.rationale_length, rollouts.closing))
        metrics |= packing | closing_rates(closed) | {"rationale_length": float(lengths.mean())}
        if config.controller.nats:
            metrics |= {f"controller_{field}": value for field, value in self._decide(previous)._asdict().items()}
        metrics |= {"seconds_rollouts": rolled - started, "seconds_update": time.perf_counter() - rolled}
        metrics |= {
            "rollout_tokens_per_second": metrics["rollout_tokens"] / metrics["seconds_rollouts"],
            "update_tokens_per_second": metrics["update_tokens"] / metrics["seconds_update"],
        }
        named: Metrics = {f"train/{name}": value for name, value in metrics.items()} | shadows
        if metrics["skipped"]:
            named["skipped_examples"] = self._suspects(rollouts, coefficients, step)
        return state, rollouts, coefficients, named

    def roll_out(
        self, params: dict, step: int, slots: np.ndarray, previous: Metrics
    ) -> tuple[Rollouts, Coefficients, dict[str, Array]]:
        """Rollouts of the examples at `slots` of the step's batch, their coefficients, and diagnostics."""
        setup, config = self.setup, self.setup.config
        name, numbers = self.estimator.name, self.numbers
        if config.controller.nats:
            decision = self._decide(previous)
            name, numbers = "paft" if decision.paft else name, numbers | {"q": jnp.float32(decision.q)}
        split = setup.splits["train"]
        indices = self._indices(step)[slots]
        rollouts, work = roll_out_counted(
            params,
            over_prompts(setup.mesh, group_at(split, indices)),
            address(config.seed, TRAIN, step, slots),
            self.sampling,
            arch=setup.arch,
            num_rollouts=config.rollouts.num_rollouts,
            max_rationale=config.rollouts.max_rationale,
            max_answer=config.task.max_answer if self.estimator.answer == "sampled" else 0,
            at_once=config.rollouts.at_once,
        )
        rewards = self._rewards(rollouts, indices) if "rewards" in self.estimator.needs else None
        coefficients, measured = self._weigh(
            name,
            numbers,
            keys=address(config.seed, ESTIMATOR, step, slots),
            log_w=rollouts.log_w,
            rewards=rewards,
            step=jnp.int32(step),
        )
        sampled = rollouts.sampled.sum()
        measured |= {
            "rollout_tokens": sampled,
            "rollout_occupancy": sampled / work,
            "prompt_padding": 1 - rollouts.prompt_length.mean() / rollouts.prompt.shape[1],
        }
        return rollouts, coefficients, measured | ({} if rewards is None else {"reward": rewards.mean()})

    def transcript(
        self, step: int, slots: np.ndarray, rollouts: Rollouts, coefficients: Coefficients, metrics: Metrics
    ) -> list[dict[str, Any]]:
        """The step's examples at `slots`, the first of the rollouts, as text; `metrics` are the step's own."""
        config = self.setup.config
        estimator = objectives.ESTIMATORS["paft"] if metrics.get("train/controller_paft") else self.estimator
        first = jax.tree.map(lambda x: x[: len(slots)], to_host((rollouts, coefficients)))
        examples = [self.setup.splits["train"].examples[i] for i in self._indices(step)[slots]]
        draws = (config.estimator.num_draws or config.rollouts.num_rollouts) if "num_draws" in estimator.options else 0
        grade = self.setup.task.grade if estimator.answer == "sampled" else None
        return list(rows(*first, examples, self.setup.tokenizer, num_draws=draws, grade=grade))

    def _indices(self, step: int) -> np.ndarray:
        """Which training examples are the step's batch."""
        config = self.setup.config
        return batch_indices(self.setup.splits["train"].parts, config.train.prompts, config.seed, step)

    def _decide(self, previous: Metrics) -> objectives.Decision:
        """The controller's decision; the config's q before anything is measured."""
        if not previous:
            return objectives.Decision(self.setup.config.estimator.q)
        metrics = {name.removeprefix("train/"): value for name, value in previous.items()}
        return objectives.decide(
            objectives.Decision(*(metrics[f"controller_{field}"] for field in objectives.Decision._fields)),
            metrics,
            num_rollouts=self.setup.config.rollouts.num_rollouts,
            **self.setup.config.controller.to_dict(),
        )

    def _shadows(self, params: dict, step: int) -> Metrics:
        """What other estimators would make of the step's groups."""
        indices = self._indices(step)
        group = over_prompts(self.setup.mesh, group_at(self.setup.splits["train"], indices))
        return self.setup.shadows(params, group, step, lambda rollouts: self._rewards(rollouts, indices))

    def _suspects(self, rollouts: Rollouts, coefficients: Coefficients, step: int) -> list[str]:
        """Ids of the examples with a number that is not finite; of the whole batch where none has one."""
        examples, indices = self.setup.splits["train"].examples, self._indices(step)
        log_w, log_prob, weights = to_host((rollouts.log_w, rollouts.log_prob, coefficients))
        bad = np.isnan(log_w) | ~np.isfinite(log_prob).all(-1) | ~np.isfinite(weights).all(0)
        chosen = bad.any(1) if bad.any() else np.ones(len(indices), bool)
        return [examples[i].id for i in indices[chosen]]

    def _rewards(self, rollouts: Rollouts, indices: np.ndarray) -> Array:
        """1 where the sampled answer is the gold string, [P, M] (METHOD §6)."""
        task, split = self.setup.task, self.setup.splits["train"]
        texts = answer_texts(Rollouts(*to_host(rollouts)), self.setup.tokenizer)
        rewards = [
            [0.0 if text is None else task.grade(text, split.examples[i])["exact"] for text in row]
            for i, row in zip(indices, texts, strict=True)
        ]
        return over_prompts(self.setup.mesh, np.array(rewards, np.float32))


def initial_state(setup: Setup) -> TrainState:
    """The base model's parameters and a fresh optimiser, placed on the mesh."""
    config = setup.config
    params = base_parameters(config, setup.task, setup.tokenizer, setup.arch, setup.mesh)
    make_state = functools.partial(start_state, optimizer=make_optimizer(config.optimizer, config.train.steps))
    shardings = state_shardings(setup.mesh, jax.eval_shape(make_state, params))
    return jax.jit(make_state, out_shardings=shardings, donate_argnums=0)(params)


def train(config: ConfigDict, workdir: Path, saved: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Runs, or continues, the experiment in `workdir`; returns the records of metrics.jsonl.

    `saved` is called, in the background, whenever a checkpoint is whole.

    Raises:
      UserError: a setting, an input file or the work directory is not as it must be, or a guard stopped the run.
      Interrupted: a signal asked to stop; the state is saved, the same call goes on.
    """
    run = RunDirectory(workdir, config)
    setup = prepare(config)
    with ExitStack() as stack:
        from_first(lambda: stack.enter_context(owned(workdir)))
        run.claim()
        evaluator = Evaluator(setup.task, setup.tokenizer, setup.arch, setup.mesh, setup.sampling, config)
        state = initial_state(setup)
        with closing(Checkpoints(workdir / "checkpoints", saved)) as checkpoints:
            start = checkpoints.latest
            run.rewind(-1 if start is None else start)
            if start:
                print(f"continuing {workdir} at step {start}")
                state = checkpoints.restore(start, state)
            state = _loop(setup, run, checkpoints, evaluator, state, start or 0)
            if not _has(run, config.train.steps, "eval/test/pass@1"):
                best = checkpoints.best
                params = checkpoints.restore_params(best, state.params)
                _test(
                    run,
                    config.train.steps,
                    evaluator,
                    params,
                    setup.splits["test"],
                    {"eval/test/checkpoint_step": best},
                )
    return run.records()


def _loop(
    setup: Setup, run: RunDirectory, checkpoints: Checkpoints, evaluator: Evaluator, state: TrainState, start: int
) -> TrainState:
    """Steps from `start` to the end; evaluates and saves before the first, at intervals, and behind the last."""
    train, evaluate = setup.config.train, setup.config.evaluate
    one_step = _step_in_force(setup, run, state, start)
    metrics = next((record for record in reversed(run.records()) if "train/loss" in record), {})
    progress = tqdm(total=train.steps, initial=start, desc="train", dynamic_ncols=True, disable=None)
    with stop_requests() as stop, progress:
        for step in range(start, train.steps + 1):
            if step == 0 and not _has(run, 0, "eval/test/pass@1"):
                _test(run, 0, evaluator, state.params, setup.splits["test"], {})
            due = step % evaluate.every == 0 or step == train.steps
            if due and not _has(run, step, "eval/validation/pass@1"):
                scores = evaluator(state.params, setup.splits["validation"], VALIDATION).scores
                run.log(step, _named("validation", scores))
                quality = (scores[f"maj@{evaluate.samples}"], scores["pass@1"])
                if fallen := guards.collapse(setup.config, run.records()):
                    progress.write(f"WARNING: step {step}: {fallen} ({setup.config.guards.on_collapse})")
                    run.log(step, {guards.COLLAPSE: fallen})
                    if setup.config.guards.on_collapse == "best":
                        state, quality = checkpoints.restore(checkpoints.best, state), UNMEASURED
                    one_step = _step_in_force(setup, run, state, step)
                checkpoints.save(step, state, quality, {})
            if step == train.steps:
                break
            if signum := stop.agreed():
                checkpoints.save(step, state, UNMEASURED, {})
                checkpoints.wait()
                raise Interrupted(signum)
            state, rollouts, coefficients, metrics = one_step(state, step, metrics)
            run.log(step, metrics)
            if metrics["train/skipped"]:
                guards.check_skipped(setup.config, run.records())
            if train.save_rollouts_every and step % train.save_rollouts_every == 0:
                slots = np.arange(min(train.save_rollouts_prompts, train.prompts))
                run.write_rows("rollouts/step", step, one_step.transcript(step, slots, rollouts, coefficients, metrics))
            progress.set_postfix_str(f"log P̂ {metrics['train/log_p_hat_mean']:.1f}", refresh=False)
            progress.update()
    return state


def _step_in_force(setup: Setup, run: RunDirectory, state: TrainState, step: int) -> Step:
    """The training step under the settings that guards have left at `step`."""
    return Step(dataclasses.replace(setup, config=guards.in_force(setup.config, run.records(), step)), state)


def _test(run: RunDirectory, step: int, evaluator: Evaluator, params: dict, split: EncodedSplit, more: Metrics) -> None:
    """Figures of the test split go to metrics.jsonl, what became of each example to evaluations/."""
    scores, outcomes = evaluator(params, split, TEST)
    run.write_rows("evaluations/test", step, outcomes)
    run.log(step, _named("test", scores) | more)


def _named(split: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"eval/{split}/{name}": value for name, value in scores.items()}


def _has(run: RunDirectory, step: int, name: str) -> bool:
    return any(record["step"] == step and name in record for record in run.records())
