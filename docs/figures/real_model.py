"""Draws docs/figures/real_model.png from the first table of docs/real_model.md.

python docs/figures/real_model.py
"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tsallis_rl.laboratory.colors import color_of_estimator, color_of_q
from tsallis_rl.laboratory.figures import SETTINGS

FOLDER = Path(__file__).parent


def rows(page: str) -> dict[str, list[float]]:
    """Reads the table's methods: name → p@1, p@16, m@16."""
    table = page.partition("| `unclosed=close`")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table]
    return {name: [float(x) for x in figures[:3]] for name, *figures in cells}


def color(name: str) -> str:
    """Returns the colour that a method has in every figure."""
    q = re.search(r"q = ([\d.]+)", name)
    return color_of_q(float(q[1])) if q else color_of_estimator(name.lower())


def main() -> None:
    """Draws a group of bars a method: p@1 full, m@16 hatched, p@16 as an outline."""
    found = rows((FOLDER.parent / "real_model.md").read_text(encoding="utf-8"))
    with matplotlib.rc_context(SETTINGS):
        figure, axis = plt.subplots(figsize=(5.2, 3.2))
        for i, (name, (once, any_of, majority)) in enumerate(found.items()):
            paint = color(name)
            axis.bar(i, any_of, 0.72, facecolor="none", edgecolor=paint, linewidth=1)
            axis.bar(i - 0.16, once, 0.32, color=paint)
            axis.bar(i + 0.16, majority, 0.32, color=paint, alpha=0.45, hatch="//", edgecolor="white")
            axis.text(i - 0.16, once + 0.01, f"{once:.2f}", ha="center", fontsize=7)
        axis.set_xticks(range(len(found)), [name.replace(" q", "\nq") for name in found])
        axis.set(ylim=(0, 1), ylabel="share of test examples")
        axis.set_title("full: p@1   hatched: m@16   outline: p@16", fontsize=8)
        figure.savefig(FOLDER / "real_model.png")


if __name__ == "__main__":
    main()
