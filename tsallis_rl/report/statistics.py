"""Means over seeds with their intervals, and the gradient flow's escape time."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tsallis_rl.evaluation.intervals import bootstrap
from tsallis_rl.report.runs import Run


class Summary(NamedTuple):
    """A metric of a method over its seeds.

    Attributes:
      values: the value of each seed that has one.
      mean: the mean over those seeds; NaN if there are none.
      sd: the standard deviation over those seeds, with n − 1; NaN with fewer than two.
      low, high: 95% bootstrap interval of the mean (`bootstrap`); NaN if outcomes were not kept.
    """

    values: list[float]
    mean: float
    sd: float
    low: float
    high: float


def summarize(runs: Sequence[Run], name: str) -> Summary:
    """Summarizes a test metric over a method's finished runs."""
    having = [(run, value) for run in runs if (value := run.metric_after(name)) is not None]
    values = [value for _, value in having]
    outcomes = [run.outcomes[name] for run, _ in having if run.outcomes is not None]
    complete = outcomes and len(outcomes) == len(having)
    return spread(values, *(bootstrap(_by_prompt(outcomes)) if complete else (np.nan, np.nan)))


def _by_prompt(outcomes: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Lays out each run's outcomes by prompt: [runs, prompts], NaN where a run did not see a prompt."""
    prompts = dict.fromkeys(itertools.chain(*outcomes))
    return np.array([[of_run.get(prompt, np.nan) for prompt in prompts] for of_run in outcomes])


def spread(values: list[float], low: float = np.nan, high: float = np.nan) -> Summary:
    """Computes mean and standard deviation of one value per seed; `low`, `high` are the mean's interval, if known."""
    mean = float(np.mean(values)) if values else np.nan
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    return Summary(values=values, mean=mean, sd=sd, low=low, high=high)


def flow_time(log_p0: float, log_p1: float, q: np.ndarray) -> np.ndarray:
    """Computes the time from p0 to p1 under gradient flow with a score of constant size, dp/dt = p^(2−q).

    docs/method.md §2. (p0^−(1−q) − p1^−(1−q))/(1−q), for small p0 and q < 1 nearly p0^−(1−q)/(1−q); log p1/p0 at q = 1.
    """
    rest = 1.0 - np.asarray(q, float)
    safe = np.where(rest == 0, 1.0, rest)
    return np.where(rest == 0, log_p1 - log_p0, (np.exp(-safe * log_p0) - np.exp(-safe * log_p1)) / safe)


def fitted_constant(updates: np.ndarray, times: np.ndarray) -> float:
    """Fits c in updates ≈ c × time by least squares of the logarithms."""
    return float(np.exp(np.mean(np.log(updates) - np.log(times))))


def largest_fall(values: np.ndarray) -> float:
    """Computes the farthest that a curve was ever below its best so far; 0 for an empty curve."""
    return float((np.maximum.accumulate(values) - values).max()) if len(values) else 0.0
