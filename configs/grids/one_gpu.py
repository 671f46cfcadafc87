"""A cold start of a small real model on HotPotQA, small enough for one GPU: does q decide the ordering of Table 1?

    python -m tsallis_rl.tasks --config=configs/hotpotqa.py --download
    python -m tsallis_rl.sweep --grid=configs/grids/one_gpu.py --config.model.size=FOLDER
    python -m tsallis_rl.report runs/sweep-one_gpu-…

SmolLM2-135M-Instruct, by its name on the hub or, with --config.model.size, from a folder; another small model will do.
The bare record is the prompt, the bare answer the gold; an end of sequence inside a rationale closes it. 21 runs of 180
steps: three seeds of GRPO, GARL at q = 0.5, 0.75 and 1, PAFT at 0.75, GARL with floors e^−3 and e^−5. It is meant to
fit one and a half hours and has not been timed as a whole: with five runs side by side on an H200 a step took 0.35 to
1.4 seconds (docs/real_model.md), so try --jobs=3 there.
"""

from tsallis_rl.sweeps.grid import Block


def get_grid() -> list[Block]:
    """Lists the blocks: those with q, and the floors."""
    floors = {f"floor{tau:g}": {"estimator.commitment": "floor", "estimator.tau": tau} for tau in (0.05, 0.007)}
    return [
        Block(
            "hotpotqa:start=cold,model=HuggingFaceTB/SmolLM2-135M-Instruct",
            estimators,
            variants=variants,
            fields={
                "model.dtype": "bfloat16",
                "optimizer.learning_rate": 2e-5,
                "task.max_prompt": 1536,
                "task.prompt_overflow": "trim",
                "task.max_answer": 16,
                "task.train_examples": 437,
                "task.validation_examples": 47,
                "task.test_examples": 80,
                "rollouts.max_rationale": 48,
                "rollouts.prompt_widths": 2,
                "rollouts.unclosed": "close",
                "train.prompts": 8,
                "train.steps": 180,
                "evaluate.every": 30,
            },
        )
        for estimators, variants in (
            ({"grpo": (), "garl": (0.5, 0.75, 1), "paft": (0.75,)}, {"": {}}),
            ({"garl": ()}, floors),
        )
    ]
