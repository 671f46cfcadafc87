"""The studies of docs/experiment.md: what the optimiser does, wrong labels, parts of GARL.

    python -m tsallis_rl.sweep --grid=configs/grids/studies.py
    python -m tsallis_rl.report runs/sweep-studies

108 runs of configs/hops.py, three seeds each, shorter than its own: 8 prompts × M = 32 a step and 120 steps, half the
batch and less than half the steps.
"""

from tsallis_rl.sweeps.grid import Block

COLD, WARM, MIXED = (f"hops:start={start}" for start in ("cold", "warm", "mixed"))
SHORT = {"train.prompts": 8, "train.steps": 120, "evaluate.every": 60}
MILDER, MILDEST = {"task.cold_answer": "~ ^ [ {} ] {"}, {"task.cold_answer": "( ) [ {} ] {"}  # log P̂ ≈ −26, −18


def get_grid() -> list[Block]:
    """Lists the blocks, table by table."""

    def block(config: str, name: str, estimators: dict, fields: dict | None = None, **variants: dict) -> Block:
        return Block(config, estimators, fields=SHORT | (fields or {}), variants=variants or {"": {}}, name=name)

    sgd = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.1}
    mixed = MILDEST | {"train.prompts": 16}
    noisy = {"task.label_noise": 0.2, "train.steps": 200}
    parts = {"no-path": {"estimator.path_weight": 0.0}, "no-baseline": {"estimator.baseline": "none"}}
    return [
        block(COLD, "cold", {"garl": (0.25, 0.5, 0.75, 1), "paft": (0.75,)}),
        block(COLD, "cold", {"garl": (0, 0.25, 0.5)}, eps12={"optimizer.eps": 1e-12}),
        block(COLD, "cold", {"garl": (0, 0.25)}, eps20={"optimizer.eps": 1e-20}),
        block(COLD, "cold", {"garl": (0.5, 0.75)}, unclipped={"optimizer.clip": 1e9}),
        block(COLD, "milder", {"garl": (0,)}, MILDER, eps8={}, eps16={"optimizer.eps": 1e-16}),
        block(COLD, "mildest", {"garl": (0, 0.25)}, MILDEST),
        block(COLD, "mildest", {"garl": (0.25, 0.5, 0.75, 1)}, MILDEST, sgd=sgd),
        block(MIXED, "mixed", {"garl": (0, 0.25, 0.5, 0.75, 1), "grpo": ()}, mixed),
        block(COLD, "noisy", {"garl": (0.5, 0.75, 1), "paft": (0.75,)}, noisy),
        block(COLD, "cold", {"garl": (0.75,)}, **parts),
        block(WARM, "warm", {"garl": (0.25,)}, {"optimizer.learning_rate": 3e-3}, whole={}, **parts),
        block(WARM, "warm", {"paft": (0.25,)}, {"optimizer.learning_rate": 3e-3}),
    ]
