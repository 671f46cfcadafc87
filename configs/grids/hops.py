"""The embedded grid: what decides escape, whether rationales survive, and what remedies cost, on two CPU cores.

    python -m tsallis_rl.sweep --grid=configs/grids/hops.py
    python -m tsallis_rl.report runs/sweep-hops

81 runs of configs/hops.py, three seeds each; docs/experiment.md has what they showed.

    cold                      the paper's sweep of q
    warm                      q where answers are already likely, and GRPO with each remedy: its cost
    warm, hint=0.9            the answer can be had without a rationale, in nine prompts of ten
    the same, GRPO            with each remedy against vanishing rationales
    cold, GARL q = 0.75       with a KL or an entropy bonus: their cost where coefficients are small
"""

from tsallis_rl.sweeps.grid import Block

REMEDIES = {
    "min": {"rollouts.min_rationale": 3},
    "length": {"regularizer.length": 0.3, "regularizer.min_length": 4},
    "kl": {"regularizer.kl": 0.1},
    "entropy": {"regularizer.entropy": 0.1},
}


def get_grid() -> list[Block]:
    """Lists the blocks."""
    short = {"train.steps": 150, "evaluate.every": 50}
    costly = {name: REMEDIES[name] for name in ("kl", "entropy")}
    warm, hint = "hops:start=warm", "hops:start=warm,hint=0.9"
    return [
        Block("hops:start=cold", {"garl": (0, 0.25, 0.5, 0.75, 1), "paft": (0.75,), "grpo": ()}),
        Block(warm, {"garl": (0.25, 0.75), "paft": (0.75,), "grpo": ()}, fields=short),
        Block(hint, {"garl": (0, 0.25, 0.75), "paft": (0.75,), "grpo": (), "sft": ()}, fields=short, name="hint"),
        Block(hint, {"grpo": ()}, fields=short, variants=REMEDIES, name="hint"),
        Block(warm, {"grpo": ()}, fields=short, variants=REMEDIES),
        Block("hops:start=cold", {"garl": (0.75,)}, fields=short, variants=costly),
    ]
