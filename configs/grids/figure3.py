"""The paper's Figure 3: which q leave a cold start on FinQA, by max c_m/M^q against the step.

    python -m tsallis_rl.sweep --grid=configs/grids/figure3.py --dry-run

The paper sees q = 1 rise at once, 0.75 near step 35, and q up to 0.5 stay flat. The cells are those of Table 1 without
GRPO: with the same --out they are not run again. 15 runs on accelerators; none has been made here.
"""

from tsallis_rl.sweeps.grid import Block
from tsallis_rl.sweeps.paper import paper_block


def get_grid() -> list[Block]:
    """Lists the blocks."""
    return [paper_block("finqa", "cold", {"garl": (0, 0.25, 0.5, 0.75, 1)})]
