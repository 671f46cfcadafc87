"""The paper's Table 1: cold starts of Qwen3-0.6B on three data sets, p@1, p@16 and m@16.

    python -m tsallis_rl.sweep --grid=configs/grids/table1.py --dry-run
    launch/sweep.sh --grid=configs/grids/table1.py launch/slurm.sh --name=table1 --gpus=8

FinQA has GRPO and GARL at every q of the paper; HotPotQA and MuSiQue have the rows that it tabulates, q = 0.75 and 1.
30 runs on accelerators; none has been made here. Settings that are ours: tsallis_rl/sweeps/paper.py. Grids of the paper
with the same --out share the cells that they have in common.
"""

from tsallis_rl.sweeps.grid import Block
from tsallis_rl.sweeps.paper import paper_block


def get_grid() -> list[Block]:
    """Lists the blocks."""
    return [
        paper_block("finqa", "cold", {"garl": (0, 0.25, 0.5, 0.75, 1), "grpo": ()}),
        paper_block("hotpotqa", "cold", {"garl": (0.75, 1)}),
        paper_block("musique", "cold", {"garl": (0.75, 1)}),
    ]
