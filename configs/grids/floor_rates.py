"""Finds the learning rate of each arm of configs/grids/floor.py, on a base model and a seed that it does not use.

    python -m tsallis_rl.sweep --grid=configs/grids/floor_rates.py
    python -m tsallis_rl.report runs/sweep-floor_rates

54 runs of configs/hops.py: nine arms at three rates, cold and mixed.
"""

from tsallis_rl.sweeps.grid import Block

RATES = (0.001, 0.002, 0.004)
SHORT = {
    "train.prompts": 8, "train.steps": 120, "evaluate.every": 30, "train.save_rollouts_every": 0,
    "task.test_examples": 64,
}  # fmt: skip
SCENARIOS = {
    "cold": ("hops:start=cold", {}),
    "mixed": ("hops:start=mixed", {"task.cold_answer": "( ) [ {} ] {", "train.prompts": 16}),
}


def falls(schedule: str, steps: int) -> dict:
    """Makes the fields of a q that falls to 0."""
    return {"estimator.schedule": schedule, "estimator.q_end": 0.0, "estimator.schedule_steps": steps}


def follows(commitment: str, tau: float) -> dict:
    """Makes the fields of a floor or a mixture."""
    return {"estimator.commitment": commitment, "estimator.tau": tau}


ARMS = {  # name -> (q, empty for a floor or mixture; fields)
    "fixed": ((0.5, 0.75, 1.0), {}),
    "floor.05": ((), follows("floor", 0.05)),
    "floor.007": ((), follows("floor", 0.007)),
    "mixture.05": ((), follows("mixture", 0.05)),
    "step40": ((0.75,), falls("step", 40)),
    "linear120": ((0.75,), falls("linear", 120)),
    "cosine80": ((0.75,), falls("cosine", 80)),
}


def get_grid() -> list[Block]:
    """Lists a block for each scenario and arm."""
    rates = {f"lr{rate:g}": {"optimizer.learning_rate": rate} for rate in RATES}
    return [
        Block(
            config, {"garl": q}, seeds=1, first_seed=7, fields=SHORT | {"base.seed": 2} | fields | arm, variants=rates,
            name=f"{scenario}-{name}",
        )
        for scenario, (config, fields) in SCENARIOS.items()
        for name, (q, arm) in ARMS.items()
    ]  # fmt: skip
