"""The training loop: step after step, with evaluations, checkpoints and control between them.

A run is a function of (config, data, step): data order comes from (seed, step), keys from (seed, step, example,
rollout, position), and what decides the next step is the control state, saved with every checkpoint. So a run that was
stopped continues exactly where it was.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tsallis_rl.evaluation.evaluator import Evaluation
from tsallis_rl.runs.agreement import check_shared
from tsallis_rl.runs.checkpoints import UNMEASURED, Checkpoints, RemovedError
from tsallis_rl.runs.hub import record_commit, with_recorded_commit
from tsallis_rl.runs.processes import ending_itself, from_first
from tsallis_rl.runs.progress import doing, reporting, say
from tsallis_rl.runs.run_directory import ROLLOUTS, RunDirectory
from tsallis_rl.runs.run_lock import hold_run_lock
from tsallis_rl.runs.signals import Interrupted, StopRequest, stop_requests
from tsallis_rl.sampler.keys import TEST
from tsallis_rl.tasks.markers import keep_markers
from tsallis_rl.training.control import (
    ControlState,
    after_evaluation,
    after_step,
    control_from_dict,
    evaluation_is_due,
    initial_control,
    watch_rationales,
)
from tsallis_rl.training.earlier_run import Origin, find_origin, keep_origin
from tsallis_rl.training.finite import check_parameters, check_probabilities, is_broken
from tsallis_rl.training.inputs import check_same_command, keep_inputs
from tsallis_rl.training.micro_batches import device_limit, fit_memory
from tsallis_rl.training.optimizer import State
from tsallis_rl.training.out_of_memory import EVALUATION, LOADING, explained
from tsallis_rl.training.setup import Setup, initial_state, prepare, saved_state
from tsallis_rl.training.step import StepOutput, TrainingStep
from tsallis_rl.training.telling import Telling, opening

REMEDIES = (
    "if they are to be kept, see config.rollouts.min_rationale and the fields of config.regularizer; "
    "config.guards.vanished_share=0 turns this guard off"
)


@dataclasses.dataclass
class Run:
    """A run under way: what it is made of, and where it stands.

    Attributes:
      setup: what the config decides.
      directory: the files that people read.
      checkpoints: what it continues from.
      state: the learner's current state.
      control: what decides the next step.
      step: updates made so far, including skipped ones.
      telling: reports its progress.
    """

    setup: Setup
    directory: RunDirectory
    checkpoints: Checkpoints
    state: State
    control: ControlState
    step: int
    telling: Telling


def train(config: ConfigDict, workdir: Path, saved: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Runs, or continues, the experiment in `workdir`; returns the records of metrics.jsonl.

    `saved` is called, in the background, whenever a checkpoint is complete.

    Raises:
      UserError: a setting, an input file or the work directory is invalid, or a guard stopped the run.
      Interrupted: a signal asked to stop; the state is saved, and the same call continues the run.
    """
    check_same_command(config)
    directory = RunDirectory(workdir, config)
    directory.check_loggers()
    origin = find_origin(config.train.init, workdir)
    setup = prepare(with_recorded_commit(config, workdir))
    with ExitStack() as stack:
        stack.enter_context(reporting())
        from_first(lambda: stack.enter_context(hold_run_lock(workdir)))
        check_shared(workdir)
        directory.claim()
        from_first(lambda: record_commit(config, workdir))
        from_first(lambda: keep_markers(setup.markers, setup.tokenizer, workdir))
        limit = device_limit()
        setup = fit_memory(setup, limit, workdir)
        keep = config.train.keep_checkpoints
        checkpoints = stack.enter_context(closing(Checkpoints(workdir / "checkpoints", saved, keep)))
        stack.enter_context(ending_itself())
        start = checkpoints.latest
        keep_inputs(setup, workdir, continues=start is not None)
        tested = start is not None and control_from_dict(checkpoints.control(start)).tested_at >= start
        directory.rewind(-1 if start is None else start, tested=tested)
        print(opening(setup, workdir, limit, start or 0), flush=True)
        stack.enter_context(directory.logged())
        run = (
            begin(setup, directory, checkpoints, origin)
            if start is None
            else resume(setup, directory, checkpoints, start)
        )
        with stop_requests() as stop:
            if start is None:
                found = evaluate_test(run, run.state.params)
                check_probabilities(found.scores, setup.config, _source(setup.config))
                record_test(run, {"test": found}, {})
            loop(run, stop)
        finish(run)
    return directory.records()


def begin(setup: Setup, directory: RunDirectory, checkpoints: Checkpoints, origin: Origin | None) -> Run:
    """Begins a run at step 0, with the parameters of `origin` if it has one."""
    with explained(LOADING, setup), doing("making the first parameters"):
        try:
            state = initial_state(setup, origin)
        except RemovedError:  # by the other run, if it is still training
            before, origin = origin, find_origin(setup.config.train.init, directory.path)
            if origin == before or origin is None:
                raise
            say(f"NOTE: the checkpoint of {origin.run} that was found is gone; that of step {origin.step} is taken")
            state = initial_state(setup, origin)
        jax.block_until_ready(state)
    keep_origin(origin, directory.path)
    control = initial_control(setup.config)
    check_parameters(state.params, setup.arch, _source(setup.config))
    return Run(setup, directory, checkpoints, state, control, step=0, telling=Telling(setup))


def _source(config: ConfigDict) -> str:
    """Names the setting that a run's first parameters come from."""
    init, size = config.train.init, config.model.size
    return f"config.train.init={init}" if init else f"config.model.size={size}"


def resume(setup: Setup, directory: RunDirectory, checkpoints: Checkpoints, step: int) -> Run:
    """Restores a run from the checkpoint of a step."""
    with explained(LOADING, setup), doing(f"reading the checkpoint of step {step}"):
        state = jax.block_until_ready(saved_state(setup, checkpoints, step))
    control = control_from_dict(checkpoints.control(step))
    evaluations, steps = setup.config.evaluate.every, setup.config.train.steps
    if step % evaluations and control.evaluated_at == step < steps:
        say(
            f"NOTE: step {step} was the run's end, and evaluated although config.evaluate.every={evaluations}; in a "
            f"run of {steps} steps from the start it is not, which matters if a guard acted on it or it is the best"
        )
    return Run(setup, directory, checkpoints, state, control, step=step, telling=Telling(setup))


def loop(run: Run, stop: StopRequest) -> None:
    """Trains to the last step; evaluates and saves before the first step, at intervals, and after the last.

    Raises:
      Interrupted: `stop` was asked for; the state is saved.
    """
    train = run.setup.config.train
    one_step = TrainingStep(run.setup, run.state)
    if run.step < train.steps:
        one_step.begin_update(run.state, run.step)
    with run.telling.progress(run.step):
        while True:
            if evaluation_is_due(run.control, run.setup.config, run.step):
                evaluate(run)
            if signum := stop.agreed():
                save(run, UNMEASURED)
                run.checkpoints.wait()
                raise Interrupted(signum)
            if run.step == train.steps:
                return
            train_step(run, one_step)


def train_step(run: Run, one_step: TrainingStep) -> None:
    """Takes one step, logs and reports it, and updates control."""
    output = one_step(run.state, run.step, run.control)
    record(run, one_step, output)
    run.telling.step(run.step, output)
    run.state = output.state
    run.control = after_step(run.control, run.setup.config, run.step, output.measured)
    run.step += 1


def record(run: Run, one_step: TrainingStep, output: StepOutput) -> None:
    """Writes a step's metrics and, at intervals, its rollouts as text."""
    train = run.setup.config.train
    run.directory.log(run.step, output.metrics)
    if train.save_rollouts_every and run.step % train.save_rollouts_every == 0:
        positions = np.arange(min(train.save_rollouts_prompts, train.prompts))
        rows = one_step.transcript(output.weighed, run.step, positions, run.control)
        run.directory.write_rows(ROLLOUTS, run.step, rows)


def evaluate(run: Run) -> None:
    """Evaluates on validation, updates control, and saves a checkpoint with that quality."""
    config = run.setup.config
    began = time.perf_counter()
    with explained(EVALUATION, run.setup):
        found = run.setup.validate(run.state)
    seconds = time.perf_counter() - began
    scores = found.scores
    if found.answers:
        run.directory.write_rows("evaluations/validation", run.step, found.answers)
    run.directory.log(run.step, _named("validation", {**scores, "seconds": seconds}))
    run.telling.evaluation(run.step, scores, run.control)
    run.control, fallen = after_evaluation(run.control, config, run.step, scores)
    end_of_think = len(run.setup.markers.end_of_think)
    run.control, vanished = watch_rationales(run.control, config, run.step, scores, end_of_think)
    if vanished:
        run.telling.warn(run.step, f"{vanished}; {REMEDIES}")
        run.directory.log(run.step, {"guard/rationales_vanished": vanished})
    quality = quality_of(scores, config.evaluate.samples)
    if quality == UNMEASURED:
        run.telling.warn(
            run.step,
            f"log P̂ on validation is {scores['log_p_hat']}: the model computes numbers that are not finite, and this "
            "checkpoint is never the best",
        )
    if fallen:
        run.telling.warn(run.step, f"{fallen} ({config.guards.on_collapse})")
        run.directory.log(run.step, {"guard/collapse": fallen})
        if config.guards.on_collapse == "best":
            run.state, quality = run.checkpoints.restore(run.checkpoints.best, run.state), UNMEASURED
    save(run, quality)


def quality_of(scores: Mapping[str, float], samples: int) -> tuple[float, float]:
    """Returns the quality by which checkpoints are compared; UNMEASURED if log P̂ is NaN or +∞."""
    return UNMEASURED if is_broken(scores["log_p_hat"]) else (scores[f"maj@{samples}"], scores["pass@1"])


def save(run: Run, quality: tuple[float, ...]) -> None:
    """Starts saving a checkpoint of the run as it stands."""
    run.checkpoints.save(run.step, run.state, quality, run.control.to_dict())


def finish(run: Run) -> None:
    """Evaluates the best and the last checkpoint on the test split, once; the last one records that it is done.

    If the last checkpoint is the best one, it is evaluated once and its figures are logged under both names. Nothing is
    written before both are measured, so a run that is stopped here evaluates both again.
    """
    if run.control.tested_at < run.step:
        best = run.checkpoints.best
        found = evaluate_test(run, run.checkpoints.restore_params(best, run.state.params))
        last = found if best == run.step else evaluate_test(run, run.state.params)
        record_test(run, {"test": found, "test_last": last}, {"eval/test/checkpoint_step": best})
        run.checkpoints.update_control(run.step, run.control.to_dict())


def evaluate_test(run: Run, params: dict) -> Evaluation:
    """Evaluates parameters on the test split."""
    with explained(EVALUATION, run.setup):
        return run.setup.evaluator(params, run.setup.splits["test"], TEST)


def record_test(run: Run, found: Mapping[str, Evaluation], more: Mapping[str, Any]) -> None:
    """Writes the test evaluations `found`, by name, as eval/NAME/… to one line of metrics.jsonl, with `more`.

    The outcome of each example goes to evaluations/NAME_….jsonl.
    """
    figures: dict[str, Any] = {}
    for name, evaluation in found.items():
        run.directory.write_rows(f"evaluations/{name}", run.step, evaluation.outcomes)
        figures |= _named(name, evaluation.scores)
    run.directory.log(run.step, figures | more)
    run.control = dataclasses.replace(run.control, tested_at=run.step)


def _named(split: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"eval/{split}/{name}": value for name, value in scores.items()}
