"""One training step in four stages: sample, weigh, update, measure."""

import functools
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl import objectives
from tsallis_rl.evaluation.grades import grade_answers
from tsallis_rl.models.backends import compile_threads
from tsallis_rl.models.sharding import prompt_shards, prompts_sharding, shard_prompts, to_host
from tsallis_rl.objectives import Coefficients
from tsallis_rl.objectives.histories import extended
from tsallis_rl.runs.compile_ahead import Call, compile_ahead
from tsallis_rl.runs.compiling import compile_seconds
from tsallis_rl.runs.devices import peak_memory
from tsallis_rl.sampler import roll_out
from tsallis_rl.sampler.batch import PromptBatch, batch_at
from tsallis_rl.sampler.keys import ESTIMATOR, TRAIN, example_keys
from tsallis_rl.sampler.measures import length_figures, measures_of, rationale_figures
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.sampler.sampling_settings import without_rationale
from tsallis_rl.sampler.transcripts import (
    answer_ends,
    answer_texts,
    closing_rates,
    transcript_rows,
    truncated_answers,
)
from tsallis_rl.tasks.base import Example
from tsallis_rl.training.aliases import with_aliases
from tsallis_rl.training.control import ControlState, StepMeasurement, followed
from tsallis_rl.training.data_order import DataOrder, Lengths
from tsallis_rl.training.learner import update
from tsallis_rl.training.log_prob_gaps import gap_figures
from tsallis_rl.training.micro_batches import update_slices
from tsallis_rl.training.optimizer import AVERAGE, State, learning_rate, make_optimizer
from tsallis_rl.training.out_of_memory import COMPARISON, ROLLOUTS, UPDATE, explained
from tsallis_rl.training.packing import longest_rows, pack
from tsallis_rl.training.proposals import Proposal
from tsallis_rl.training.quantities import COLUMNS, Sources, collect, to_reference
from tsallis_rl.training.reference import held_references
from tsallis_rl.training.refill import refilled
from tsallis_rl.training.setup import Setup
from tsallis_rl.training.step_figures import signal_figures, speeds
from tsallis_rl.training.weighed import WeighedRollouts

Metrics = Mapping[str, Any]

OF_PARTS = ("log_p_hat_mean", "dead_groups", "max_advantage")  # logged of each part of a mixed start

_regularize = jax.jit(objectives.regularize, static_argnames="sampled_answers")
_below_eps = jax.jit(objectives.below_eps)


class StepOutput(NamedTuple):
    """The result of a step.

    Attributes:
      state: after the update.
      weighed: the rollouts and coefficients that the update was made from.
      measured: what decides the next step.
      metrics: to log, by name.
    """

    state: State
    weighed: WeighedRollouts
    measured: StepMeasurement
    metrics: Metrics


class TrainingStep:
    """The training step of a run; its programs are compiled once, whatever control decides.

    Args:
      setup: of the run.
      state: gives the shardings of every new state.
    """

    def __init__(self, setup: Setup, state: State):
        config = setup.config
        self.setup, self.config = setup, config
        self.estimator = objectives.ESTIMATORS[config.estimator.name]
        self.sampling = setup.sampling if self.estimator.rationale else without_rationale(setup.sampling)
        self._samples_answers = self.estimator.answer == "sampled"
        self.shape = setup.rollout_shape(
            num_rollouts=config.rollouts.num_rollouts, samples_answers=self._samples_answers
        )
        self.proposal = Proposal(setup, self.sampling, self.shape) if config.proposal.name != "prior" else None
        slices = update_slices(config, prompt_shards(setup.mesh.shape), setup.room)
        sharding = prompts_sharding(setup.mesh)
        self._pack = functools.partial(pack, slices=slices, sharding=sharding, rules=self.sampling.rules)
        optimizer = make_optimizer(config.optimizer, config.train.steps)
        rate = learning_rate(config.optimizer, config.train.steps)
        self._update = jax.jit(
            update,
            out_shardings=(jax.tree.map(lambda x: x.sharding, state), None),
            donate_argnums=0,
            static_argnames=("arch", "optimizer", "slices", "rate"),
        )
        self._ahead = compile_ahead(compile_threads())
        train, window = setup.splits["train"], config.train.length_window
        lengths = Lengths(train.prompt_length, window) if window and len(train.widths) > 1 else None
        self._parts = np.array(train.parts)
        self._order = DataOrder(train.parts, config.train.prompts, config.seed, lengths)
        self._further: dict[int, np.ndarray] = {}  # of the step asked for last: sorting a long epoch takes time
        self._numbers = objectives.numbers(config.estimator)
        self._weigh = objectives.compiled_weigh(config.estimator)
        self._keeps_histories = any(name in objectives.HISTORIES for name in self.estimator.quantities)
        self._terms = objectives.regularizer_terms(config.regularizer)
        self._update_options = {"arch": setup.arch, "optimizer": optimizer, "slices": slices, "rate": rate}
        if AVERAGE in held_references(config):
            self._update_options["decay"] = jnp.float32(config.regularizer.decay)

    def begin_update(self, state: State, step: int) -> None:
        """Starts compiling the update for the longest possible rollouts in threads, while rollouts are sampled."""
        if self._ahead.threads and self.estimator.rationale:  # without rationales no rollout is that long
            batch = self.prompts(step, np.arange(self.config.train.prompts))
            rows = longest_rows(batch, self.shape, self.sampling.rules, prompts_sharding(self.setup.mesh))
            self._ahead.begin(Call(self._update, (state, rows), self._update_options))

    def __call__(self, state: State, step: int, control: ControlState) -> StepOutput:
        """Samples, weighs, updates and measures, with the estimator and q of `control`."""
        programs = compile_seconds()
        with explained(COMPARISON, self.setup):
            compared = self.compare(state, step)
        began = time.perf_counter()
        with explained(ROLLOUTS, self.setup):
            weighed, refill = self.sample_step(state, step, control)
            jax.block_until_ready(weighed.coefficients)
        sampled = time.perf_counter()
        with explained(UPDATE, self.setup):
            state, updated, packed = self.update(state, weighed)
            metrics = self.measure(weighed, updated) | packed | refill | self.part_figures(weighed, step, control)
        metrics |= speeds(metrics, seconds_rollouts=sampled - began, seconds_update=time.perf_counter() - sampled)
        spent = compile_seconds().since(programs)
        metrics |= {"compile_seconds": spent.compiled, "cached_program_seconds": spent.cached}
        measured = StepMeasurement(
            skipped=bool(metrics["skipped"]),
            bad_examples=self.bad_examples(weighed, step) if metrics["skipped"] else (),
            log_p_hat=metrics["log_p_hat_mean"],
            histories=extended(control.histories, to_host(weighed.group)) if self._keeps_histories else {},
        )
        named: Metrics = {f"train/{name}": value for name, value in metrics.items()} | compared
        if measured.skipped:
            named |= {"skipped_examples": measured.bad_examples}
        return StepOutput(state=state, weighed=weighed, measured=measured, metrics=named)

    def sample_step(self, state: State, step: int, control: ControlState) -> tuple[WeighedRollouts, dict[str, float]]:
        """Samples and weighs the step's batch; config.train.refill replaces its groups without signal.

        Returns:
          the groups to train on, and the metrics of `refilled`; {} without config.train.refill.
        """
        prompts = self.config.train.prompts

        def of_batch(r: int) -> WeighedRollouts:
            return self.sample_and_weigh(state, step, np.arange(r * prompts, (r + 1) * prompts), control)

        if not self.config.train.refill:
            return of_batch(0), {}
        pad, sharding = self.setup.splits["train"].pad, prompts_sharding(self.setup.mesh)
        weighed, figures = refilled(of_batch, self.batches(step), pad, sharding)
        coefficients, diagnostics = self.weigh(weighed.rollouts, weighed.group or {}, step, weighed.positions, control)
        return weighed._replace(coefficients=coefficients, measured=(weighed.measured or {}) | diagnostics), figures

    def sample_and_weigh(
        self, state: State, step: int, positions: np.ndarray, control: ControlState
    ) -> WeighedRollouts:
        """Samples and weighs the examples at `positions` in the step (see `indices`)."""
        rollouts, log_rho, measured = self.sample(state.params, step, positions)
        if self.config.rollouts.aliases:
            indices = self.indices(step, positions)
            rollouts = with_aliases(rollouts, state.params, self.setup, step, positions, indices)
        group, graded = self.quantities(self.estimator.quantities, state, rollouts, step, positions, control)
        coefficients, diagnostics = self.weigh(rollouts, group, step, positions, control, log_rho)
        regularizer = None
        if self._terms:
            regularizer, regularized = self.regularize(state, rollouts)
            measured |= regularized
        measured = diagnostics | measured | graded
        return WeighedRollouts(rollouts, coefficients, measured, group, regularizer, log_rho, positions)

    def prompts(self, step: int, positions: np.ndarray) -> PromptBatch:
        """Returns the prompts at `positions` in the step, padded to the width of the whole batches they belong to.

        Part of a batch is therefore computed at the width of the whole batch.
        """
        train = self.setup.splits["train"]
        whole = self.batches(step)[np.unique(positions // self.config.train.prompts)]
        width = train.width(whole.ravel())
        return shard_prompts(self.setup.mesh, batch_at(train, self.indices(step, positions), width))

    def sample(self, params: dict, step: int, positions: np.ndarray) -> tuple[Rollouts, Array | None, dict[str, Array]]:
        """Rolls out the training examples at `positions` in the step; the positions are part of the keys.

        Returns:
          the rollouts; log ρ [P, M] if a proposal drew them, None for the prior; metrics.
        """
        batch = self.prompts(step, positions)
        if self.proposal:
            indices = self.indices(step, positions)
            drawn = self.proposal(params, batch, step, positions, indices)
            rollouts, computed = drawn.rollouts, drawn.computed_tokens
            log_rho, measured = drawn.log_rho, drawn.measured
        else:
            keys = example_keys(self.config.seed, TRAIN, step, positions)
            at_once = self.config.rollouts.at_once
            rollouts, computed = roll_out(params, batch, keys, self.sampling, self.shape, at_once=at_once)
            log_rho, measured = None, {}
        tokens = rollouts.sampled.sum()
        measured |= {
            "rollout_tokens": tokens,
            "rollout_occupancy": tokens / computed,
            "prompt_padding": 1 - rollouts.prompt_length.mean() / rollouts.prompt.shape[1],
        }
        return rollouts, log_rho, measured

    def quantities(
        self,
        names: Collection[str],
        state: State,
        rollouts: Rollouts,
        step: int,
        positions: np.ndarray,
        control: ControlState | None = None,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Computes the quantities `names` of the rollouts at `positions`: name → [P, M]; also returns metrics."""
        logged: dict[str, Array] = {}

        def reward(rollouts: Rollouts) -> Array:
            rewards, graded = self.grade(rollouts, self.indices(step, positions))
            logged.update(graded)
            return rewards

        sources = Sources(rollouts, reward, lambda: self.prompts(step, positions), state, self.setup)
        return collect(names, sources, control.histories if control else {}), logged

    def weigh(
        self,
        rollouts: Rollouts,
        group: Mapping[str, Array],
        step: int,
        positions: np.ndarray,
        control: ControlState,
        log_rho: Array | None = None,
    ) -> tuple[Coefficients, dict[str, Array]]:
        """Turns log-weights and quantities into coefficients [P, M], with the estimator and q of `control`.

        For a proposal's rollouts, the log-weights are those of w̃ = w ρ.
        """
        keys = example_keys(self.config.seed, ESTIMATOR, step, positions)
        log_w = rollouts.log_w if log_rho is None else rollouts.log_w + log_rho
        return self._weigh(
            control.estimator,
            self._numbers | {"q": jnp.float32(control.q)},
            {"key": keys, "log_w": log_w, **group},
            jnp.int32(step),
        )

    def regularize(self, state: State, rollouts: Rollouts) -> tuple[Coefficients, dict[str, Array]]:
        """Computes what config.regularizer adds to the coefficients [P, M]; also returns metrics.

        |z| counts the rationale's sampled tokens, including a sampled end-of-think but not a forced one.
        """
        ratio = None
        if "kl" in self._terms:
            ratio = to_reference(rollouts, state, self.setup, answers=self._samples_answers)
        mask = rollouts.score_mask
        log_prob = jnp.where(mask, rollouts.log_prob, 0.0).sum(-1)
        ours = {"log_prob": log_prob, "length": mask.sum(-1), "log_ratio": ratio}
        return _regularize(self._terms, **ours, sampled_answers=self._samples_answers)

    def update(self, state: State, weighed: WeighedRollouts) -> tuple[State, dict[str, Any], dict[str, float]]:
        """Packs tokens with a nonzero coefficient and takes an optimiser step.

        Returns:
          the new state; the update's scalars and gaps, on the device; the packing's scalars.
        """
        rows, packed = self._pack(weighed.rollouts, weighed.total)
        state, updated = self._ahead.make(Call(self._update, (state, rows), self._update_options))
        optimizer = self.config.optimizer
        if optimizer.name == "adamw":
            updated |= {"below_eps": _below_eps(state.opt_state, b2=optimizer.b2, eps=optimizer.eps)}
        return state, updated, packed

    def measure(self, weighed: WeighedRollouts, updated: dict[str, Any]) -> dict[str, float]:
        """Moves a step's scalars to the host and adds the figures of its rollouts and groups."""
        found = to_host(weighed.measured | updated)
        gaps = gap_figures(found.pop("log_prob_gaps"))
        metrics = {name: float(value) for name, value in found.items()} | gaps
        metrics["grad_norm_clipped"] = min(metrics["grad_norm"], self.config.optimizer.clip)
        rollouts, rewards = weighed.rollouts, (weighed.group or {}).get("rewards")
        lengths = {"prompt_length": rollouts.prompt_length, "answer_length": rollouts.answer_length}
        measures, lengths, closing, total, rewards = to_host(
            (measures_of(rollouts), lengths, rollouts.closing, weighed.total, rewards)
        )
        figures = rationale_figures(measures)
        if not self.estimator.rationale:
            figures = {"rationale_length": figures["rationale_length"]}
        for name, of_rollouts in lengths.items():
            figures |= length_figures(name, of_rollouts[of_rollouts > 0])
        return metrics | closing_rates(closing) | figures | signal_figures(total, rewards) | peak_memory()

    def part_figures(self, weighed: WeighedRollouts, step: int, control: ControlState) -> dict[str, float]:
        """Measures the log-weights of each part of a batch that mixes several: cold/log_p_hat_mean, warm/…"""
        parts = self._parts[self.indices(step, weighed.positions)]
        if len(names := np.unique(parts)) < 2:
            return {}
        log_w, group = to_host((weighed.log_w, weighed.group or {}))
        found = {}
        for part in names:
            chosen = parts == part
            rollouts = weighed.rollouts._replace(log_w=log_w[chosen])
            of_part = {name: x[chosen] for name, x in group.items()}
            _, measured = self.weigh(rollouts, of_part, step, weighed.positions[chosen], control)
            found |= {f"{part}/{name}": float(measured[name]) for name in OF_PARTS if name in measured}
        return found

    def compare(self, state: State, step: int) -> Metrics:
        """Measures other estimators' gradients on the step's groups, every config.shadow.every steps.

        With config.train.refill these are the groups of the step's batch before any is replaced.
        """
        comparison = self.setup.comparison
        if comparison is None or step % self.config.shadow.every:
            return {}
        positions = np.arange(self.config.train.prompts)
        batch = self.prompts(step, positions)
        logged: dict[str, Array] = {}

        def quantities(rollouts: Rollouts, names: Collection[str]) -> dict[str, Array]:
            group, graded = self.quantities(names, state, rollouts, step, positions)
            logged.update({"shadow/grader_errors": graded["grader_errors"]} if graded else {})
            return group

        began = time.perf_counter()
        compared = comparison(state.params, batch, step, quantities)
        more = {name: float(x) for name, x in to_host(logged).items()} | {"shadow/seconds": time.perf_counter() - began}
        return compared | more

    def indices(self, step: int, positions: np.ndarray) -> np.ndarray:
        """Returns the indices of the training examples at `positions` in the step.

        Positions 0 to P − 1 are the step's batch, r P to (r + 1) P − 1 its r-th further one (config.train.refill).
        """
        return self.batches(step).ravel()[positions]

    def batches(self, step: int) -> np.ndarray:
        """Returns the training examples [1 + n, P]: the step's batch, then n ≤ config.train.refill further ones."""
        batches, further = self._order.batch(step)[None], self.config.train.refill
        if not further:
            return batches
        if step not in self._further:
            train = self.setup.splits["train"]
            buckets = np.searchsorted(train.widths, train.prompt_length)
            self._further = {step: self._order.further_batches(step, buckets)[:further]}
        return np.concatenate([batches, self._further[step]])

    def grade(self, rollouts: Rollouts, indices: np.ndarray) -> tuple[Array, dict[str, Array]]:
        """Grades the sampled answers of the training examples `indices` (docs/method.md §6).

        Returns:
          the rewards [P, M]; and metrics: their mean, the number of answers whose grade failed, and the share of
          answers that were cut off before their end.
        """
        on_host, setup = to_host(rollouts), self.setup
        rewards, failed = self._rewards(on_host, [setup.splits["train"].examples[i] for i in indices])
        truncated = truncated_answers(on_host, setup.markers.stop_ids).astype(np.float32)
        rewards, failed, truncated = (shard_prompts(setup.mesh, x) for x in (rewards, failed, truncated))
        answers = jnp.maximum((rollouts.answer_length > 0).sum(), 1)
        return rewards, {
            "reward": rewards.mean(),
            "grader_errors": failed.sum(),
            "answer_truncated": truncated.sum() / answers,
        }

    def _rewards(self, rollouts: Rollouts, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        """Computes the rewards of rollouts on the host, and which grades failed: [P, M] each.

        With config.rollouts.answer_needs_end an answer without its end earns 0, as log w scores gold with its end.
        """
        setup, name = self.setup, self.setup.task.reward
        texts = answer_texts(rollouts, setup.tokenizer, setup.markers.stop_ids)
        missing = {name: 0.0}
        grades = [[missing if x is None else x for x in row] for row in grade_answers(setup.task, examples, texts)]
        rewards = np.array([[of_answer.get(name, 0.0) for of_answer in row] for row in grades], np.float32)
        failed = np.array([[name not in of_answer for of_answer in row] for row in grades], np.float32)
        if self.config.rollouts.answer_needs_end:
            rewards *= answer_ends(rollouts, setup.tokenizer, setup.markers.stop_ids)
        return rewards, failed

    def transcript(
        self, weighed: WeighedRollouts, step: int, groups: np.ndarray, control: ControlState
    ) -> list[dict[str, Any]]:
        """Renders the rollouts of the groups at indices `groups` as rows of text, coefficients and quantities.

        `score` and `path` are the estimator's coefficients; what config.regularizer adds has its own columns. With
        config.train.refill, `position` is that of the group's example in the step (see `indices`).
        """
        estimator = objectives.ESTIMATORS[control.estimator]
        found = to_host(weighed._replace(measured=None, positions=None))
        some = jax.tree.map(lambda x: x[groups], found)
        rollouts, coefficients, group, regularizer = some.rollouts, some.coefficients, some.group, some.regularizer
        positions = weighed.positions[groups]
        examples = [self.setup.splits["train"].examples[i] for i in self.indices(step, positions)]
        draws = self.config.estimator.num_draws or self.config.rollouts.num_rollouts
        rows = transcript_rows(
            rollouts,
            coefficients,
            examples,
            self.setup.tokenizer,
            self.setup.markers.stop_ids,
            log_w=some.log_w,
            num_draws=draws if "num_draws" in estimator.options else 0,
            rewards=group.get("rewards"),
        )
        more = {COLUMNS.get(name, name): x for name, x in group.items()}
        if regularizer is not None:
            more |= {"regularizer_score": regularizer.score, "regularizer_path": regularizer.path}
        if self.proposal:
            more |= self.proposal.columns(some.log_rho)
        if self.config.train.refill:
            more["position"] = np.broadcast_to(positions[:, None], rollouts.log_w.shape)
        followed_here = {"estimator": control.estimator, **followed(control, self.config, step)}
        return [
            row | {name: x.ravel()[i].item() for name, x in more.items()} | followed_here for i, row in enumerate(rows)
        ]

    def bad_examples(self, weighed: WeighedRollouts, step: int) -> list[str]:
        """Returns ids of the step's examples with a number that is not finite; of the whole batch if none has one."""
        rollouts = weighed.rollouts
        log_w, log_prob, coefficients = to_host((rollouts.log_w, rollouts.log_prob, weighed.total))
        bad = np.isnan(log_w) | ~np.isfinite(log_prob).all(-1) | ~np.isfinite(coefficients).all(0)
        indices = self.indices(step, weighed.positions)
        chosen = bad.any(1) if bad.any() else np.ones(len(indices), bool)
        return [self.setup.splits["train"].heads[i].id for i in indices[chosen]]
