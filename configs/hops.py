"""The embedded default: a cold start that fits two CPU cores.

    python -m tsallis_rl.main
    python -m tsallis_rl.main --config=configs/hops.py:q=0.25,estimator=garl,start=cold

Needs no download: a base model is trained from scratch (and kept), then adapted from questions and answers alone.

Two CPU cores: a minute for the base model, once, and less than one for the adaptation. Test p@1 goes from 0.00 to
0.977–0.993 at q = 0.75 with base seeds 0 to 5; warm, GRPO goes from about 0.5 to 1.00.

Expected p@1 of a cold start, seeds 0, 1, 2 (p@16 and m@16 are 1.000 wherever p@1 is not 0):

    q        0          0.25       0.5                    0.75                   1
    GARL     0, 0, 0    0, 0, 0    0.990, 0.997, 0.996    0.990, 0.994, 0.992    0.962, 0.959, 0.961
    PAFT                                                  0.993, 0.994, 0.992    0.963, 0.960, 0.962
    GRPO     0, 0, 0

Rounding makes a different base model on another machine; this table's started at log P̂ = −45. With `hint=0.9` and a
warm start the answer can be had without a rationale, less well: see configs/grids/hops.py and docs/experiment.md.
"""

from ml_collections import ConfigDict

from tsallis_rl.config import ESTIMATOR_ARGUMENTS, Choice, base_config, parse_argument, set_estimator
from tsallis_rl.tasks import hops


def get_config(argument: str | None = None) -> ConfigDict:
    """Makes the config of the run.

    Args:
      argument: q=…, or tau=… and commitment=floor|mixture; estimator=…, start=cold|warm|mixed, hint=… (share of the
        prompts whose printed hint is the answer), shown=… (share of the base model's examples that show where they end;
        0.3 for hinted proposals).
    """
    known = ESTIMATOR_ARGUMENTS | {"start": Choice(tuple(hops.STARTS)), "hint": 0.0, "shown": 0.0}
    arg = parse_argument(argument, known, where=__file__)
    config = base_config()
    config.task.name = "hops"
    config.task.start = arg["start"]
    config.task.cold_answer = hops.COLD_ANSWER  # the gold answer of a cold start, {} the entity
    config.task.hint = arg["hint"]
    config.task.shown = arg["shown"]
    config.task.max_prompt = hops.PROMPT + hops.HINT * (arg["hint"] > 0)
    config.task.max_answer = hops.ANSWER
    config.task.train_examples = 2000
    config.task.validation_examples = 256
    config.task.test_examples = 256
    config.model.size = "tiny"
    config.base.steps = 2700
    config.base.batch = 64
    config.base.learning_rate = 5e-3
    config.rollouts.max_rationale = hops.RATIONALE + 1
    set_estimator(config, arg, where=__file__)
    config.train.steps = 300
    config.evaluate.prompts = 128
    return config
