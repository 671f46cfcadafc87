"""Evaluates parameters on a split: sampled answers, graded. The sampler is the one that trains."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from tsallis_rl.evaluation.outcomes import outcomes, summarize
from tsallis_rl.models import Architecture
from tsallis_rl.models.sharding import shard_prompts, to_host
from tsallis_rl.sampler import RolloutShape, roll_out
from tsallis_rl.sampler.batch import batch_at
from tsallis_rl.sampler.keys import example_keys
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.sampler.sampling_settings import Sampling
from tsallis_rl.sampler.transcripts import answer_texts, closing_rates
from tsallis_rl.tasks.base import Example, Task
from tsallis_rl.tasks.encoding import EncodedSplit
from tsallis_rl.tasks.markers import Markers
from tsallis_rl.tasks.tokenizers import Tokenizer


class Evaluation(NamedTuple):
    """Scores of a split and the outcome of each example.

    Attributes:
      scores: pass@1, pass@n, maj@n of the task's metric; the mean of every other grade; log_p_hat, the mean of log P̂
        in nats, −∞ where an example has no weight; closing rates. Of a split that mixes several parts also
        part/pass@1, … of each.
      outcomes: an example each, see `outcomes`: what intervals are computed from.
    """

    scores: dict[str, float]
    outcomes: list[dict[str, Any]]


class _Graded(NamedTuple):
    """One example's graded answers.

    Attributes:
      grades: of each answer, by name.
      votes: the key of each answer, None for no answer.
      log_p_hat: nats.
      closing: how each rationale closed.
    """

    grades: list[dict[str, float]]
    votes: list[str | None]
    log_p_hat: float
    closing: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates parameters of one run's model.

    Attributes:
      task: examples and grader.
      tokenizer: of the model.
      markers: the ids around rationales and answers.
      arch: of the model.
      mesh: where arrays live.
      sampling: traced numbers.
      config: the run's config.
    """

    task: Task
    tokenizer: Tokenizer
    markers: Markers
    arch: Architecture
    mesh: Mesh
    sampling: Sampling
    config: ConfigDict

    def __call__(self, params: dict, split: EncodedSplit, purpose: int) -> Evaluation:
        """Grades `config.evaluate.samples` sampled answers a prompt, over a whole split.

        Args:
          params: the decoder's parameters.
          split: encoded examples.
          purpose: VALIDATION or TEST; keys depend on it, not on the step, so checkpoints are compared on equal draws.
        """
        at_once, graded = self.config.evaluate.prompts, []
        order = np.arange(len(split))
        if len(split.widths) > 1:  # batches of like lengths; the longest first, since they need most memory
            order = np.argsort(-split.prompt_length, kind="stable")
        batches = range(0, len(split), at_once)
        for first in tqdm(batches, desc="evaluate", leave=False, dynamic_ncols=True, disable=None):
            indices = order[first : first + at_once]
            examples = [split.examples[i] for i in indices]
            rollouts = self._roll_out(params, split, purpose, indices)
            texts = answer_texts(rollouts, self.tokenizer, self.markers.stop_ids)
            log_p_hat = np.logaddexp.reduce(rollouts.log_w, axis=1) - np.log(self.config.evaluate.samples)
            graded += [
                self._grade(*of_example)
                for of_example in zip(examples, texts, log_p_hat, rollouts.closing, strict=True)
            ]

        graded = [graded[i] for i in np.argsort(order)]
        parts = sorted(set(split.parts)) if len(set(split.parts)) > 1 else []
        scores = self._scores(graded)
        for part in parts:
            of_part = self._scores([x for x, name in zip(graded, split.parts, strict=True) if name == part])
            scores |= {f"{part}/{name}": value for name, value in of_part.items()}
        ids = [example.id for example in split.examples]
        rows = outcomes(ids, [x.grades for x in graded], [x.votes for x in graded], self.task.metric)
        return Evaluation(scores, rows)

    def _roll_out(self, params: dict, split: EncodedSplit, purpose: int, indices: np.ndarray) -> Rollouts:
        """Rolls out the examples at `indices` with sampled answers, and brings the record to the host."""
        config = self.config
        padded = np.resize(indices, config.evaluate.prompts)  # one shape, one program: a short batch is filled up
        shape = RolloutShape(
            arch=self.arch,
            num_rollouts=config.evaluate.samples,
            max_rationale=config.rollouts.max_rationale,
            max_answer=config.task.max_answer,
        )
        rollouts = roll_out(
            params,
            shard_prompts(self.mesh, batch_at(split, padded)),
            example_keys(config.seed, purpose, 0, padded),
            self.sampling,
            shape,
            at_once=config.rollouts.at_once,
        ).rollouts
        return jax.tree.map(lambda x: x[: len(indices)], to_host(rollouts))

    def _grade(self, example: Example, texts: list[str | None], log_p_hat: float, closing: np.ndarray) -> _Graded:
        """Grades the answers of one example; no answer has no grades and no vote, and counts as wrong."""
        return _Graded(
            grades=[{} if text is None else self.task.grade(text, example) for text in texts],
            votes=[None if text is None else self.task.vote_key(text) for text in texts],
            log_p_hat=log_p_hat,
            closing=closing,
        )

    def _scores(self, graded: list[_Graded]) -> dict[str, float]:
        """Computes the figures of some examples."""
        return summarize([x.grades for x in graded], [x.votes for x in graded], self.task.metric) | {
            "log_p_hat": float(np.array([x.log_p_hat for x in graded]).mean()),
            **closing_rates(np.array([x.closing for x in graded])),
        }
