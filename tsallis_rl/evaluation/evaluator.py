"""Evaluates parameters on a split by grading sampled answers. Training uses the same sampler."""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsallis_rl.evaluation.accuracy import Vote
from tsallis_rl.evaluation.gains import gain_scores
from tsallis_rl.evaluation.grades import grade_answers, vote_keys
from tsallis_rl.evaluation.outcomes import outcomes, summarize
from tsallis_rl.models import Architecture
from tsallis_rl.models.sharding import shard_prompts, to_host
from tsallis_rl.runs.progress import Bar
from tsallis_rl.sampler import RolloutShape, roll_out
from tsallis_rl.sampler.batch import batch_at
from tsallis_rl.sampler.keys import example_keys
from tsallis_rl.sampler.measures import Measures, measures_of, rationale_figures
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.sampler.sampler import score_without_rationale
from tsallis_rl.sampler.sampling_settings import Sampling
from tsallis_rl.sampler.transcripts import answer_texts, closing_rates, rollout_rows, truncated_answers
from tsallis_rl.tasks.base import Example, Task
from tsallis_rl.tasks.encoding import EncodedSplit
from tsallis_rl.tasks.grading import is_correct
from tsallis_rl.tasks.markers import Markers
from tsallis_rl.tasks.subsets import hash_id
from tsallis_rl.tasks.tokenizers import Tokenizer


class Graded(NamedTuple):
    """One example's graded answers.

    Attributes:
      example: the example.
      grades: of each answer, by name.
      votes: of each answer, None for no answer.
      log_p_hat: log P̂, nats.
      closing: how each rationale closed.
      answer_length: tokens of each answer, with its end.
      truncated: whether each answer was cut off before its end.
      measures: of each rationale, [n] each; None if none was sampled.
      log_p_without: log-probability of the gold answer with thinking closed at once, nats; None if none was sampled.
    """

    example: Example
    grades: list[dict[str, float]]
    votes: list[Vote | None]
    log_p_hat: float
    closing: np.ndarray
    answer_length: np.ndarray
    truncated: np.ndarray
    measures: Measures | None = None
    log_p_without: float | None = None


class Evaluation(NamedTuple):
    """Scores of a split and the outcome of each example.

    Attributes:
      scores: pass@1, pass@n, maj@n of the task's metric; the mean of every grade; log_p_hat, the mean of log P̂ in
        nats, −∞ where an example has no weight; grader_errors, the number of answers on which the metric's grader
        failed; the mean length of answers in tokens and the share of them that was cut off; closing rates. If
        rationales were sampled, also their figures (`measures.rationale_figures`: unique_rationales, rationale_length
        with _p10, _median and _p90, rationale_spread, rationale_token_entropy, answer_token_entropy) and what they are
        worth (`gains.gain_scores`: rationale_gain, rationale_gain_se, rationale_helps, log_p_without). For a split that
        mixes several parts, also part/pass@1, … of each. On request, kl_to_start, nats a rationale.
      outcomes: one per example, see `outcomes`; intervals are computed from them.
      graded: one per example, in the split's order.
      answers: one row per sampled answer of the examples whose texts are returned: `rollout_rows` with `grades` and
        `correct`, 1 where the task's metric is 1.
    """

    scores: dict[str, float]
    outcomes: list[dict[str, Any]]
    graded: list[Graded]
    answers: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates parameters of one run's model.

    Attributes:
      task: examples and grader.
      tokenizer: of the model.
      markers: the ids around rationales and answers.
      arch: of the model.
      mesh: where arrays live.
      sampling: traced numbers of evaluations (`evaluation_sampling`).
      samples_rationales: whether `sampling` leaves room for rationales.
      config: the run's config.
    """

    task: Task
    tokenizer: Tokenizer
    markers: Markers
    arch: Architecture
    mesh: Mesh
    sampling: Sampling
    samples_rationales: bool
    config: ConfigDict

    def __call__(
        self,
        params: dict,
        split: EncodedSplit,
        purpose: int,
        *,
        examples: int = 0,
        texts: int | None = 0,
        log_ratio: Callable[[Rollouts], Array] | None = None,
    ) -> Evaluation:
        """Grades `config.evaluate.samples` sampled answers a prompt, over a split.

        Args:
          params: the decoder's parameters.
          split: encoded examples.
          purpose: VALIDATION or TEST; keys depend on it and the example's index in the split, not on the step, so
            checkpoints are compared on equal draws.
          examples: size of the evaluated subset (`subset`); 0 is all.
          texts: number of examples whose answers are returned as text (`subset`); None is all that are evaluated.
          log_ratio: rollouts on the device → log p(z) − log p_start(z) [P, M]; its mean is the score kl_to_start.
        """
        log_ratios: list[np.ndarray] = []
        chosen = subset(split, np.arange(len(split)), examples)
        told = chosen if texts is None else subset(split, chosen, texts) if texts else chosen[:0]
        at_once = self.config.evaluate.prompts
        graded: dict[int, Graded] = {}
        rows: dict[int, list[dict[str, Any]]] = {}
        order = chosen
        if len(split.widths) > 1:  # batches of like lengths; the longest first, since they need most memory
            order = chosen[np.argsort(-split.prompt_length[chosen], kind="stable")]
        batches = range(0, len(order), at_once)
        for first in Bar(batches, "evaluate", called="batches", leave=False):
            indices = order[first : first + at_once]
            on_device = self._roll_out(params, split, purpose, indices)
            rollouts, of_rationales = jax.tree.map(operator.itemgetter(slice(len(indices))), to_host(on_device))
            if log_ratio:
                log_ratios.append(to_host(log_ratio(on_device[0]))[: len(indices)])
            answers = answer_texts(rollouts, self.tokenizer, self.markers.stop_ids)
            log_p_hat = np.logaddexp.reduce(rollouts.log_w, axis=1) - np.log(self.config.evaluate.samples)
            truncated = truncated_answers(rollouts, self.markers.stop_ids)
            examples = [split.examples[i] for i in indices]
            grades, votes = grade_answers(self.task, examples, answers), self._votes(answers)
            for p, i in enumerate(indices):
                graded[i] = Graded(
                    example=examples[p],
                    grades=[of_answer or {} for of_answer in grades[p]],
                    votes=votes[p],
                    log_p_hat=log_p_hat[p],
                    closing=rollouts.closing[p],
                    answer_length=rollouts.answer_length[p],
                    truncated=truncated[p],
                    **jax.tree.map(lambda x, p=p: x[p], of_rationales),
                )
                if i in told:
                    one = jax.tree.map(lambda x, p=p: x[p : p + 1], rollouts)
                    rows[i] = self._texts(one, answers[p], graded[i])
        found = self._evaluation([graded[i] for i in chosen], [row for i in told for row in rows[i]])
        if log_ratios:
            found.scores["kl_to_start"] = float(np.concatenate(log_ratios).mean())
        return found

    def _roll_out(
        self, params: dict, split: EncodedSplit, purpose: int, indices: np.ndarray
    ) -> tuple[Rollouts, dict[str, Any]]:
        """Rolls out the examples at `indices`, repeated to fill a batch, with sampled answers; measures rationales.

        Returns:
          the record; and the fields measures and log_p_without of `Graded`, [P, …], or {} if no rationales are sampled.
        """
        config, at_once = self.config, self.config.rollouts.at_once
        padded = np.resize(indices, config.evaluate.prompts)  # one shape, one program: a short batch is filled up
        shape = RolloutShape(
            arch=self.arch,
            num_rollouts=config.evaluate.samples,
            max_rationale=config.rollouts.max_rationale,
            max_answer=config.task.max_answer,
        )
        batch = shard_prompts(self.mesh, batch_at(split, padded))
        keys = example_keys(config.seed, purpose, 0, padded)
        rollouts = roll_out(params, batch, keys, self.sampling, shape, at_once=at_once).rollouts
        if not self.samples_rationales:
            return rollouts, {}
        without = score_without_rationale(params, batch, self.sampling.rules, self.arch, at_once=at_once)
        return rollouts, {"measures": measures_of(rollouts), "log_p_without": without}

    def _votes(self, answers: list[list[str | None]]) -> list[list[Vote | None]]:
        """Makes the votes of answers [P][n]; a missing answer has none."""
        return [
            [None if key is None else Vote(key, text.strip()) for key, text in zip(keys, texts, strict=True)]
            for keys, texts in zip(vote_keys(self.task, answers), answers, strict=True)
        ]

    def _texts(self, rollouts: Rollouts, answers: list[str | None], graded: Graded) -> list[dict[str, Any]]:
        """Writes the sampled answers of one example as rows of text; its rollouts [1, M, …] are on the host."""
        rows = rollout_rows(rollouts, [answers], [graded.example], self.tokenizer, sampled=True)
        return [
            row | {"correct": int(is_correct(grades, self.task.metric)), "grades": grades}
            for row, grades in zip(rows, graded.grades, strict=True)
        ]

    def _evaluation(self, graded: list[Graded], answers: list[dict[str, Any]]) -> Evaluation:
        """Computes the figures of a split, and of each part if it mixes several."""
        scores = self._scores(graded)
        parts = sorted({x.example.part for x in graded})
        for part in parts if len(parts) > 1 else []:
            of_part = self._scores([x for x in graded if x.example.part == part])
            scores |= {f"{part}/{name}": value for name, value in of_part.items()}
        ids = [x.example.id for x in graded]
        rows = outcomes(ids, [x.grades for x in graded], [x.votes for x in graded], self.task.metric)
        if len(parts) > 1:
            rows = [row | {"part": x.example.part} for row, x in zip(rows, graded, strict=True)]
        return Evaluation(scores=scores, outcomes=rows, graded=graded, answers=answers)

    def _scores(self, graded: list[Graded]) -> dict[str, float]:
        """Computes the figures of some examples."""
        metric = self.task.metric
        failed = [
            metric not in g for x in graded for g, vote in zip(x.grades, x.votes, strict=True) if vote is not None
        ]
        lengths, truncated = (np.array([getattr(x, name) for x in graded]) for name in ("answer_length", "truncated"))
        answers = max(len(failed), 1)
        return summarize([x.grades for x in graded], [x.votes for x in graded], metric) | {
            "log_p_hat": float(np.array([x.log_p_hat for x in graded]).mean()),
            "grader_errors": sum(failed),
            "answer_length": float(lengths.sum() / answers),
            "answer_truncated": float(truncated.sum() / answers),
            **closing_rates(np.array([x.closing for x in graded])),
            **_rationale_scores(graded),
        }


def _rationale_scores(graded: Sequence[Graded]) -> dict[str, float]:
    """Computes the figures of some examples' rationales and what these are worth; {} if none were sampled."""
    if graded[0].measures is None:
        return {}
    measures = jax.tree.map(lambda *rows: np.stack(rows), *(x.measures for x in graded))
    log_p_hat, without = np.array([(x.log_p_hat, x.log_p_without) for x in graded], np.float64).T
    return rationale_figures(measures) | gain_scores(log_p_hat, without)


def subset(split: EncodedSplit, indices: np.ndarray, size: int) -> np.ndarray:
    """Chooses `size` of the examples at `indices` by `hash_id`, in the order of `indices`; all if that is 0."""
    if not size or size >= len(indices):
        return indices
    order = np.argsort([hash_id(split.heads[i].id) for i in indices], kind="stable")
    return indices[np.sort(order[:size])]
