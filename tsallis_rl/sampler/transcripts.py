"""Writes rollouts as text that a person can read."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tsallis_rl.objectives import Coefficients
from tsallis_rl.sampler.record import FORCED, NEVER, REPLACED, SAMPLED, Rollouts
from tsallis_rl.tasks.base import Example
from tsallis_rl.tasks.tokenizers import Tokenizer

CLOSINGS = {SAMPLED: "sampled", FORCED: "forced by the budget", NEVER: "never", REPLACED: "end of sequence replaced"}


def answer_texts(rollouts: Rollouts, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> list[list[str | None]]:
    """Decodes the answers of rollouts on the host: [P, M, …] → text [P][M], None where the rationale never closed.

    Args:
      rollouts: on the host.
      tokenizer: of the model.
      stop_ids: ids that end an answer.
    """

    def text(ids: np.ndarray, start: int, length: int) -> str | None:
        answer = ids[start : start + length]
        return tokenizer.decode(answer[~np.isin(answer, stop_ids)].tolist()) if length else None

    return [
        [text(*row) for row in zip(*group, strict=True)]
        for group in zip(rollouts.targets, rollouts.answer_start, rollouts.answer_length, strict=True)
    ]


def answer_ends(rollouts: Rollouts, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> np.ndarray:
    """Marks whole answers, whose last token is a stop id and no other token is special → [P, M] booleans.

    End-of-think counts as special, also where the tokeniser does not mark it so.

    Args:
      rollouts: on the host.
      tokenizer: of the model.
      stop_ids: ids that end an answer.
    """

    def is_whole(ids: np.ndarray, start: int, length: int) -> bool:
        answer = ids[start : start + length].tolist()
        if not answer or answer[-1] not in stop_ids or tokenizer.end_of_think in answer:
            return False
        return tokenizer.decode(answer[:-1]) == tokenizer.decode(answer[:-1], special=True)

    pairs = zip(rollouts.targets, rollouts.answer_start, rollouts.answer_length, strict=True)
    return np.array([[is_whole(*row) for row in zip(*group, strict=True)] for group in pairs], bool)


def truncated_answers(rollouts: Rollouts, stop_ids: Sequence[int]) -> np.ndarray:
    """Marks answers of rollouts on the host that were cut off before a stop id → [P, M] booleans."""
    length = rollouts.answer_length
    last = rollouts.answer_start + np.maximum(length, 1) - 1
    ends = np.isin(np.take_along_axis(rollouts.targets, last[..., None], axis=-1)[..., 0], stop_ids)
    return (length > 0) & ~ends


def closing_rates(closing: np.ndarray) -> dict[str, float]:
    """Computes the shares of rationales [P, M] that closed in each way."""
    return {
        "closed_sampled": float((closing == SAMPLED).mean()),
        "closed_forced": float((closing == FORCED).mean()),
        "unclosed": float(np.isin(closing, (NEVER, REPLACED)).mean()),
    }


def _rationale_ids(rollouts: Rollouts, p: int, m: int) -> np.ndarray:
    """Selects the ids of a rationale for a person to read, end-of-think included: → [T].

    A stop id that was replaced is followed by the ids that the model read in its place.
    """
    length = rollouts.rationale_length[p, m]
    came = rollouts.targets[p, m, :length]
    if rollouts.closing[p, m] != REPLACED:
        return came
    read = rollouts.inputs[p, m, 1 : length + 1]
    stop = np.flatnonzero(came != read)[0]
    return np.concatenate([came[: stop + 1], read[stop:]])


def rollout_rows(
    rollouts: Rollouts,
    answers: Sequence[Sequence[str | None]],
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    sampled: bool,
) -> Iterator[dict[str, Any]]:
    """Yields the texts of every rollout on the host, group by group, with special tokens visible.

    Args:
      rollouts: on the host.
      answers: [P][M] of `answer_texts`, without special tokens, as they are graded.
      examples: of the groups.
      tokenizer: of the model.
      sampled: whether the answers were sampled; each row then has `sampled`, the answer with its special tokens, such
        as the stop id.
    """

    def text(ids: np.ndarray) -> str:
        return tokenizer.decode(ids.tolist(), special=True)

    for p, example in enumerate(examples):
        prompt = text(rollouts.prompt[p, : rollouts.prompt_length[p]])
        for m, answer in enumerate(answers[p]):
            start, targets = rollouts.answer_start[p, m], rollouts.targets[p, m]
            row = {
                "example": example.id,
                "rollout": m,
                "prompt": prompt,
                "rationale": text(_rationale_ids(rollouts, p, m)),
                "closed": CLOSINGS[int(rollouts.closing[p, m])],
                "gold": example.answer,
                "answer": answer,
                "log_w": float(rollouts.log_w[p, m]),
            }
            if sampled:
                row["sampled"] = None if answer is None else text(targets[start : start + rollouts.answer_length[p, m]])
            yield row


def transcript_rows(
    rollouts: Rollouts,
    coefficients: Coefficients,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    stop_ids: Sequence[int],
    *,
    log_w: np.ndarray,
    num_draws: int,
    rewards: np.ndarray | None,
) -> Iterator[dict[str, Any]]:
    """Yields a readable record of every rollout on the host, group by group: `rollout_rows` and its coefficients.

    `weight` is the rollout's share of its group's likelihood; `score` and `path` are the estimator's coefficients.

    Args:
      rollouts: on the host.
      coefficients: of the same groups.
      examples: of the groups.
      tokenizer: of the model.
      stop_ids: ids that end an answer.
      log_w: [P, M] log-weights as the estimator took them, with ρ of a proposal.
      num_draws: of an estimator that resamples, whose rows have n_m as `draws` (see `draw_counts`); 0 for others.
      rewards: [P, M]; None where no answers are sampled.
    """
    answers = answer_texts(rollouts, tokenizer, stop_ids)
    rows = rollout_rows(rollouts, answers, examples, tokenizer, sampled=rewards is not None)
    weight = weight_shares(log_w)
    for p in range(len(examples)):
        draws = draw_counts(coefficients.score[p], num_draws) if num_draws else None
        for m in range(len(answers[p])):
            row = next(rows) | {
                "weight": float(weight[p, m]),
                "score": float(coefficients.score[p, m]),
                "path": float(coefficients.path[p, m]),
            }
            if num_draws:
                row["draws"] = None if draws is None else int(draws[m])
            if rewards is not None:
                row["reward"] = float(rewards[p, m])
            yield row


def weight_shares(log_w: np.ndarray) -> np.ndarray:
    """Computes w_m / Σ w of groups from log-weights [P, M]; 0 for a rollout, or a whole group, without weight."""
    log_w = np.where(log_w < np.inf, log_w, -np.inf)  # as `objectives.log_weights.mask_unusable`
    top = log_w.max(axis=1, keepdims=True)
    weight = np.exp(log_w - np.where(np.isfinite(top), top, 0.0))
    return weight / np.maximum(weight.sum(axis=1, keepdims=True), 1.0)


def draw_counts(score: np.ndarray, num_draws: int) -> np.ndarray | None:
    """Counts how often each rollout of a group was drawn, n_m [M], from coefficients [M] proportional to n_m.

    Returns None if the coefficients are too small to hold a proportion: the group's update was then zero.
    """
    score = np.asarray(score, np.float64)
    if score.max() < np.finfo(np.float32).tiny * num_draws:
        return None
    return np.rint(score / score.sum() * num_draws).astype(int)
