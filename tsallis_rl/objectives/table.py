"""The table of estimators, and the function that calls one of them."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from tsallis_rl.objectives import gold_rewards, likelihood, rewards
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
        """The function's positional arguments: what it takes of a group, by name; see `coefficients`."""
        return tuple(p.name for p in self._parameters() if p.kind is not inspect.Parameter.KEYWORD_ONLY)

    @property
    def required(self) -> tuple[str, ...]:
        """The names of `needs` without which the function cannot be called."""
        return tuple(p.name for p in self._parameters() if p.name in self.needs and p.default is p.empty)

    @property
    def quantities(self) -> tuple[str, ...]:
        """The names of `needs` that are measured of rollouts beside log_w, [P, M]; the loop provides these alone."""
        return tuple(name for name in self.needs if name not in ("key", "log_w", "q"))

    @property
    def options(self) -> tuple[str, ...]:
        """The function's keyword-only arguments; other fields of a config's estimator section are not for it."""
        return tuple(p.name for p in self._parameters() if p.kind is inspect.Parameter.KEYWORD_ONLY)

    def _parameters(self) -> Sequence[inspect.Parameter]:
        return tuple(inspect.signature(self.function).parameters.values())


ESTIMATORS: dict[str, Estimator] = {
    row.name: row
    for row in (
        Estimator("garl", likelihood.garl, "gold", "arXiv 2604.25907, Algorithm 1", any_proposal=True),
        Estimator("paft", likelihood.paft, "gold", "arXiv 2604.25907, Algorithm 2", any_proposal=True),
        Estimator("rb_reinforce", likelihood.rb_reinforce, "gold", "GARL plug-in at q = 0", q=0.0, any_proposal=True),
        Estimator("rb_rloo", likelihood.rb_rloo, "gold", "VeriFree, arXiv 2505.21493; GARL at q = 0", q=0.0),
        Estimator("iwae", likelihood.iwae, "gold", "arXiv 1509.00519; GARL plug-in at q = 1", q=1.0, any_proposal=True),
        Estimator("em", likelihood.em, "gold", "TRICE, arXiv 2312.02179; PAFT at q = 1", q=1.0, any_proposal=True),
        Estimator("garl_per_token", gold_rewards.garl_per_token, "gold", "GARL on w^(1/L); plain w: arXiv 2602.03979"),
        Estimator("log_likelihood", likelihood.log_likelihood, "gold", "JEPO of one sample, arXiv 2503.19618"),
        Estimator("jepo", gold_rewards.jepo, "gold", "JEPO of several samples, arXiv 2503.19618"),
        Estimator("latro", gold_rewards.latro, "gold", "LaTRO, arXiv 2411.04282"),
        Estimator("rlpr", gold_rewards.rlpr, "gold", "RLPR, arXiv 2506.18254"),
        Estimator("nover", gold_rewards.nover, "gold", "NOVER, arXiv 2505.16022"),
        Estimator("sft", likelihood.sft, "gold", "cross-entropy on (x*, y*)", rationale=False),
        Estimator("grpo", rewards.grpo, "sampled", "arXiv 2402.03300"),
        Estimator("dr_grpo", rewards.dr_grpo, "sampled", "arXiv 2503.20783"),
        Estimator("rloo", rewards.rloo, "sampled", "arXiv 2402.14740"),
        Estimator("maxrl", rewards.maxrl, "sampled", "arXiv 2602.02710"),
        Estimator("raft", rewards.raft, "sampled", "RAFT, arXiv 2304.06767; STaR, arXiv 2203.14465"),
        Estimator("hard_continuum", rewards.hard_continuum, "sampled", "docs/method.md §10; MaxRL at q = 1"),
        Estimator("pkpo", rewards.pkpo, "sampled", "PKPO, arXiv 2505.15201"),
        Estimator("curverl", rewards.curverl, "sampled", "CurveRL, arXiv 2605.24331"),
    )
}


def follows_q(name: str, commitment: str = "power") -> bool:
    """Tells whether an estimator follows the q of a config: it takes one, and no commitment without q instead.

    One that is not known does not.
    """
    row = ESTIMATORS.get(name)
    return row is not None and "q" in row.needs and (commitment == "power" or "commitment" not in row.options)


def coefficients(estimator: Estimator, options: Mapping[str, Any], group: Mapping[str, ArrayLike]) -> Coefficients:
    """Calls an estimator's function with what it needs of a group and the options that it declares → [..., M].

    Args:
      estimator: a row of the table.
      options: may hold more than the estimator's own, as a config's section does.
      group: log_w [..., M] and by name what else the estimator needs; may hold more. `key` are typed keys of shape
        log_w.shape[:-1], or a single one; `q` is a scalar or broadcastable to that shape; all else has log_w's shape.

    Raises:
      ValueError: the group lacks what the estimator needs, or an array of it has another shape.
    """
    shape = jnp.shape(group["log_w"])
    needed = {name: group[name] for name in estimator.needs if name in group}
    if missing := [name for name in estimator.required if name not in group]:
        raise ValueError(f"estimator {estimator.name} needs {', '.join(missing)}: the group has {', '.join(group)}")
    for name, array in needed.items():
        if name not in ("key", "q") and jnp.shape(array) != shape:
            raise ValueError(f"{name} have shape {jnp.shape(array)}: expected that of log_w, {shape}")
    return estimator.function(**needed, **{name: options[name] for name in estimator.options if name in options})
