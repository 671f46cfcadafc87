"""Draws figures of the README and of docs/ from runs of the grids.

    python -m tsallis_rl.sweep --grid=configs/grids/hops.py
    python -m tsallis_rl.sweep --grid=configs/grids/studies.py
    python docs/figures/draw.py --grid=runs/sweep-hops --studies=runs/sweep-studies --out=docs/figures

cold_start.png and sweep.png are of the grid, eps_study.png of the studies. trade_off.png and commitments.png are those
of `python -m tsallis_rl.laboratory`.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from absl import app, flags

from tsallis_rl.laboratory.figures import SETTINGS
from tsallis_rl.report.figures import FIGURES
from tsallis_rl.report.panels import Line, draw_line, style_of_run
from tsallis_rl.report.runs import Run, methods, read, settings

GRID = flags.DEFINE_string("grid", None, "Folder of the sweep of configs/grids/hops.py.")
STUDIES = flags.DEFINE_string("studies", None, "Folder of the sweep of configs/grids/studies.py.")
OUT = flags.DEFINE_string("out", "docs/figures", "Folder to draw into.")


def plainest(folder: str, setting: str) -> list[Run]:
    """Selects the runs of a setting that differ from each other in estimator, q and seed alone."""
    return [run for run in settings(read(Path(folder)))[setting] if not run.variant]


def cold_start(runs: Sequence[Run], figure: plt.Figure) -> None:
    """Draws log P̂ and p@1 of GARL's first seed, a line a q."""
    of_garl = [run for run in runs if run.estimator == "garl" and run.config["seed"] == 0]
    figure.set_size_inches(9, 3.4)
    axes = figure.subplots(1, 2)
    names = {"log_p_hat": "mean log P̂, validation", "pass@1": "p@1, validation"}
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        for run in of_garl:
            draw_line(axis, Line([run], f"q = {run.q:g}", style_of_run(run)), f"eval/validation/{name}")
        axis.set(xlabel="step", ylabel=label)
    axes[1].set_ylim(-0.04, 1.04)
    axes[0].legend(loc="center right")


def sweep(runs: Sequence[Run], figure: plt.Figure) -> None:
    """Draws the report's figure of success and accuracy."""
    FIGURES["success"][1](runs, figure)


def eps_study(runs: Sequence[Run], figure: plt.Figure) -> None:
    """Draws log P̂ of every seed by Adam's eps, from a cold start."""
    wanted = {"": "eps = 1e-8", "eps=1e-12": "eps = 1e-12", "eps=1e-20": "eps = 1e-20"}
    of_garl = [run for run in runs if run.estimator == "garl"]
    figure.set_size_inches(10.5, 3.2)
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.1))
    for axis, (variant, title) in zip(axes, wanted.items(), strict=False):
        cold = [run for run in of_garl if run.setting == "hops, cold start" and run.variant == variant]
        for some in methods(cold).values():
            for run in some:
                label = f"q = {run.q:g}" if run is some[0] else "_"
                draw_line(axis, Line([run], label, style_of_run(run) | {"marker": ""}), "train/log_p_hat_mean")
        axis.set(title=f"cold, Adam {title}", xlabel="step", ylim=(-80, 3))
        axis.legend(loc="center right")
    axes[0].set_ylabel("mean log P̂, training")
    mixed = [run for run in of_garl if run.setting == "hops, mixed start" and not run.variant]
    for some in methods(mixed).values():
        name = "eval/validation/cold/pass@1"
        draw_line(axes[3], Line(some, f"q = {some[0].q:g}", style_of_run(some[0])), name)
    axes[3].set(title="mixed, Adam eps = 1e-8", xlabel="step", ylabel="p@1, validation, cold half", ylim=(-0.04, 1.04))
    axes[3].legend(loc="upper left")


def main(_: list[str]) -> None:
    """Draws the figures whose runs are there."""
    drawings = {}
    if GRID.value:
        cold = plainest(GRID.value, "hops, cold start")
        drawings |= {"cold_start": (cold_start, cold), "sweep": (sweep, cold)}
    if STUDIES.value:
        drawings["eps_study"] = (eps_study, read(Path(STUDIES.value)))
    with plt.rc_context(SETTINGS):
        for name, (make, runs) in drawings.items():
            figure = plt.figure()
            make(runs, figure)
            figure.savefig(Path(OUT.value) / f"{name}.png")


if __name__ == "__main__":
    app.run(main)
