"""Wrong labels: a share of training examples gets the gold answer of another example."""

import dataclasses

import numpy as np

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Split


def mislabel(split: Split, share: float, seed: int) -> Split:
    """Replaces round(share · n) answers of a split, chosen by the seed, by the answer of another example.

    The other example is of the same part and has a different answer, so that a wrong label looks like a right one.

    Args:
      split: whose labels are replaced.
      share: of the examples, in [0, 1].
      seed: of the choice.

    Raises:
      UserError: a part has one answer only, so that no label of it can be wrong.
    """
    examples = list(split.examples)
    parts = {part: [e for e in examples if e.part == part] for part in {e.part for e in examples}}
    for others in parts.values():
        if share and len({other.answer for other in others}) == 1:
            raise UserError(f"config.task.label_noise={share}: there is no other answer than {others[0].answer!r}")
    rng = np.random.default_rng([seed, 3])
    for i in rng.permutation(len(examples))[: round(share * len(examples))]:
        others = parts[examples[i].part]
        wrong = examples[i]
        while wrong.answer == examples[i].answer:
            wrong = others[rng.integers(len(others))]
        examples[i] = dataclasses.replace(examples[i], answer=wrong.answer, aliases=wrong.aliases)
    return dataclasses.replace(split, examples=examples)
