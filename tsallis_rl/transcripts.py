"""Rollouts as text that a person can read."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tsallis_rl.objectives import Coefficients
from tsallis_rl.rollouts import FORCED, NEVER, REPLACED, SAMPLED, Rollouts
from tsallis_rl.tasks.base import Example
from tsallis_rl.tasks.tokenizers import Tokenizer

CLOSINGS = {SAMPLED: "sampled", FORCED: "forced by the budget", NEVER: "never", REPLACED: "end of sequence replaced"}


def answer_texts(rollouts: Rollouts, tokenizer: Tokenizer) -> list[list[str | None]]:
    """Answers [P][M] of rollouts on the host, without the end of sequence; None where the rationale never closed."""
    ends = list(tokenizer.end_of_sequence)

    def text(ids: np.ndarray, start: int, length: int) -> str | None:
        answer = ids[start : start + length]
        return tokenizer.decode(answer[~np.isin(answer, ends)].tolist()) if length else None

    return [
        [text(*row) for row in zip(*group, strict=True)]
        for group in zip(rollouts.targets, rollouts.answer_start, rollouts.answer_length, strict=True)
    ]


def closing_rates(closing: np.ndarray) -> dict[str, float]:
    """How rationales closed, as shares of all rollouts [P, M]."""
    return {
        "closed_sampled": float((closing == SAMPLED).mean()),
        "closed_forced": float((closing == FORCED).mean()),
        "unclosed": float(np.isin(closing, (NEVER, REPLACED)).mean()),
    }


def rows(
    rollouts: Rollouts, coefficients: Coefficients, examples: Sequence[Example], tokenizer: Tokenizer
) -> Iterator[dict[str, Any]]:
    """A readable record of every rollout on the host, group by group.

    `weight` is w_m / Σ w, the share of the group's likelihood; `score` and `path` are the estimator's coefficients.
    """
    answers = answer_texts(rollouts, tokenizer)
    for p, example in enumerate(examples):
        top = rollouts.log_w[p].max()
        weight = np.exp(rollouts.log_w[p] - top) if np.isfinite(top) else np.zeros_like(rollouts.log_w[p])
        weight /= max(weight.sum(), 1.0)
        prompt = rollouts.prompt[p, : rollouts.prompt_length[p]].tolist()
        for m, answer in enumerate(answers[p]):
            yield {
                "example": example.id,
                "rollout": m,
                "prompt": tokenizer.decode(prompt),
                "rationale": tokenizer.decode(rollouts.targets[p, m, : rollouts.rationale_length[p, m]].tolist()),
                "closed": CLOSINGS[int(rollouts.closing[p, m])],
                "gold": example.answer,
                "answer": answer,
                "log_w": float(rollouts.log_w[p, m]),
                "weight": float(weight[m]),
                "score": float(coefficients.score[p, m]),
                "path": float(coefficients.path[p, m]),
            }
