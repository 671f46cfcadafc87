"""The paper's Figure 4: GARL collapses in a warm start on HotPotQA and PAFT does not, by validation m@16.

    python -m tsallis_rl.sweep --grid=configs/grids/figure4.py --dry-run

The paper has GARL at q = 0.2, 0.25 and 0.75, which peaks at step 50 or 100 and is 0 by step 100 or 150; PAFT at 0.25,
which holds; and GRPO. PAFT at 0.75 is ours. All but q = 0.2 are cells of Table 2. 18 runs on accelerators; none has
been made here.
"""

from tsallis_rl.sweeps.grid import Block
from tsallis_rl.sweeps.paper import paper_block


def get_grid() -> list[Block]:
    """Lists the blocks."""
    return [paper_block("hotpotqa", "warm", {"garl": (0.2, 0.25, 0.75), "paft": (0.25, 0.75), "grpo": ()})]
