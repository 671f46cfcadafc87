"""The paper's Table 2, across starts: warm starts of Qwen3-0.6B on three data sets, beside its best cold ones.

    python -m tsallis_rl.sweep --grid=configs/grids/table2.py --dry-run

The row of the prompted base model needs no run: every run tests its model before the first step. The paper's warm rows
are m@16 of GRPO, GARL at q = 0, 0.25 and 0.75, and PAFT at 0.25 and 0.75. The cold rows, GARL at 0.75 and 1, are those
of Table 1 and serve to compare starts. 72 runs on accelerators; none has been made here. Settings that are
ours: tsallis_rl/sweeps/paper.py.
"""

from tsallis_rl.sweeps.grid import Block
from tsallis_rl.sweeps.paper import CONFIGS, paper_block


def get_grid() -> list[Block]:
    """Lists the blocks."""
    warm = {"grpo": (), "garl": (0, 0.25, 0.75), "paft": (0.25, 0.75)}
    return [paper_block(task, "warm", warm) for task in CONFIGS] + [
        paper_block(task, "cold", {"garl": (0.75, 1)}) for task in CONFIGS
    ]
