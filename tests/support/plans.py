"""A small model and settings for tests that count memory."""

import dataclasses

from tsallis_rl.config.schema import base_config
from tsallis_rl.models import SIZES

ARCH = dataclasses.replace(
    SIZES["tiny"], vocab_size=512, width=128, heads=4, kv_heads=2, head_dim=32, ffn=384, layers=4
)  # fmt: skip


def settings(**changes):
    config = base_config()
    config.task.update(max_prompt=64, max_answer=8)
    config.rollouts.update(num_rollouts=8, max_rationale=64)
    config.train.prompts, config.evaluate.prompts, config.evaluate.samples = 4, 1, 1
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config
