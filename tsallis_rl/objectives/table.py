"""The table of estimators, and the function that calls one of them."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tsallis_rl.objectives import likelihood, rewards
from tsallis_rl.objectives.form import Coefficients


@dataclasses.dataclass(frozen=True)
class Estimator:
    """An estimator: a row of the table ESTIMATORS.

    Attributes:
      name: what a config calls it.
      function: takes what it needs by name, its options as keyword-only arguments; returns Coefficients.
      answer: whose tokens the path coefficient multiplies, "gold" or "sampled".
      source: paper or equation.
      rationale: False for training on the answer directly, with a rationale budget of 0.
      q: the commitment that the name fixes, else None: the config's.
      any_proposal: whether its expectation stands for rationales of any proposal, with log w̃ for log w (`proposals`).
    """

    name: str
    function: Callable[..., Coefficients]
    answer: str
    source: str
    rationale: bool = True
    q: float | None = None
    any_proposal: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The names among key, log_w, rewards, lengths, q that the function takes."""
        return tuple(name for name, kind in self._parameters() if kind is not inspect.Parameter.KEYWORD_ONLY)

    @property
    def options(self) -> tuple[str, ...]:
        """The function's keyword-only arguments; other fields of a config's estimator section are not for it."""
        return tuple(name for name, kind in self._parameters() if kind is inspect.Parameter.KEYWORD_ONLY)

    def _parameters(self) -> list[tuple[str, Any]]:
        return [(name, p.kind) for name, p in inspect.signature(self.function).parameters.items()]


ESTIMATORS: dict[str, Estimator] = {
    row.name: row
    for row in (
        Estimator("garl", likelihood.garl, "gold", "arXiv 2604.25907, Algorithm 1", any_proposal=True),
        Estimator("paft", likelihood.paft, "gold", "arXiv 2604.25907, Algorithm 2", any_proposal=True),
        Estimator("rb_reinforce", likelihood.rb_reinforce, "gold", "GARL plug-in at q = 0", q=0.0, any_proposal=True),
        Estimator("rb_rloo", likelihood.rb_rloo, "gold", "VeriFree, arXiv 2505.21493; GARL at q = 0", q=0.0),
        Estimator("iwae", likelihood.iwae, "gold", "arXiv 1509.00519; GARL plug-in at q = 1", q=1.0, any_proposal=True),
        Estimator("em", likelihood.em, "gold", "TRICE, arXiv 2312.02179; PAFT at q = 1", q=1.0, any_proposal=True),
        Estimator("log_likelihood", likelihood.log_likelihood, "gold", "JEPO, arXiv 2503.19618"),
        Estimator("sft", likelihood.sft, "gold", "cross-entropy on (x*, y*)", rationale=False),
        Estimator("grpo", rewards.grpo, "sampled", "arXiv 2402.03300"),
        Estimator("dr_grpo", rewards.dr_grpo, "sampled", "arXiv 2503.20783"),
        Estimator("rloo", rewards.rloo, "sampled", "arXiv 2402.14740"),
        Estimator("maxrl", rewards.maxrl, "sampled", "arXiv 2602.02710"),
        Estimator("raft", rewards.raft, "sampled", "RAFT, arXiv 2304.06767; STaR, arXiv 2203.14465"),
    )
}


def follows_q(name: str, commitment: str = "power") -> bool:
    """Tells whether an estimator follows the q of a config: it takes one, and the commitment is the power.

    One that is not known does not.
    """
    return commitment == "power" and name in ESTIMATORS and "q" in ESTIMATORS[name].needs


def coefficients(
    estimator: Estimator,
    options: Mapping[str, Any],
    *,
    key: Array,
    log_w: ArrayLike,
    rewards: ArrayLike | None,
    q: ArrayLike,
    lengths: ArrayLike | None = None,
) -> Coefficients:
    """Calls an estimator's function with the arrays that it needs and the options that it declares → [..., M].

    Args:
      estimator: a row of the table.
      options: may hold more than the estimator's own, as a config's section does.
      key: typed keys of shape log_w.shape[:-1], or a single one.
      log_w: [..., M].
      rewards: [..., M], of sampled answers; None where the estimator needs none.
      q: commitment, a scalar or broadcastable to log_w.shape[:-1].
      lengths: [..., M] tokens of rationale and answer; None where the estimator needs none.

    Raises:
      ValueError: rewards have another shape than log_w.
    """
    if rewards is not None and jnp.shape(rewards) != jnp.shape(log_w):
        raise ValueError(f"rewards have shape {jnp.shape(rewards)}: expected that of log_w, {jnp.shape(log_w)}")
    given = {"key": key, "log_w": log_w, "rewards": rewards, "lengths": lengths, "q": q}
    own = {name: options[name] for name in estimator.options if name in options}
    return estimator.function(**{name: given[name] for name in estimator.needs}, **own)
