"""Reads runs and sweeps, finished or not."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tsallis_rl.config.naming import commitment_text, estimator_text, logged_q
from tsallis_rl.config.readers import estimators_reading
from tsallis_rl.config.saved import check_values, with_later
from tsallis_rl.config.schema import FIELDS, TASK_FIELDS
from tsallis_rl.objectives import ESTIMATORS, followed_commitment, samples_rationales
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import json_lines, plain, read_object
from tsallis_rl.runs.own_code import is_dotted
from tsallis_rl.runs.paths import dangling, is_plain_name
from tsallis_rl.runs.run_directory import flatten, read_records
from tsallis_rl.runs.run_lock import is_held
from tsallis_rl.tasks.records import check_fields

DONE, RUNNING, STOPPED, FAILED, WAITING = "done", "running", "stopped", "failed", "not begun"
ESCAPED = 0.05  # value of P̂, or of max c_m/M^q, above which a run has left its start
_METHOD_FIELDS = ("estimator.name", "estimator.commitment", "estimator.q", "estimator.tau", "seed")
# Fields that change neither training nor any figure.
_MEASURING = (
    *("evaluate.kl", "guards.vanished_share"),
    *(name for name in FIELDS if name.startswith("log.")),
)
_NUMBER = (int, float)
_SETTINGS = {  # the settings that the report reads, with their types
    "seed": int, "task.name": str, "task.start": str, "estimator.name": str, "estimator.commitment": str,
    "estimator.q": _NUMBER, "estimator.tau": _NUMBER,
    "rollouts.num_rollouts": int, "train.steps": int, "train.prompts": int, "evaluate.samples": int,
    "optimizer.name": str, "optimizer.learning_rate": _NUMBER, "optimizer.eps": _NUMBER,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """One run directory, finished or not.

    Attributes:
      folder: the run's folder.
      state: DONE, RUNNING, STOPPED, FAILED or WAITING.
      config: its settings, flat; empty if the run never began.
      records: the lines of metrics.jsonl.
      error: why it failed, or what is wrong with its files.
      varied: fields, other than task, start, seed and the estimator with its commitment, in which runs of one task and
        start differ.
      plain: the values of these fields in the plainest run of the task and start (`_plainest`).
    """

    folder: Path
    state: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    error: str = ""
    varied: tuple[str, ...] = ()
    plain: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def estimator(self) -> str:
        """The estimator's name, or the folder's name if there are no settings."""
        return self.config.get("estimator.name", self.folder.name)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """The config's estimator section."""
        section = "estimator."
        found = {name.removeprefix(section): x for name, x in self.config.items() if name.startswith(section)}
        return found | {"name": self.estimator}

    @cached_property
    def _logged_q(self) -> float | None:
        return logged_q(self.records)

    @property
    def _followed(self) -> dict[str, Any]:
        return followed_commitment(self._settings, self._logged_q)

    @property
    def q(self) -> float | None:
        """The power's commitment q; None for an estimator that has none."""
        return self._followed.get("q")

    @property
    def commitment(self) -> str:
        """The name of the commitment; "power" if the estimator has none."""
        return self._followed.get("commitment", "power")

    @property
    def commitment_text(self) -> str:
        """The commitment with its number, as text; "" if the estimator has none."""
        return commitment_text(self._settings, self._logged_q)

    @property
    def label(self) -> str:
        """The estimator's name in tables and legends; a user's own estimator has its options added."""
        is_ours = self.estimator in ESTIMATORS and not is_dotted(self.estimator)
        return self.estimator.upper() if is_ours else estimator_text(self._settings)

    @property
    def setting(self) -> str:
        """The task and its start; runs of different settings have separate figures and are never pooled."""
        return f"{self.config.get('task.name')}, {self.config.get('task.start')} start"

    @property
    def variant(self) -> str:
        """The varied fields in which the run differs from the plainest one, with their values, as text."""
        values = {field: self.config.get(field) for field in self.varied}
        differ = [field for field, value in values.items() if repr(value) != repr(self.plain.get(field))]
        return ", ".join(f"{field.removesuffix('.name').rpartition('.')[2]}={values[field]}" for field in differ)

    @property
    def method(self) -> str:
        """The run's name in tables and legends; runs that differ only in their seed share it."""
        name = " ".join(filter(None, (self.label, self.commitment_text)))
        return f"{name}, {self.variant}" if self.variant else name

    @property
    def _schedule(self) -> str:
        return self.config.get("estimator.schedule", "constant")

    @property
    def q_is_constant(self) -> bool:
        """Whether no schedule moves q."""
        return self.q is None or self._schedule == "constant"

    @property
    def part(self) -> str:
        """The prefix of the metrics that are shown; for a mixed start, the one of its cold half."""
        return "cold/" if self.config.get("task.start") == "mixed" else ""

    @property
    def step_part(self) -> str:
        """The prefix of metrics of steps: `part`, but "" if an earlier version logged them for whole batches alone."""
        begun = self.last_step is not None
        logged = any(f"train/{self.part}log_p_hat_mean" in record for record in self.records)
        return self.part if logged or not begun else ""

    @property
    def log_p_hat(self) -> tuple[np.ndarray, np.ndarray]:
        """The curve of log P̂, mean over a step's prompts, in nats."""
        return self.curve(f"train/{self.step_part}log_p_hat_mean")

    @property
    def samples_rationales(self) -> bool:
        """Whether the run's evaluations sample a rationale before the answer."""
        return samples_rationales(self.config.get("evaluate.rationale", "sampled"), ESTIMATORS.get(self.estimator))

    @property
    def _end(self) -> int:
        """The number of updates after which the run has ended."""
        return self.config.get("train.steps", 0)

    @property
    def samples(self) -> int:
        """The number of sampled answers per prompt in an evaluation."""
        return self.config.get("evaluate.samples", 16)

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads a metric's steps and values, without points at which it is missing or was not finite."""
        points = [(r["step"], value) for r in self.records if (value := plain(r.get(name))) is not None]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps, int), np.array(values, float)

    def metric_after(self, name: str) -> float | None:
        """Reads a metric of the best checkpoint on the test split; None before the run's end.

        A run that goes on with more steps was tested at its earlier end as well, which is not this one.
        """
        last = [r for r in self.records if "eval/test/checkpoint_step" in r and r["step"] == self._end]
        return plain(last[-1].get(f"eval/test/{self.part}{name}")) if last else None

    def metric_before(self, name: str) -> float | None:
        """Reads a metric of the model before training on the test split; None before it was measured."""
        name = f"eval/test/{self.part}{name}"
        start = [record for record in self.records if "eval/test/checkpoint_step" not in record]
        return next((value for r in start if (value := plain(r.get(name))) is not None), None)

    def metric_last(self, name: str) -> float | None:
        """Reads a metric of the last checkpoint on the test split; None if it was not measured."""
        steps, values = self.curve(f"eval/test_last/{self.part}{name}")
        return float(values[-1]) if len(values) and steps[-1] == self._end else None

    @property
    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        """The curve of maj@n on validation."""
        return self.curve(f"eval/validation/{self.part}maj@{self.samples}")

    @property
    def escape_step(self) -> int | None:
        """The first step with P̂ (geometric mean over prompts) of at least ESCAPED; None if there is none yet.

        A step with a prompt of which no rollout has weight is none: that prompt is left out of the mean.
        """
        dead = dict(zip(*self.curve(f"train/{self.step_part}dead_groups"), strict=True))
        steps, values = self.log_p_hat
        whole = np.array([not dead.get(step, 0) for step in steps], bool)
        return _first(steps, whole & (values >= np.log(ESCAPED)))

    @property
    def has_advantages(self) -> bool:
        """Whether it follows a q and logged c_m/M^q."""
        return self.q is not None and len(self.curve(f"train/{self.step_part}max_advantage")[0]) > 0

    @property
    def advantage_step(self) -> int | None:
        """The first step with max c_m/M^q > ESCAPED; None if there is none yet, or no q to follow."""
        steps, values = self.curve(f"train/{self.step_part}max_advantage")
        return _first(steps, values > ESCAPED) if self.has_advantages else None

    @property
    def last_step(self) -> int | None:
        """The step of the newest update; None before the first."""
        return max((record["step"] for record in self.records if "train/loss" in record), default=None)

    @property
    def updates(self) -> int:
        """The number of updates it has made."""
        return 0 if self.last_step is None else self.last_step + 1

    def when(self, step: int | None) -> str:
        """Formats the step at which something came; None is "never" for a run that has made all its updates."""
        if step is not None:
            return str(step)
        if self.state == DONE or self.updates >= self.config["train.steps"]:
            return "never"
        return f"not yet (step {self.last_step})" if self.updates else "not yet"

    @cached_property
    def outcomes(self) -> dict[str, dict[str, float]] | None:
        """Each test prompt's outcomes: pass@1, pass@n and maj@n → prompt's id → outcome; None if they were not kept."""
        rows = json_lines(self.folder / "evaluations" / f"test_{self._end:06d}.jsonl")
        if self.part:
            rows = [row for row in rows if f"{row.get('part')}/" == self.part]
        if not rows or not all(map(_is_outcome, rows)):
            return None
        return {
            "pass@1": {row["example"]: row["correct"] / row["samples"] for row in rows},
            f"pass@{self.samples}": {row["example"]: float(row["correct"] > 0) for row in rows},
            f"maj@{self.samples}": {row["example"]: float(row["majority"]) for row in rows},
        }


def _is_outcome(row: Mapping[str, Any]) -> bool:
    """Returns whether a row of evaluations/test_….jsonl counts right answers among its samples."""
    correct, samples = plain(row.get("correct")), plain(row.get("samples"))
    counted = None not in (correct, samples) and 0 <= correct <= samples > 0
    return counted and isinstance(row.get("majority"), bool) and isinstance(row.get("example"), str)


def _first(steps: np.ndarray, reached: np.ndarray) -> int | None:
    return int(steps[reached][0]) if reached.any() else None


def read(folder: Path) -> list[Run]:
    """Reads the run in `folder`, or the runs in its folders, ordered by task, start, estimator, q and seed.

    Raises:
      UserError: the folder holds neither.
    """
    if (folder / "config.json").exists():
        return [_run(folder, {})]
    states = _states(folder / "sweep.json")
    cells = {found.parent.name for found in folder.glob("*/config.json")} | states.keys()
    if not cells:
        if link := dangling(folder):
            raise UserError(f"{link}; name the folder of a run or of a sweep")
        raise UserError(
            f"{folder} is neither a run (it has no config.json) nor a sweep (no folder in it has one); name the "
            "--workdir of tsallis_rl.main or the --out of tsallis_rl.sweep"
        )
    runs = [_run(folder / name, states.get(name, {})) for name in sorted(cells)]
    varied = _varied(runs)
    plainest = {setting: _plainest(some, varied) for setting, some in settings(runs).items()}
    runs = [dataclasses.replace(run, varied=varied, plain=plainest.get(run.setting, {})) for run in runs]
    order = list(ESTIMATORS)
    rank = {name: i for i, name in enumerate(order)}
    return sorted(
        runs,
        key=lambda r: (
            *(not r.config, r.setting, rank.get(r.estimator, 99), r.label),
            *(r.variant, r.commitment, r.config.get("estimator.tau", 0.0), r.q or 0.0, r.config.get("seed", 0)),
        ),
    )


def _varied(runs: Sequence[Run]) -> tuple[str, ...]:
    """Lists the fields in which runs of one task and start differ, besides those that name a method and its seed.

    An estimator's option is compared only among runs whose estimator reads it. Which options a user's own estimator
    reads is not known, so its runs are compared among themselves; options that it alone has are part of its label.
    """
    found: set[str] = set()
    for some in settings(runs).values():
        for field in {field for run in some for field in run.config} - {*_METHOD_FIELDS, *_MEASURING}:
            section, _, option = field.partition(".")
            if section == "estimator" and field not in FIELDS:
                continue
            readers = estimators_reading(option) if section == "estimator" else None
            of_own = {run.estimator for run in some if readers is not None and is_dotted(run.estimator)}
            for names in (readers, *({name} for name in of_own)):
                reading = [run for run in some if names is None or run.estimator in names]
                if len({repr(run.config.get(field)) for run in reading}) > 1:
                    found.add(field)
    return tuple(sorted(found))


def _plainest(runs: Sequence[Run], varied: Sequence[str]) -> dict[str, Any]:
    """Returns the varied fields' values in the first run that has most of them at the schema's defaults."""
    default = {name: field.default for name, field in (FIELDS | TASK_FIELDS).items()}
    counts = [sum(repr(run.config.get(field)) == repr(default.get(field)) for field in varied) for run in runs]
    return {field: runs[counts.index(max(counts))].config.get(field) for field in varied}


def _states(file: Path) -> dict[str, dict[str, str]]:
    """Reads sweep.json: {cell: {state, error}, both text}; empty if it is missing or cannot be read.

    A cell is a folder beside it; a name that is not a plain name would lead elsewhere, and is left out.
    """
    try:
        found = read_object(file)
    except UserError:
        return {}
    cells = {name: state for name, state in found.items() if isinstance(state, dict) and is_plain_name(name)}
    return {name: {key: str(x) for key, x in state.items() if isinstance(x, str)} for name, state in cells.items()}


def _run(folder: Path, kept: dict[str, str]) -> Run:
    """Reads one run; `kept` is its entry in sweep.json."""
    if not (folder / "config.json").exists():
        state = FAILED if kept.get("state") == "failed" else RUNNING if is_held(folder) else WAITING
        return Run(folder=folder, state=state, config={}, records=[], error=kept.get("error", ""))
    try:
        config = read_object(folder / "config.json")
        flat = with_later(flatten(config))
        check_fields(flat, _SETTINGS, str(folder / "config.json"))
        check_values(flat, folder / "config.json")
        records = read_records(folder)
    except (UserError, RecursionError) as error:
        return Run(folder=folder, state=FAILED, config={}, records=[], error=str(error))
    end = flat.get("train.steps")  # a run continued with more steps was tested at an earlier one too
    if any("eval/test/checkpoint_step" in record and record["step"] == end for record in records):
        state = DONE
    elif is_held(folder):
        state = RUNNING
    else:
        state = FAILED if kept.get("state") == "failed" else STOPPED if records else WAITING
    return Run(
        folder=folder, state=state, config=flat, records=records, error=kept.get("error", "") if state == FAILED else ""
    )


def settings(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Groups the runs that have begun by task and start."""
    return _grouped(runs, lambda run: run.setting)


def step_part(runs: Sequence[Run]) -> str:
    """Returns the prefix of the metrics of steps that runs of one task and start share (`Run.step_part`)."""
    return runs[0].part if runs and all(run.step_part == run.part for run in runs) else ""


def methods(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Groups the runs that have begun by method, each with a run per seed."""
    return _grouped(runs, lambda run: run.method)


def _grouped(runs: Sequence[Run], name: Callable[[Run], str]) -> dict[str, list[Run]]:
    """Groups the runs that have begun by `name`, in their given order."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.config:
            found.setdefault(name(run), []).append(run)
    return found
