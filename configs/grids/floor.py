"""Does one floor do what no fixed q does? Floors and mixtures against fixed q, and against schedules of q to 0.

    python -m tsallis_rl.sweep --grid=configs/grids/floor.py
    python -m tsallis_rl.report runs/sweep-floor

257 runs of configs/hops.py, shorter than its own, each arm at the learning rate that configs/grids/floor_rates.py found
best for it on another base model and seed. Seeds 0 to 2 have base model 0. Seeds 3 and 4, for the arms that are
compared everywhere, have base model 1. Half of a mixed batch is cold (log P̂ ≈ −18; −45 in mixed_hard), half warm;
`wrong` has 20% wrong labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tsallis_rl.sweeps.grid import Block

SHORT = {
    "train.prompts": 8, "train.steps": 120, "evaluate.every": 30, "train.save_rollouts_every": 0,
    "task.test_examples": 64,
}  # fmt: skip
COLD, WARM, MIXED = (f"hops:start={start}" for start in ("cold", "warm", "mixed"))
MILD, WRONG, HALVES = {"task.cold_answer": "( ) [ {} ] {"}, {"task.label_noise": 0.2}, {"train.prompts": 16}
SCENARIOS = {
    "cold": (COLD, {}),
    "cold_wrong": (COLD, WRONG | {"train.steps": 200, "evaluate.every": 40}),
    "mixed": (MIXED, HALVES | MILD),
    "mixed_wrong": (MIXED, HALVES | MILD | WRONG),
    "warm_wrong": (WARM, WRONG),
    "mixed_hard": (MIXED, HALVES),
    "warm": (WARM, {}),
}


def falls(schedule: str, steps: int) -> dict:
    """Makes the fields of a q that falls to 0."""
    return {"estimator.schedule": schedule, "estimator.q_end": 0.0, "estimator.schedule_steps": steps}


def follows(commitment: str, tau: float) -> dict:
    """Makes the fields of a floor or a mixture."""
    return {"estimator.commitment": commitment, "estimator.tau": tau}


FIVE = tuple(SCENARIOS)[:5]
RATE, HALF_RATE = {"optimizer.learning_rate": 0.002}, {"optimizer.learning_rate": 0.001}
ARMS = {  # name -> (q, or None for a floor or mixture; fields)
    "q0.5": (0.5, {}),
    "q0.75": (0.75, {}),
    "floor0.05": (None, follows("floor", 0.05)),
    "step40": (0.75, falls("step", 40)),
    "cosine80": (0.75, falls("cosine", 80) | HALF_RATE),
}
FURTHER = {
    "floor0.007": (None, follows("floor", 0.007) | HALF_RATE),
    "mixture0.05": (None, follows("mixture", 0.05)),
}
IN_MIXED = {
    "floor0.14": (None, follows("floor", 0.14)),
    "floor0.0003": (None, follows("floor", 0.0003)),
    **{f"step{steps}": (0.75, falls("step", steps)) for steps in (20, 80)},
    **{f"linear{steps}": (0.75, falls("linear", steps) | HALF_RATE) for steps in (60, 120)},
    **{f"cosine{steps}": (0.75, falls("cosine", steps) | HALF_RATE) for steps in (40, 120)},
}


def blocks(scenarios: Sequence[str], arms: Mapping[str, tuple], fields: Mapping = {}, **more: Any) -> list[Block]:
    """Makes a block for each scenario and arm, with further config fields and further arguments of `Block`."""
    return [
        Block(
            SCENARIOS[scenario][0], {"garl": () if q is None else (q,)}, name=f"{scenario}-{arm}",
            fields={**SHORT, **RATE, **SCENARIOS[scenario][1], **of_arm, **fields}, **more,
        )
        for scenario in scenarios
        for arm, (q, of_arm) in arms.items()
    ]  # fmt: skip


def get_grid() -> list[Block]:
    """Lists the blocks: arms that are compared everywhere, then variations in some scenarios."""
    some = {name: ARMS[name] for name in ("q0.75", "floor0.05")}
    sgd = {"optimizer.name": "sgd"} | MILD
    return [
        *blocks(FIVE, ARMS),
        *blocks(FIVE, ARMS, {"base.seed": 1}, seeds=2, first_seed=3),
        *blocks(FIVE, FURTHER),
        *blocks(("cold", "mixed"), {"q1": (1.0, {})}),
        *blocks(("mixed",), IN_MIXED),
        *blocks(("mixed_hard",), some | {"floor0.007": FURTHER["floor0.007"]}),
        *blocks(("warm",), ARMS),
        *blocks(("cold",), ARMS, variants={"eps12": {"optimizer.eps": 1e-12}}),
        *blocks(("cold_wrong", "warm_wrong"), some, variants={"slower": HALF_RATE}),
        *blocks(
            ("cold",), some | {"step40": ARMS["step40"]},
            variants={"longer": {"train.steps": 300, "evaluate.every": 60}},
        ),
        *blocks(
            ("cold",), some | {"mixture0.05": FURTHER["mixture0.05"]}, sgd, seeds=2,
            variants={f"sgd{rate:g}": {"optimizer.learning_rate": rate} for rate in (0.03, 0.1)},
        ),
    ]  # fmt: skip
