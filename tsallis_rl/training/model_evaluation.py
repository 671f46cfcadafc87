"""Evaluates a model by itself: a checkpoint of a run, or a model before any training."""

import copy
import dataclasses
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from tsallis_rl.config.saved import run_config
from tsallis_rl.evaluation.figures_of_merit import by_example, figures_of_merit
from tsallis_rl.evaluation.written import table, write_evaluation
from tsallis_rl.models import lora
from tsallis_rl.models.architecture import architecture_fingerprint
from tsallis_rl.models.sharding import fit_mesh, mesh_shape, prompt_shards, with_shardings
from tsallis_rl.objectives import ESTIMATORS
from tsallis_rl.runs.cache import check_writable
from tsallis_rl.runs.checkpoints import Checkpoints, read_chosen
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.fingerprints import other_model
from tsallis_rl.runs.processes import from_first
from tsallis_rl.runs.progress import say
from tsallis_rl.sampler.keys import TEST, TRAIN, VALIDATION
from tsallis_rl.tasks.markers import other_markers
from tsallis_rl.tasks.tokenizers import vocabulary_fingerprint
from tsallis_rl.training.base_model import base_parameters
from tsallis_rl.training.checks import check_evaluation, measures_kl, samples_rationales
from tsallis_rl.training.finite import is_broken
from tsallis_rl.training.inputs import check_same_command, check_same_inputs, inputs
from tsallis_rl.training.micro_batches import choose_at_once, device_limit
from tsallis_rl.training.optimizer import START, held_shapes
from tsallis_rl.training.out_of_memory import EVALUATION, LOADING, explained
from tsallis_rl.training.reference import held_references
from tsallis_rl.training.setup import Setup, fit_examples, load_setup

PURPOSES = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


class Request(NamedTuple):
    """The model, checkpoint and split to evaluate, and where to write.

    Attributes:
      run: the folder of a run whose checkpoint is evaluated; None: the model that the config trains from.
      step: of the checkpoint: best, latest or a number.
      split: one of PURPOSES.
      ks: of pass@k and maj@k; empty: 1 and config.evaluate.samples.
      out: the folder to write; None: named by what is evaluated.
    """

    run: Path | None
    step: str
    split: str
    ks: tuple[int, ...]
    out: Path | None


class Result(NamedTuple):
    """Figures and texts of an evaluation, and where they were written.

    Attributes:
      folder: with summary.json, examples.jsonl and samples.jsonl.
      title: what was evaluated, for people.
      table: the figures, for people.
      answers: `Evaluation.answers` of every example.
    """

    folder: Path
    title: str
    table: str
    answers: list[dict[str, Any]]


def evaluate(config: ConfigDict, request: Request) -> Result:
    """Samples, grades and writes; every process must call this, the first one writes.

    Args:
      config: of the run, or of the model; changed as the request asks.
      request: what is evaluated.

    Raises:
      UserError: a setting, a checkpoint or a file is invalid.
    """
    check_same_command(config)
    _fit_devices(config, request)
    ks = _sample(config, request.ks)
    check_evaluation(config, jax.device_count())
    references = _references(config, request.run)
    if request.run is not None:
        _check_step(request.run, request.step)
    from_first(lambda: check_writable(request.out or _evaluations(config, request)))
    setup = load_setup(config, (request.split,))
    config = copy.deepcopy(setup.config)  # with budgets that fit the model's context
    if request.run and (other := from_first(lambda: other_markers(setup.markers, setup.tokenizer, request.run))):
        print(f"NOTE: {other}; the latter is evaluated")
    if jax.process_count() > 1:
        check_same_inputs(inputs(setup))
    if request.run:
        theirs = run_config(request.run, "--run").model  # on every process, since it may look a commit up
        from_first(lambda: _check_model(setup, request.run, theirs))
    with explained(LOADING, setup):
        if request.run:
            step, state = _checkpoint(setup, request.run, request.step, references)
        else:
            step, state = None, {"params": _base(setup)}
        params, start = state["params"], state.get("references", {}).get(START)
    split = setup.splits[request.split]
    wanted = config.evaluate.examples
    if (limit := device_limit()) and not config.rollouts.at_once:
        counted = copy.deepcopy(config)
        counted.task.max_prompt = split.max_prompt  # the widest that occurs
        sizes = (setup.arch, setup.markers.fixed_tokens, jax.device_count(), limit)
        config.rollouts.at_once = choose_at_once(counted, *sizes, trains=False)
    fit_examples(config, min(wanted or len(split), len(split)))
    setup = dataclasses.replace(setup, config=config)
    with explained(EVALUATION, setup):
        ratio = setup.log_ratio_to(start, params)
        found = setup.evaluator(params, split, PURPOSES[request.split], examples=wanted, texts=None, log_ratio=ratio)
    if is_broken(log_p_hat := found.scores["log_p_hat"]):
        say(f"WARNING: log P̂ is {log_p_hat}: the model computes numbers that are not finite")
    metric = setup.task.metric
    about = {
        "model": config.model.size, "run": request.run and str(request.run), "step": step, "task": config.task.name,
        "start": config.task.start, "split": request.split, "examples": len(found.graded), "of": len(split),
        "metric": metric, "seed": config.seed, "max_rationale": config.rollouts.max_rationale,
        "rationale": "sampled" if samples_rationales(config) else "none",
        **{name: config.evaluate[name] for name in ("samples", "temperature", "top_k", "top_p", "greedy")},
    }  # fmt: skip
    figures = figures_of_merit(found.graded, ks, metric)
    folder = request.out or _evaluations(config, request) / _name(config, request, step)
    from_first(lambda: write_evaluation(folder, found, about, figures, by_example(found.graded, ks, metric)))
    model = config.model.size if request.run is None else f"{request.run}, step {step}"
    title = f"{model}: {config.task.name} {request.split}, {config.task.start} start"
    return Result(folder=folder, title=title, table=table(about, found, figures), answers=found.answers)


def _fit_devices(config: ConfigDict, request: Request) -> None:
    """Splits prompts over all devices if a run's own mesh does not fit them; rounds batches up to share equally."""
    devices = jax.device_count()
    is_the_runs = request.run and config.mesh.to_dict() == run_config(request.run, "--run").mesh.to_dict()
    if is_the_runs and fit_mesh(config.mesh, devices):
        print(f"the run's config.mesh is of other devices than the {devices} here: prompts are split over these")
    shards = prompt_shards(mesh_shape(config.mesh, devices))
    given = config.rollouts.at_once
    at_once = config.rollouts.at_once = -(-given // shards) * shards
    unit = shards if at_once == given else at_once
    config.evaluate.prompts = -(-config.evaluate.prompts // unit) * unit


def _sample(config: ConfigDict, ks: tuple[int, ...]) -> tuple[int, ...]:
    """Sets the samples that pass@k and maj@k need; returns the ks, in order."""
    evaluate = config.evaluate
    if evaluate.greedy or evaluate.temperature == 0:
        if ks and max(ks) > 1:
            raise UserError(f"--k={max(ks)}: greedy samples of an example are all the same; leave --k at 1")
        evaluate.samples = 1
    if ks and max(ks) > evaluate.samples:
        print(f"--k={max(ks)}: {max(ks)} answers a prompt are sampled, not config.evaluate.samples={evaluate.samples}")
        evaluate.samples = max(ks)
    return tuple(sorted({*(ks or (1, evaluate.samples))}))


def _check_step(run: Path, step: str) -> None:
    """Refuses a step that is not saved, before minutes of loading; what its checkpoint holds is checked later."""
    if not from_first((run / "checkpoints").is_dir):
        raise UserError(f"--run: the run in {run} has no checkpoints")
    with closing(Checkpoints(run / "checkpoints")) as checkpoints:
        saved = from_first(lambda: checkpoints.steps)
    if not saved or (step.isdecimal() and int(step) not in saved):
        raise _no_step(run, step, saved)


def _no_step(run: Path, step: str, steps: Sequence[int]) -> UserError:
    return UserError(f"--step={step}: {run} has sound checkpoints of {list(steps) or 'no step'}")


def _references(config: ConfigDict, run: Path | None) -> tuple[str, ...]:
    """Returns (START,) if the KL to it is measured, that is, asked for and held by the run's checkpoints; else ().

    Raises:
      UserError: it is asked for but not held.
    """
    held = START in held_references(run_config(run, "--run")) if run else False
    if config.evaluate.kl and not held:
        raise UserError(
            f"config.evaluate.kl=True: {f'the checkpoints of {run} hold' if run else 'a model before training has'} no "
            "start to measure the KL to; train with it (python -m tsallis_rl.main), and leave it out here"
        )
    if not held or START not in held_references(config):
        return ()
    if not measures_kl(config):
        print("NOTE: the KL to the run's start is not measured: that takes rationales drawn from the model itself")
        return ()
    return (START,)


def _check_model(setup: Setup, run: Path, theirs: ConfigDict) -> None:
    """Refuses to evaluate a run's parameters as another model: with other arithmetic, or ids that mean other text."""
    ours = setup.config.model
    found = {
        "tokenizer": vocabulary_fingerprint(setup.tokenizer),
        "architecture": architecture_fingerprint(dataclasses.replace(setup.arch, dtype=theirs.dtype)),
    }
    if other := other_model(found, run):
        names = [name for name in ours if ours[name] != theirs[name] and name not in ("dtype", "remat", "attention")]
        given = [f"config.model.{name}={ours[name]!r} (the run: {theirs[name]!r})" for name in names]
        told = f"; given are {', '.join(given)}" if given else ""
        raise UserError(f"--run: {run} holds another model than is set up here {other}{told}")


def _checkpoint(setup: Setup, run: Path, step: str, references: Sequence[str]) -> tuple[int, dict[str, dict]]:
    """Reads the parameters of a run's checkpoint onto the mesh; frozen ones in the dtype in which they are kept.

    Args:
      setup: of the run.
      run: its folder.
      step: best (on validation), latest or a number.
      references: to be read as well: START or none.

    Returns:
      the step, and the parts of its state.
    """

    def choose(checkpoints: Checkpoints) -> int:
        sound = from_first(lambda: checkpoints.sound_steps)
        chosen = {"best": checkpoints.best, "latest": checkpoints.latest}.get(step, step)
        if chosen is None or int(chosen) not in sound:
            raise _no_step(run, step, sound)
        return int(chosen)

    shapes = held_shapes(setup.arch)
    start = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, setup.arch.dtype), lora.trained(shapes))
    parts = {"params": shapes} | ({"references": dict.fromkeys(references, start)} if references else {})
    like = with_shardings(parts, setup.mesh)
    return read_chosen(run / "checkpoints", choose, lambda checkpoints, at: (at, checkpoints.restore_parts(at, like)))


def _base(setup: Setup) -> dict:
    """Makes the parameters from which a run of the config would start."""
    return base_parameters(setup.config, setup.task, setup.markers, setup.arch, setup.mesh)


def _evaluations(config: ConfigDict, request: Request) -> Path:
    """Returns the folder of all evaluations of a run or of a model."""
    return request.run / "evaluations" if request.run else Path("evaluations") / Path(config.model.size).name


def _name(config: ConfigDict, request: Request, step: int | None) -> str:
    """Names a folder that evaluations of other splits, steps, samplings or subsets do not share."""
    evaluate = config.evaluate
    parts = [] if request.run else [config.task.name, config.task.start]
    parts += [request.split, *([f"step{step}"] if request.run else []), f"n{evaluate.samples}"]
    parts += ["greedy"] if evaluate.greedy else []
    if samples_rationales(config) != ESTIMATORS[config.estimator.name].rationale:
        parts += [f"rationale-{evaluate.rationale}"]
    for name, short, default in (("temperature", "t", 1.0), ("top_k", "k", 0), ("top_p", "p", 1.0)):
        parts += [f"{short}{evaluate[name]:g}"] if evaluate[name] != default else []
    parts += [f"{evaluate.examples}examples"] if evaluate.examples else []
    parts += [f"seed{config.seed}"] if config.seed else []
    return "-".join(parts)
