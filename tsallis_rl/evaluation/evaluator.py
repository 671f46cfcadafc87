"""Evaluation: sampled answers, graded; pass@k and maj@k. The sampler is the one that trains."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from tsallis_rl.evaluation.accuracy import majority, pass_at_k
from tsallis_rl.models import Architecture
from tsallis_rl.models.sharding import shard_prompts, to_host
from tsallis_rl.sampler.record import Group, Rollouts, Sampling, Truncation, address
from tsallis_rl.sampler.sampler import roll_out
from tsallis_rl.sampler.transcripts import answer_texts, closing_rates
from tsallis_rl.tasks.base import Example, Task
from tsallis_rl.tasks.encoding import EncodedSplit
from tsallis_rl.tasks.tokenizers import Tokenizer


def sampling_numbers(rollouts: ConfigDict, tokenizer: Tokenizer, joint: str) -> Sampling:
    """The sampler's traced numbers and ids from config.rollouts, the tokeniser and the task's joint."""
    top_k, top_p, min_p = rollouts.top_k, rollouts.top_p, rollouts.min_p
    return Sampling(
        temperature=jnp.float32(rollouts.temperature),
        budget=jnp.int32(rollouts.max_rationale),
        end_of_think=jnp.int32(tokenizer.end_of_think),
        end_of_sequence=jnp.array(tokenizer.end_of_sequence, jnp.int32),
        joint=jnp.array(tokenizer.encode(joint), jnp.int32),
        close_unclosed=jnp.array(rollouts.unclosed == "close"),
        truncation=Truncation(jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p))
        if (top_k, top_p, min_p) != (0, 1, 0)
        else None,
    )


def group_at(split: EncodedSplit, indices: np.ndarray) -> Group:
    """The examples at `indices` as host arrays."""
    return Group(
        split.prompt[indices], split.prompt_length[indices], split.answer[indices], split.answer_length[indices]
    )


class Evaluation(NamedTuple):
    """What the sampled answers of a split were worth.

    Attributes:
      scores: pass@1, pass@n, maj@n of the task's metric; the mean of every other grade; log_p_hat, the mean of log P̂
        in nats, −∞ where an example has no weight; closing rates. Of a split that mixes several parts also
        part/pass@1, … of each.
      outcomes: an example each, see `outcomes`: what intervals are computed from.
    """

    scores: dict[str, float]
    outcomes: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """What evaluating needs besides parameters.

    Attributes:
      task: examples and grader.
      tokenizer: of the model.
      arch: of the model.
      mesh: where arrays live.
      sampling: traced numbers.
      config: the run's config.
    """

    task: Task
    tokenizer: Tokenizer
    arch: Architecture
    mesh: Mesh
    sampling: Sampling
    config: ConfigDict

    def __call__(self, params: dict, split: EncodedSplit, stream: int) -> Evaluation:
        """Grades `config.evaluate.samples` sampled answers a prompt, over a whole split.

        Args:
          params: the decoder's parameters.
          split: encoded examples.
          stream: VALIDATION or TEST; keys depend on it, not on the step, so checkpoints are compared on equal draws.
        """
        samples, at_once = self.config.evaluate.samples, self.config.evaluate.prompts
        grades: list[list[dict[str, float]]] = []
        votes: list[list[str | None]] = []
        log_p_hat, closing = [], []
        batches = range(0, len(split), at_once)
        for first in tqdm(batches, desc="evaluate", leave=False, dynamic_ncols=True, disable=None):
            examples = split.examples[first : first + at_once]
            rollouts = self._roll_out(params, split, stream, np.arange(first, first + len(examples)))
            texts = answer_texts(rollouts, self.tokenizer)
            grades += [
                [self.grade(text, example) for text in row] for row, example in zip(texts, examples, strict=True)
            ]
            votes += [[None if text is None else self.task.vote_key(text) for text in row] for row in texts]
            log_p_hat.append(np.logaddexp.reduce(rollouts.log_w, axis=1) - np.log(samples))
            closing.append(rollouts.closing)

        def scores(chosen: np.ndarray) -> dict[str, float]:
            some = [[column[i] for i in np.flatnonzero(chosen)] for column in (grades, votes)]
            return summarize(*some, self.task.metric) | {
                "log_p_hat": float(np.concatenate(log_p_hat)[chosen].mean()),
                **closing_rates(np.concatenate(closing)[chosen]),
            }

        parts = np.array(split.parts)
        names = sorted(set(split.parts)) if len(set(split.parts)) > 1 else []
        of_parts = {f"{name}/{key}": x for name in names for key, x in scores(parts == name).items()}
        ids = [example.id for example in split.examples]
        return Evaluation(scores(np.full(len(split), True)) | of_parts, outcomes(ids, grades, votes, self.task.metric))

    def _roll_out(self, params: dict, split: EncodedSplit, stream: int, indices: np.ndarray) -> Rollouts:
        """Rollouts with sampled answers of the examples at `indices`, on the host."""
        padded = np.resize(indices, self.config.evaluate.prompts)  # one shape, one program: a short batch is filled up
        rollouts = roll_out(
            params,
            shard_prompts(self.mesh, group_at(split, padded)),
            address(self.config.seed, stream, 0, padded),
            self.sampling,
            arch=self.arch,
            num_rollouts=self.config.evaluate.samples,
            max_rationale=self.config.rollouts.max_rationale,
            max_answer=self.config.task.max_answer,
            at_once=self.config.rollouts.at_once,
        )
        return Rollouts(*(array[: len(indices)] for array in to_host(rollouts)))

    def grade(self, text: str | None, example: Example) -> dict[str, float]:
        """The task's grades of one answer; none for no answer, which counts as wrong."""
        return {} if text is None else self.task.grade(text, example)


def summarize(
    grades: Sequence[Sequence[dict[str, float]]], votes: Sequence[Sequence[str | None]], metric: str
) -> dict[str, float]:
    """pass@1, pass@n, maj@n of `metric`, and the mean of every grade, from [P][n] graded answers."""
    n = len(votes[0])
    correct, majority_correct = _correct(grades, votes, metric)
    totals: Counter[str] = Counter()
    for row in grades:
        for answer in row:
            totals.update(answer)
    return {
        "pass@1": float(pass_at_k(correct, 1).mean()),
        f"pass@{n}": float(pass_at_k(correct, n).mean()),
        f"maj@{n}": float(majority_correct.mean()),
        **{f"mean_{name}": total / correct.size for name, total in totals.items()},
    }


def outcomes(
    ids: Sequence[str], grades: Sequence[Sequence[dict[str, float]]], votes: Sequence[Sequence[str | None]], metric: str
) -> list[dict[str, Any]]:
    """Of each example: its id, how many of how many answers were correct, and whether their majority was."""
    correct, majority_correct = _correct(grades, votes, metric)
    return [
        {"example": name, "correct": int(row.sum()), "samples": row.size, "majority": bool(won)}
        for name, row, won in zip(ids, correct, majority_correct, strict=True)
    ]


def _correct(
    grades: Sequence[Sequence[dict[str, float]]], votes: Sequence[Sequence[str | None]], metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which answers are correct, [P, n], and of which examples the majority is, [P]."""
    correct = np.array([[answer.get(metric, 0.0) >= 1 for answer in row] for row in grades])
    winners = [majority(row) for row in votes]
    return correct, np.array([w is not None and row[w] for row, w in zip(correct, winners, strict=True)], bool)
