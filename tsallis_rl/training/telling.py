"""Reports on a run: its description, progress bar, a line per evaluation, each warning once, and commands to run next.

The description goes to stdout, like all that is printed before the first step; the rest goes to stderr, above the bar.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any

import jax
from ml_collections import ConfigDict

from tsallis_rl.config.naming import commitment_text, estimator_text
from tsallis_rl.models import SIZES, lora, parameter_shapes
from tsallis_rl.objectives import ESTIMATORS
from tsallis_rl.runs.errors import as_name
from tsallis_rl.runs.json_files import plain
from tsallis_rl.runs.object_store import is_remote
from tsallis_rl.runs.progress import Bar, count_of, labelled, say, span, width
from tsallis_rl.training.control import ControlState, followed
from tsallis_rl.training.memory_plan import GIB, peak, plan
from tsallis_rl.training.proposals import restating_advice
from tsallis_rl.training.setup import Setup
from tsallis_rl.training.step import StepOutput

ROWS = 20  # evaluations between two headings
_HEADS = ("validation", "p@1", "maj@k", "log P̂", "q", "rationale", "tokens/s", "left")
_WIDTHS = (11, 7, 8, 10, 6, 11, 11, 11)


def opening(setup: Setup, workdir: Path, limit: int | None, step: int) -> str:
    """Describes a run before its first step, one item a line; its splits were described when they were read.

    Args:
      setup: of the run.
      workdir: its folder.
      limit: bytes of the smallest device; None if devices do not report them.
      step: at which it continues; 0 if it begins.
    """
    config, arch = setup.config, setup.arch
    shapes = parameter_shapes(arch)
    total, trained = (sum(leaf.size for leaf in jax.tree.leaves(x)) for x in (shapes, lora.trained(shapes)))
    needed = peak(plan(setup.counted_config(), arch, setup.markers.fixed_tokens, jax.device_count())) / GIB
    of_device = f"of a device's {limit / GIB:.1f} GiB" if limit else "GiB on each device"
    processes = jax.process_count()
    lines = {
        "run": f"{workdir}{f', continuing at step {step}' if step else ''}",
        "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}, {processes} process"
        f"{'es' if processes > 1 else ''}",
        "precision": arch.dtype,
        "parameters": f"{total:,}, {'all' if trained == total else f'{trained:,}'} trained",
        "memory": f"{needed:.2g} {of_device}, by the count of --plan",
        "training": f"{count_of(config.train.steps, 'step')} of {count_of(config.train.prompts, 'prompt')} × "
        f"{count_of(config.rollouts.num_rollouts, 'rollout')}",
        "estimator": ", ".join(filter(None, (estimator_text(config.estimator), commitment_text(config.estimator)))),
    }
    return "\n".join(labelled(name, text) for name, text in lines.items())


class Telling:
    """Reports a run's progress on stderr.

    Args:
      setup: of the run.
    """

    def __init__(self, setup: Setup):
        self._setup = setup
        self._bar: Bar | None = None
        self._said: set[str] = set()  # kinds of warning
        self._rows = 0
        self._q: float | None = None  # of the last step; under a floor, the local one
        self._speeds: list[float] = []  # tokens a second of the steps since the last evaluation

    def progress(self, step: int) -> Bar:
        """Opens the bar over the steps, at `step`."""
        self._bar = Bar(desc="train", total=self._setup.config.train.steps, initial=step, called="steps")
        return self._bar

    def warn(self, step: int, text: str, kind: str = "", word: str = "WARNING") -> None:
        """Prints a warning; of one `kind`, only the first."""
        if kind not in self._said:
            say(f"{word}: step {step}: {text}")
            self._said |= {kind} - {""}

    def step(self, step: int, output: StepOutput) -> None:
        """Advances the bar by a step, and prints what a person should know about it."""
        metrics, measured = output.metrics, output.measured
        if advice := closing_advice(self._setup, metrics):
            self.warn(step, advice, "closing", "NOTE")
        if advice := restating_advice(metrics):
            self.warn(step, advice, "restating")
        if measured.skipped:
            examples = ", ".join(map(as_name, measured.bad_examples[:8]))
            text = (
                f"the update is left out, as a loss, gradient or parameter is not finite (examples: {examples}); "
                "further ones are only counted, as train/skipped; "
                f"config.guards.max_skipped={self._setup.config.guards.max_skipped} in a row end the run"
            )
            self.warn(step, text, "skipped")
        self._q = plain(metrics.get("train/q"))
        self._speeds.append(tokens_per_second(metrics))
        if self._bar is not None:
            self._bar.note = f"log P̂ {measured.log_p_hat:.2f}"
            self._bar.more = f"{self._speeds[-1]:,.0f} tokens/s"
            self._bar.update()

    def evaluation(self, step: int, scores: Mapping[str, float], control: ControlState) -> None:
        """Prints the figures of an evaluation on validation."""
        samples = self._setup.config.evaluate.samples
        q = followed(control, self._setup.config, step).get("q") if self._q is None else self._q
        left = self._bar.seconds_left() if self._bar is not None else None
        speed = median(self._speeds) if self._speeds else None
        if not self._rows % ROWS:
            say(row(name.replace("maj@k", f"m@{samples}") for name in _HEADS))
        self._rows, self._speeds = self._rows + 1, []
        say(evaluation_row(step, scores, samples, q=q, speed=speed, left=left))


def row(cells: Iterable[str]) -> str:
    """Right-aligns the cells of an evaluation's line, by their width in a terminal."""
    return "".join(" " * (columns - width(cell)) + cell for cell, columns in zip(cells, _WIDTHS, strict=True))


def evaluation_row(
    step: int, scores: Mapping[str, float], samples: int, *, q: float | None, speed: float | None, left: float | None
) -> str:
    """Writes the line of an evaluation; unknown figures are "–".

    Args:
      step: updates so far.
      scores: of the evaluation.
      samples: n of maj@n.
      q: the commitment of the previous step.
      speed: tokens sampled, per second of a step.
      left: seconds to the end.
    """

    def figure(value: float | None, form: str) -> str:
        return "–" if (found := plain(value)) is None else f"{found:{form}}"

    cells = [f"step {step}", figure(scores["pass@1"], ".3f"), figure(scores[f"maj@{samples}"], ".3f")]
    cells += [figure(scores["log_p_hat"], ".2f"), figure(q, ".2f"), figure(scores.get("rationale_length"), ".1f")]
    return row([*cells, figure(speed, ",.0f"), "–" if left is None else span(left)])


def tokens_per_second(metrics: Mapping[str, Any]) -> float:
    """Computes the tokens that a step sampled, per second of sampling and update together."""
    return metrics["train/rollout_tokens"] / (metrics["train/seconds_rollouts"] + metrics["train/seconds_update"])


def closing_advice(setup: Setup, metrics: Mapping[str, Any]) -> str:
    """Returns which settings to look at if more than half of the rationales did not close by themselves; else ""."""
    forced, unclosed = metrics["train/closed_forced"], metrics["train/unclosed"]
    if not ESTIMATORS[setup.config.estimator.name].rationale or forced + unclosed <= 0.5:
        return ""
    task, rollouts = setup.config.task, setup.config.rollouts
    return (
        f"{forced:.0%} of the rationales were closed by the budget and {unclosed:.0%} ended by an end of sequence: look"
        f" at config.rollouts.max_rationale={rollouts.max_rationale}, .min_rationale={rollouts.min_rationale} and "
        f".unclosed={rollouts.unclosed!r}, and at config.task.start={task.start!r} and "
        f".end_of_think={task.end_of_think!r}"
    )


def next_commands(given: str, config: ConfigDict, arguments: Sequence[str], processes: int) -> str:
    """Lists commands to run next: the report, further steps, an evaluation, and an export of a pretrained model.

    Args:
      given: --workdir, or the folder of a run that was started without it.
      config: of the run.
      arguments: with which it was started.
      processes: of the run; several continue by the same launch.
    """
    steps, name = 2 * config.train.steps, PurePosixPath(given).name
    kept = without(arguments, ("workdir", "config.train.steps"))
    more = [f"--config.train.steps={steps}", f"--workdir={given}"]
    if config.optimizer.schedule == "cosine":  # its end cannot be moved: another run starts where this one ended
        kept = without(arguments, ("workdir", "config.train.init"))
        more = [f"--config.train.init={given}:latest", f"--workdir={given.rstrip('/')}-on"]
    remote = is_remote(given)
    out = [f"--out=evaluations/{name}"] if remote else []
    lines = {} if remote else {"report": ["report", given]}
    lines["go on"] = ["main", *kept, *more]
    lines["evaluate"] = ["evaluate", f"--run={given}", *out]
    if config.model.size not in SIZES or Path(config.model.size).is_dir():
        lines["export"] = ["export", f"--checkpoint={given}", f"--out=models/{name}"]
    told = {label: shlex.join(["python", "-m", f"tsallis_rl.{words[0]}", *words[1:]]) for label, words in lines.items()}
    if processes > 1:
        told["go on"] = f"the same launch with {shlex.join(more)}"
    return "\n".join(f"{f'{label}:':<10}{text}" for label, text in told.items())


def without(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Removes flags, written as --NAME=VALUE or --NAME VALUE, from a command's arguments."""
    found, skips = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        is_one = argument.startswith("-") and name.lstrip("-") in flags
        if not (is_one or skips):
            found.append(argument)
        skips = is_one and not equals
    return found
