"""Arguments of config files: the `key=value,…` after a config file's colon."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.config.schema import FIELDS
from tsallis_rl.runs.errors import UserError


@dataclasses.dataclass(frozen=True)
class Choice:
    """An argument with a closed set of values, the first of which is the default."""

    values: Sequence[str]


class UnknownArgument(UserError):
    """Raised for a key that a config file does not accept after its colon."""


COMMITMENTS = FIELDS["estimator.commitment"].choices
# Arguments that every config file of this package accepts besides its own; see `set_estimator`.
ESTIMATOR_ARGUMENTS = {"q": float, "tau": float, "commitment": str, "estimator": "garl"}


def set_estimator(config: ConfigDict, argument: Mapping[str, Any], *, where: str) -> None:
    """Sets config.estimator from the ESTIMATOR_ARGUMENTS that were read; tau alone chooses the floor.

    Raises:
      UserError: an unknown commitment, q with floor or mixture, or tau with power.
    """
    q, tau, commitment = argument["q"], argument["tau"], argument["commitment"]
    if commitment is not None and commitment not in COMMITMENTS:
        raise UserError(f"{where}: commitment={commitment!r} is not accepted; choose from {', '.join(COMMITMENTS)}")
    if tau is not None and commitment == "power":
        raise UserError(f"{where}: tau={tau:g} is for commitment=floor or mixture, not power; leave one of the two out")
    commitment = commitment or ("power" if tau is None else "floor")
    if q is not None and commitment != "power":
        raise UserError(f"{where}: q={q:g} is for commitment=power, not {commitment}; leave it out")
    config.estimator.update(name=argument["estimator"], commitment=commitment)
    config.estimator.update({name: x for name, x in (("q", q), ("tau", tau)) if x is not None})


def parse_argument(
    argument: str | None, accepted: Mapping[str, Choice | str | int | float | type], *, where: str
) -> dict:
    """Reads the `key=value,key=value` after a config file's colon.

    Args:
      argument: the text after the colon, or None.
      accepted: key -> its default, whose type the value must have; or its Choice; or a type, for a value that is None
        if not given.
      where: the config file's name, for messages.

    Returns:
      key -> value for every accepted key.

    Raises:
      UnknownArgument: an unknown key, or a key without a value; lists those that are accepted.
      UserError: a value that is not accepted, or a key that comes twice.
    """
    values = {key: _default(rule) for key, rule in accepted.items()}
    seen = set()
    for item in filter(None, (argument or "").split(",")):
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals or key not in accepted:
            accepts = ", ".join(f"{k}=…" for k in accepted)
            raise UnknownArgument(f"{where}: unknown argument {item!r}; accepted: {accepts}")
        if key in seen:
            raise UserError(f"{where}: {key} is given twice in {argument!r}; give it once")
        seen.add(key)
        rule = accepted[key]
        if isinstance(rule, Choice):
            if text not in rule.values:
                raise UserError(f"{where}: {key}={text!r} is not accepted; choose from {', '.join(rule.values)}")
            values[key] = text
        else:
            kind = rule if isinstance(rule, type) else type(rule)
            try:
                values[key] = kind(text)
            except ValueError:
                raise UserError(f"{where}: {key}={text!r} is not a {kind.__name__}") from None
    return values


def _default(rule: Choice | str | int | float | type) -> Any:
    if isinstance(rule, Choice):
        return rule.values[0]
    return None if isinstance(rule, type) else rule
