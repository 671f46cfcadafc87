"""Prompts with their gold answers, as the sampler reads them."""

from typing import NamedTuple

import numpy as np
from jax import Array

from tsallis_rl.tasks.encoding import EncodedSplit


class PromptBatch(NamedTuple):
    """P prompts with their gold answers, right-padded.

    Attributes:
      prompt: [P, T0] ids; T0 is one of the split's widths.
      prompt_length: [P].
      gold: [P, A] ids, end-of-sequence included.
      gold_length: [P].
    """

    prompt: Array
    prompt_length: Array
    gold: Array
    gold_length: Array


def batch_at(split: EncodedSplit, indices: np.ndarray, width: int | None = None) -> PromptBatch:
    """Takes the examples at `indices` [P] of a split, as host arrays.

    Args:
      split: encoded examples.
      indices: [P] positions in the split.
      width: T0 of the larger batch that these are part of; None: the smallest width that holds their prompts.
    """
    return PromptBatch(
        prompt=split.prompt_at(indices, width or split.width(indices)),
        prompt_length=split.prompt_length[indices],
        gold=split.answer_at(indices),
        gold_length=split.answer_length[indices],
    )
