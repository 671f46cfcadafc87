"""The paper's Table 3, as far as docs/method.md restates it: GRPO with prompts against GARL at q = 0, by p@1 and p@16.

    python -m tsallis_rl.sweep --grid=configs/grids/table3.py --dry-run

Beyond the paper's first two tables, only p@1 and p@16 of prompted GRPO on three data sets are known here. The choice of
what to compare it with is ours: GARL at q = 0, with the gold answer's likelihood in place of a sampled answer's
reward, and PAFT at q = 0.75, which holds where GARL collapses. All are cells of Table 2: with the same --out they are
not run again. 27 runs on accelerators; none has been made here.
"""

from tsallis_rl.sweeps.grid import Block
from tsallis_rl.sweeps.paper import CONFIGS, paper_block


def get_grid() -> list[Block]:
    """Lists the blocks."""
    return [paper_block(task, "warm", {"grpo": (), "garl": (0,), "paft": (0.75,)}) for task in CONFIGS]
