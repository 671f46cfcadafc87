"""M rollouts for each of P prompts: sampled, closed by the rules, scored with the gold answer."""

from tsallis_rl.sampler.engine import RolloutShape
from tsallis_rl.sampler.sampler import Sampled, roll_out

__all__ = ["RolloutShape", "Sampled", "roll_out"]
