"""Replays saved rollouts through any estimator.

Needs no model: the log-weights (and rewards, if answers were sampled) in the run's rollouts/ decide the coefficients,
and its seed the draws. What config.regularizer added to the coefficients is not replayed. NAME@Q sets the commitment;
NAME alone takes the one that the step itself had. Other options are those of the run's config.estimator.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tsallis_rl import objectives
from tsallis_rl.config.saved import run_config
from tsallis_rl.objectives import Coefficients
from tsallis_rl.runs.cache import writing
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import json_lines, plain
from tsallis_rl.runs.paths import plain_number
from tsallis_rl.sampler.keys import ESTIMATOR, example_keys
from tsallis_rl.training.quantities import COLUMNS

MOST_LOG_W = 0.01  # a log-probability, with room for rounding


class Saved(NamedTuple):
    """The groups that a run saved at a step.

    Attributes:
      config: the run's, with the estimator and q that the control state had at the step.
      step: updates made before it.
      rows: P × M of them, group by group, as in the file.
      log_w: [P, M]; for rationales of a proposal, log w̃ = log w + log ρ.
      group: name -> [P, M], the quantities besides log_w that the run kept, such as the rewards of sampled answers.
      coefficients: those that the run's estimator computed, [P, M].
      positions: [P] of each group's example in the step, which decides its draws.
    """

    config: ConfigDict
    step: int
    rows: list[dict[str, Any]]
    log_w: np.ndarray
    group: dict[str, np.ndarray]
    coefficients: Coefficients
    positions: np.ndarray


class Replayed(NamedTuple):
    """The groups' coefficients by one estimator.

    Attributes:
      coefficients: [P, M].
      diagnostics: q, NaN for an estimator without commitment; effective_sample_size, of the weights; max_advantage,
        the largest c_m/M^q, NaN without a commitment to w; negative_share, of the score coefficients; used, rollouts a
        group with a coefficient (the different ones that PAFT drew); size, the mean of Σ|score| over groups.
    """

    coefficients: Coefficients
    diagnostics: dict[str, float]


def load(folder: Path, step: int) -> Saved:
    """Reads a step's rollouts.

    Raises:
      UserError: there is no such run or step, or the file is incomplete.
    """
    config = run_config(folder, "--run")
    file = folder / "rollouts" / f"step_{step:06d}.jsonl"
    if not file.exists():
        there = (plain_number(found.stem[5:]) for found in file.parent.glob("step_*.jsonl"))
        steps = sorted(found for found in there if found is not None)
        listed = f"step{'s' * (len(steps) != 1)} {', '.join(map(str, steps))}" if steps else "no step"
        raise UserError(f"--step={step}: the run saved rollouts of {listed}")
    rows, m = json_lines(file), config.rollouts.num_rollouts
    if not rows or len(rows) % m or len(rows) > config.train.prompts * m:
        raise UserError(
            f"{file} holds {len(rows)} rollouts, which are not {m} of each of at most {config.train.prompts} prompts: "
            "it was cut or edited"
        )

    def column(name: str) -> np.ndarray:
        none = -np.inf if name in ("log_w", "log_rho") else np.nan  # JSON has no infinities
        most = MOST_LOG_W if name == "log_w" else np.inf
        values = [none if name in row and row[name] is None else plain(row.get(name)) for row in rows]
        if None not in values and not max(values) > most:
            return np.array(values, np.float32).reshape(-1, m)
        what = "no number" if None in values else "a number above 0"
        raise UserError(f"{file}: a line has {what} as its {name!r}: it was cut or edited")

    if not (decided := _decision(rows, config)):
        raise UserError(
            f"{file} does not say by which estimator and q its rollouts were weighed: another version of tsallis_rl "
            "wrote it, or it was edited"
        )
    config.estimator.name, config.estimator.q = decided
    log_w = column("log_w")
    if config.proposal.name != "prior":
        log_w = log_w + column("log_rho")
    names = dict.fromkeys(name for row in objectives.ESTIMATORS.values() for name in row.quantities)
    return Saved(
        config=config,
        step=step,
        rows=rows,
        log_w=log_w,
        group={name: column(COLUMNS.get(name, name)) for name in names if COLUMNS.get(name, name) in rows[0]},
        coefficients=Coefficients(score=column("score"), path=column("path")),
        positions=column("position")[:, 0].astype(int) if "position" in rows[0] else np.arange(len(log_w)),
    )


def _decision(rows: Sequence[Mapping[str, Any]], config: ConfigDict) -> tuple[str, float] | None:
    """Finds the estimator that weighed saved rows, and its q or what its schedule starts from; None if they do not say.

    If the rows of an estimator that reads no q have none, it is the config's.
    """
    decided = [(row.get("estimator"), row.get("q_start", row.get("q"))) for row in rows]
    name, q = decided[0]
    known = isinstance(name, str) and name in (*objectives.ESTIMATORS, config.estimator.name)
    if not known or any(pair != decided[0] for pair in decided):
        return None
    if q is None and "q" not in objectives.followed_commitment({**config.estimator, "name": name}):
        q = config.estimator.q
    return (name, q) if isinstance(q, float) and 0 <= q <= 1 else None


def _parse(saved: Saved, estimator: str) -> tuple[objectives.Estimator, dict[str, Any]]:
    """Reads NAME or NAME@Q as an estimator and the settings that it replays with; raises as `replay` does."""
    found = objectives.estimator_at(estimator)
    if found is None:
        names = ", ".join(objectives.ESTIMATORS)
        raise UserError(f"--estimators: {estimator!r} is not NAME or NAME@Q with Q in [0, 1] and NAME of {names}")
    row, q = found
    name, settings = row.name, saved.config.estimator.to_dict()
    if saved.config.proposal.name != "prior":
        settings["baseline"] = "none"  # the only one there is; a run of another estimator than garl has the default
    if q is not None:
        settings |= {"q": q, "schedule": "constant", "commitment": "power"}
    missing = [name for name in row.required if name in row.quantities and name not in saved.group]
    if "rewards" in missing:
        raise UserError(
            f"--estimators: {name} weighs sampled answers by their rewards, and this run "
            f"({saved.config.estimator.name}) sampled none; replay the rollouts of a run that did, such as grpo's"
        )
    if missing:
        raise UserError(
            f"--estimators: {name} needs {', '.join(missing)} of each rollout, which this run "
            f"({saved.config.estimator.name}) did not keep; replay the rollouts of a run of {name}"
        )
    objectives.check(settings | {"name": name}, saved.config.rollouts.num_rollouts)
    objectives.check_proposal(settings | {"name": name}, saved.config.proposal.name, saved.config.rollouts.num_rollouts)
    if "lengths" in row.needs and "lengths" not in saved.group and settings["length_norm"] != "none":
        raise UserError(
            f"--estimators: {name} divides by lengths (config.estimator.length_norm={settings['length_norm']}), which "
            "the run's rollouts lack: an earlier version of tsallis_rl wrote them"
        )
    return row, settings


def replay(saved: Saved, estimator: str) -> Replayed:
    """Computes coefficients and diagnostics by NAME or NAME@Q; on the run's device and software, bitwise the run's.

    Raises:
      UserError: no such estimator, or one that needs what the run did not keep.
    """
    row, settings = _parse(saved, estimator)
    # Repeats saved groups to fill the step's P, so that the same program runs.
    groups = len(saved.log_w)
    repeated = np.arange(saved.config.train.prompts) % groups
    group = {"log_w": saved.log_w} | {name: x for name, x in saved.group.items() if name in row.needs}
    group = {name: jnp.asarray(x[repeated]) for name, x in group.items()}
    group["key"] = example_keys(saved.config.seed, ESTIMATOR, saved.step, saved.positions[repeated])
    program = objectives.compiled_weigh(settings)

    def weigh(several: slice) -> tuple[Coefficients, dict]:
        part = {name: x[several] for name, x in group.items()}
        return program(row.name, objectives.numbers(settings), part, jnp.int32(saved.step))

    whole, _ = weigh(slice(None))
    coefficients = jax.tree.map(lambda x: np.asarray(x[:groups]), whole)
    score, path = coefficients.score, coefficients.path
    _, measured = weigh(slice(groups))
    names = ("q", "effective_sample_size", "max_advantage")
    diagnostics = {name: float(measured.get(name, np.nan)) for name in names}
    diagnostics |= {
        "negative_share": float((score < 0).mean()),
        "used": float(((score != 0) | (path != 0)).sum(1).mean()),
        "size": float(np.abs(score).sum(1).mean()),
    }
    return Replayed(coefficients, diagnostics)


def check_out(out: Path, run: Path) -> None:
    """Refuses to write over what a run keeps, which is everything in its folder."""
    if run.resolve() in out.resolve().parents:
        raise UserError(f"--out={out}: the folder of the run keeps its own files; name another place")


def table(saved: Saved, replayed: dict[str, Replayed]) -> str:
    """Tabulates the diagnostics, one line per estimator, and how far the run's own estimator is from what it saved."""
    own = replay(saved, saved.config.estimator.name).coefficients
    gap = max(np.abs(a - b).max() for a, b in zip(own, saved.coefficients, strict=True))
    same = "the same to the last bit" if gap == 0 else f"largest difference {gap:.2g}"
    beside = ""
    if "regularizer_score" in saved.rows[0]:
        beside = "; what config.regularizer added stands as regularizer_score and regularizer_path in the file"
    heads = ("q", "ESS", "max c/M^q", "negative", "used of M", "Σ|score|")
    lines = [
        f"step {saved.step}: {len(saved.log_w)} groups of {saved.log_w.shape[1]}; the run's own estimator, "
        f"{saved.config.estimator.name}, against what it saved: {same}{beside}",
        f"{'estimator':<20}" + "".join(f"{head:>12}" for head in heads),
    ]
    for name, found in replayed.items():
        values = found.diagnostics.values()
        lines.append(f"{name:<20}" + "".join(f"{'–' if np.isnan(x) else f'{x:.4g}':>12}" for x in values))
    return "\n".join(lines)


def write(file: Path, saved: Saved, replayed: dict[str, Replayed]) -> None:
    """Writes the saved rows, each with {estimator: {score, path}} as `replayed`."""
    with writing(file), file.open("w", encoding="utf-8") as out:
        for i, row in enumerate(saved.rows):
            coefficients = {
                name: {field: float(x.flat[i]) for field, x in found.coefficients._asdict().items()}
                for name, found in replayed.items()
            }
            out.write(json.dumps(row | {"replayed": coefficients}, ensure_ascii=False) + "\n")
