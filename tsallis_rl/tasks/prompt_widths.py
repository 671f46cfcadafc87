"""Fits the widths that prompts are padded to: only a few, since each costs a compilation."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from tsallis_rl.tasks.encoding import EncodedSplit

WIDTH_STEP = 64  # tokens; widths are multiples of it
PADDING_SHARE = 0.11  # of all tokens with padding; below it, another width is not worth its compilation
PADDING_TOKENS = 64  # padding per prompt, on average; below it, another width is not worth it either


def fit_widths(lengths: np.ndarray, most: int, widest: int, longest: int = 0) -> tuple[int, ...]:
    """Fits rising widths to prompt lengths [P]: as few as leave little padding, and at most `most`.

    Among all sets of that many multiples of WIDTH_STEP, this one has the fewest tokens when each prompt is padded to
    the next width.

    Args:
      lengths: lengths of the prompts that are padded often.
      most: largest number of widths.
      widest: upper limit of the widths, which may be no multiple of WIDTH_STEP.
      longest: a further length that must fit the last width.
    """
    steps = -(-lengths // WIDTH_STEP) * WIDTH_STEP
    last = max(int(steps.max()), -(-longest // WIDTH_STEP) * WIDTH_STEP)
    candidates, counts = np.unique(np.append(steps, last), return_counts=True)
    candidates = np.minimum(candidates, widest)
    counts[-1] -= 1  # `last` is a candidate, not a prompt
    held = np.concatenate([[0], counts.cumsum()])
    # tokens[i]: tokens of the prompts that the first i candidates hold, padded to as many widths as rounds so far.
    tokens, choices = np.full(len(held), np.inf), []
    tokens[0] = 0
    for _ in range(min(most, len(candidates))):
        costs = tokens + candidates[:, None] * (held[1:, None] - held)
        costs = np.where(np.arange(len(held)) <= np.arange(len(candidates))[:, None], costs, np.inf)
        choices.append(costs.argmin(axis=1))
        tokens = np.append(0, costs.min(axis=1))
        padding = tokens[-1] - lengths.sum()
        if padding <= max(PADDING_SHARE * tokens[-1], PADDING_TOKENS * len(lengths)):
            break
    widths, end = [], len(candidates)
    for choice in reversed(choices):
        if end == 0:
            break
        widths.append(int(candidates[end - 1]))
        end = choice[end - 1]
    return tuple(sorted(set(widths)))


def share_widths(splits: Mapping[str, EncodedSplit], most: int, widest: int) -> dict[str, EncodedSplit]:
    """Gives every split the same widths, fitted to the training prompts; the last holds the longest prompt of all.

    Splits may be empty; if the training split is, widths are fitted to the others.
    """
    of_all = np.concatenate([split.prompt_length for split in splits.values()])
    lengths = splits["train"].prompt_length if len(splits["train"]) else of_all
    widths = fit_widths(lengths, most, widest, int(of_all.max()))
    return {name: dataclasses.replace(split, max_prompt=widths[-1], widths=widths) for name, split in splits.items()}
