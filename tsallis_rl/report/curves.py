"""A run's curves as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsallis_rl.runs.cache import writing

# Panel: title, y axis, series as {metric: label}. Colours and dashes both tell series apart, in print as well.
PANELS = (
    ("Validation accuracy", "share correct", {"eval/validation/pass@1": "pass@1", "eval/validation/maj@": "maj@k"}),
    ("Largest advantage", "max c_m / M^q", {"train/max_advantage": "training"}),
    ("Success", "mean log P̂", {"train/log_p_hat_mean": "training", "eval/validation/log_p_hat": "validation"}),
    ("Effective sample size", "rollouts", {"train/effective_sample_size": "training"}),
)
STYLES = (("#0072B2", "-"), ("#D55E00", "--"))


def series(records: Sequence[dict[str, Any]], metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, missing and null values left out; `…/maj@` finds the one with any k behind it."""
    points = [
        (record["step"], value)
        for record in records
        for name, value in record.items()
        if (name.startswith(metric) if metric.endswith("@") else name == metric) and value is not None
    ]
    return [step for step, _ in points], [value for _, value in points]


def draw(workdir: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Writes figures/curves.png and returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for axis, (title, label, wanted) in zip(axes.flat, PANELS, strict=True):
        for (metric, name), (color, dash) in zip(wanted.items(), STYLES, strict=False):
            axis.plot(*series(records, metric), color=color, linestyle=dash, label=name)
        axis.set(title=title, xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        if len(wanted) > 1:
            axis.legend(frameon=False)
    file = workdir / "figures" / "curves.png"
    with writing(file):
        file.parent.mkdir(exist_ok=True)
        figure.savefig(file, dpi=120)
    plt.close(figure)
    return file
