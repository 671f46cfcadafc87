"""The table of estimators, which also finds the user's own, and the function that calls one of them."""

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from tsallis_rl.objectives import gold_rewards, likelihood, rewards
from tsallis_rl.objectives.form import Coefficients
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.own_code import is_dotted, own_failures, own_object


@dataclasses.dataclass(frozen=True)
class Estimator:
    """An estimator: a row of the table ESTIMATORS.

    Attributes:
      name: name in a config; the user's own are named MODULE.NAME, whatever is given here.
      function: takes the quantities that it needs by name, and options as keyword-only ones; returns Coefficients.
      answer: the answer whose log-probability the path coefficient multiplies, "gold" or "sampled".
      source: paper or equation.
      rationale: False for training on the answer directly, with a rationale budget of 0.
      q: the commitment that the name fixes; None is the config's.
      any_proposal: whether its expectation is right for any proposal's rationales, given log w̃ for log w (`proposals`).
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
        """The names of the function's positional arguments, which a group provides; see `coefficients`."""
        return tuple(p.name for p in self._parameters() if p.kind is not inspect.Parameter.KEYWORD_ONLY)

    @property
    def required(self) -> tuple[str, ...]:
        """The names of `needs` without which the function cannot be called."""
        return tuple(p.name for p in self._parameters() if p.name in self.needs and p.default is p.empty)

    @property
    def quantities(self) -> tuple[str, ...]:
        """The names of `needs` that the loop measures on rollouts besides log_w, [P, M]."""
        return tuple(name for name in self.needs if name not in ("key", "log_w", "q"))

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its keyword-only arguments; other fields of a config's estimator section are ignored."""
        return tuple(self.defaults)

    @property
    def defaults(self) -> dict[str, Any]:
        """The function's keyword-only arguments with their defaults."""
        return {p.name: p.default for p in self._parameters() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def _parameters(self) -> Sequence[inspect.Parameter]:
        return tuple(inspect.signature(self.function).parameters.values())


class Estimators(dict[str, Estimator]):
    """Estimators by name. ESTIMATORS["my_module.my_estimator"] loads the user's own; `get` and `in` load nothing.

    One whose module has been loaded again, as in a notebook, is taken from there.
    """

    def __init__(self, rows: Iterable[tuple[str, Estimator]]):
        super().__init__(rows)
        self._own: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Estimator:
        if name in self._own and own_object(name, f"estimator {name!r}") is not self._own[name]:
            self.pop(name, None)
        return super().__getitem__(name)

    def __missing__(self, name: str) -> Estimator:
        """Loads an estimator of the user's by its dotted name, and adds it under that name.

        Raises:
          UserError: no such estimator, or one that no run could use.
        """
        if not is_dotted(name):
            raise UserError(
                f"estimator {name!r} is not known: choose from {', '.join(self)}, or name an Estimator of yours as "
                "MODULE.NAME"
            )
        where = f"estimator {name!r}"
        row = own_object(name, where)
        if not isinstance(row, Estimator):
            module, _, attribute = name.rpartition(".")
            found = f"no {attribute!r}" if row is None else f"{attribute!r}, a {type(row).__name__}"
            raise UserError(
                f"{where}: {module} has {found}, where an Estimator is expected; write {attribute} = "
                'Estimator(NAME, FUNCTION, answer="gold", source=…), of tsallis_rl.objectives'
            )
        with own_failures(where):  # a subclass may compute what a row declares
            self._check(row, where)
            self[name], self._own[name] = _renamed(row, name), row
        return self[name]

    def find(self, name: str) -> Estimator | None:
        """Finds an estimator, and loads the user's own; returns None for an unknown name without a dot."""
        return self[name] if is_dotted(name) else self.get(name)

    def _check(self, row: Estimator, where: str) -> None:
        """Refuses a row that needs quantities that the loop does not measure, or whose options no config can hold."""
        if row.answer not in ("gold", "sampled"):
            raise UserError(f"{where}: its answer is {row.answer!r}; choose gold or sampled")
        is_number = isinstance(row.q, int | float) and not isinstance(row.q, bool)
        if row.q is not None and not (is_number and 0 <= row.q <= 1):
            raise UserError(f"{where}: its q is {row.q!r:.60}; choose a number from 0 to 1, or None")
        for name in ("rationale", "any_proposal"):
            if not isinstance(value := getattr(row, name), bool):
                raise UserError(f"{where}: its {name} is {value!r:.60}; choose True or False")
        try:
            inspect.signature(row.function)
        except (TypeError, ValueError):  # not callable, or without a signature
            raise UserError(f"{where}: its function is {row.function!r:.60}; give a function of Python") from None
        _check_declared(row, where)
        known = dict.fromkeys(("key", "log_w", "q", *(name for other in self.values() for name in other.quantities)))
        for name in dict.fromkeys((*row.needs, *row.required, *row.quantities)):
            if name not in known:
                raise UserError(
                    f"{where}: its function takes {name!r}, which is not measured for rollouts; choose its positional "
                    f"arguments from {', '.join(known)}, and make options keyword-only, after *"
                )
            if (name in _OF_SAMPLED) > (row.answer == "sampled") or (name in _OF_GOLD) > (row.answer == "gold"):
                raise UserError(
                    f"{where}: its function takes {name!r}, which rollouts with {row.answer} answers lack; choose the "
                    "other answer, or leave that argument out"
                )
        for name, default in row.defaults.items():
            if hasattr(ConfigDict, name):
                raise UserError(f"{where}: its option {name} has the name of a method of settings; give it another")
            is_nan = isinstance(default, float) and math.isnan(default)  # a saved setting would never equal it
            if type(default) not in (bool, int, float, str) or is_nan:
                told = "no default" if default is inspect.Parameter.empty else f"the default {default!r:.60}"
                raise UserError(
                    f"{where}: its option {name} has {told}; give it one that is a bool, int, float or str, and not NaN"
                )


def _check_declared(row: Estimator, where: str) -> None:
    """Refuses a row of a subclass that computes what a row declares, and does not give names.

    Raises:
      UserError: names what is wrong.
    """
    for attribute in ("needs", "required", "quantities", "options"):
        names = getattr(row, attribute)
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{where}: its {attribute} is {names!r:.60}; give a tuple of names, or leave it out")
    if not isinstance(row.defaults, dict):
        raise UserError(f"{where}: its defaults is {row.defaults!r:.60}; give a dict, or leave it out")


def _renamed(row: Estimator, name: str) -> Estimator:
    """Copies a row under another name; a subclass may have an __init__ of its own, so it is not made anew."""
    renamed = copy.copy(row)
    object.__setattr__(renamed, "name", name)  # rows are frozen
    return renamed


_OF_SAMPLED = ("rewards", "rank_weight")
_OF_GOLD = ("gold_prob", "gold_prob_without", "usual_std")  # measured when the gold answer is scored for the update

ESTIMATORS = Estimators(
    (row.name, row)
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
)


def samples_rationales(asked: str, estimator: Estimator | None) -> bool:
    """Returns whether evaluations sample a rationale before the answer.

    Args:
      asked: config.evaluate.rationale.
      estimator: the run's; None where its module is not here, and rationales are assumed.
    """
    return asked == "sampled" or (asked == "auto" and (estimator is None or estimator.rationale))


def follows_q(name: str, commitment: str) -> bool:
    """Returns whether an estimator uses a config's q: it takes q, and is not set to a commitment without one.

    Raises:
      UserError: there is no such estimator.
    """
    row = ESTIMATORS[name]
    return "q" in row.needs and (commitment == "power" or "commitment" not in row.options)


def followed_commitment(settings: Mapping[str, Any], logged_q: float | None = None) -> dict[str, Any]:
    """Selects the settings of an estimator's commitment: its q, or `commitment` and `tau`; {} if it has none.

    Args:
      settings: a config's estimator section. The user's own estimators are not loaded for it.
      logged_q: the `train/q` of a run, or None; an own estimator that is not loaded has a q if its run logged one.
    """
    name, commitment = settings["name"], settings.get("commitment", "power")
    by_tau = {} if commitment == "power" else {"commitment": commitment, "tau": settings["tau"]}
    if (row := ESTIMATORS.get(name)) is None:
        by_q = {} if logged_q is None else {"q": logged_q}
        return (by_tau or by_q) if is_dotted(name) else {}
    if row.q is not None:
        return {"q": float(row.q)}
    if follows_q(name, commitment):
        return {"q": settings["q"]}
    return by_tau if "commitment" in row.options else {}


def estimator_at(text: str) -> tuple[Estimator, float | None] | None:
    """Reads NAME@Q as an estimator and a commitment, NAME alone with None; returns None for anything else.

    Raises:
      UserError: an own estimator could not be used by any run.
    """
    name, at, commitment = text.partition("@")
    try:
        q = float(commitment) if at else None
    except ValueError:
        return None
    row = ESTIMATORS.find(name)
    return None if row is None or not 0 <= (q or 0) <= 1 else (row, q)


def compared_estimators(config: Mapping[str, Any]) -> set[str]:
    """Names the known and own estimators in the NAME@Q entries of config.shadow; none if it is off."""
    names = {str(compared).partition("@")[0] for compared in config["estimators"]} if config["every"] else set()
    return {name for name in names if is_dotted(name) or name in ESTIMATORS}


def coefficients(estimator: Estimator, options: Mapping[str, Any], group: Mapping[str, ArrayLike]) -> Coefficients:
    """Calls an estimator's function with the quantities of a group and the options that it takes → [..., M].

    Args:
      estimator: a row of the table.
      options: the estimator's; others are ignored, so a config's section will do.
      group: log_w [..., M] and, by name, the other quantities that the estimator needs; others are ignored. `key` is
        typed keys of shape log_w.shape[:-1], or a single one; `q` is a scalar or broadcastable to that shape; all
        others have log_w's shape.

    Raises:
      ValueError: the group lacks a quantity that the estimator needs, one of its arrays has another shape, or the
        estimator does not return Coefficients of log_w's shape.
    """
    shape = jnp.shape(group["log_w"])
    needed = {name: group[name] for name in estimator.needs if name in group}
    if missing := [name for name in estimator.required if name not in group]:
        raise ValueError(f"estimator {estimator.name} needs {', '.join(missing)}: the group has {', '.join(group)}")
    for name, array in needed.items():
        if name not in ("key", "q") and jnp.shape(array) != shape:
            raise ValueError(f"{name} have shape {jnp.shape(array)}: expected that of log_w, {shape}")
    found = estimator.function(**needed, **{name: options[name] for name in estimator.options if name in options})
    if not isinstance(found, Coefficients) or not all(jnp.shape(x) == shape and _is_floating(x) for x in found):
        leaves = (f"{getattr(x, 'dtype', type(x).__name__)} {jnp.shape(x)}" for x in jax.tree.leaves(found))
        told = f"a {type(found).__name__} of {', '.join(leaves)}"
        raise ValueError(
            f"estimator {estimator.name} returns {told}: expected Coefficients of two arrays of floats {shape}"
        )
    return found


def _is_floating(array: ArrayLike) -> bool:
    return jnp.issubdtype(jnp.result_type(array), jnp.floating)
