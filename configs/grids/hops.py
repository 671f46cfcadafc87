"""The embedded grid: what decides escape from a cold start, and what holds in a warm one, on two CPU cores.

    python -m tsallis_rl.sweep --grid=configs/grids/hops.py
    python -m tsallis_rl.report runs/sweep-hops

36 runs of configs/hops.py, three seeds each, which share one base model.
"""

from tsallis_rl.sweeps.grid import Block


def get_grid() -> list[Block]:
    """Lists the blocks."""
    return [
        Block("configs/hops.py:start=cold", {"garl": (0, 0.25, 0.5, 0.75, 1), "paft": (0.75, 1), "grpo": ()}),
        Block("configs/hops.py:start=warm", {"garl": (0.25, 0.75), "paft": (0.75,), "grpo": ()}),
    ]
