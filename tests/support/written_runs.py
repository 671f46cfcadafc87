"""Writes run directories by hand, as a training run leaves them."""

import json

from configs import hops

STEPS = 4
NAMES = ("pass@1", "pass@4", "maj@4")


def make_run(folder, estimator="garl", q=0.75, seed=0, p1=None, advantage=(), log_p=(), validation=(0.0, 0.5), **more):
    """Writes a run directory; `p1` is the test p@1, earned on 2 of 4 prompts, or None for a run without one.

    `more` are fields of the config.
    """
    config = hops.get_config(f"estimator={estimator},q={q}")
    fields = {"seed": seed, "train.steps": STEPS, "evaluate.samples": 4, "task.test_examples": 4}
    config.update_from_flattened_dict(fields | more)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    records = [
        {"step": i, "train/loss": 1.0, "train/max_advantage": a, "train/log_p_hat_mean": p, "train/below_eps": 0.5}
        | {"train/effective_sample_size": 4.0, "train/unique_draws": 3.0, "train/rationale_length": 4.0}
        for i, (a, p) in enumerate(zip(advantage, log_p, strict=True))
    ]
    records += [{"step": 2 * i} | {f"eval/validation/{name}": x for name in NAMES} for i, x in enumerate(validation)]
    if p1 is not None:
        records.append(evaluated(STEPS, p1, min(1.0, 4 * p1), p1) | {"eval/test/checkpoint_step": 2})
        counts = [round(8 * p1), round(8 * p1), 0, 0]
        rows = [{"example": str(i), "correct": c, "samples": 4, "majority": c > 2} for i, c in enumerate(counts)]
        (folder / "evaluations").mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "evaluations" / f"test_{STEPS:06d}.jsonl").write_text(lines)
    append(folder, *records)
    return folder


def evaluated(step, *figures, split="test"):
    """Returns a record of p@1, p@4 and m@4; a figure that is None is left out."""
    pairs = zip(NAMES, figures, strict=True)
    return {"step": step} | {f"eval/{split}/{name}": value for name, value in pairs if value is not None}


def append(folder, *records):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))
