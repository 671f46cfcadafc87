"""Arguments of config files: the `key=value,…` after a config file's colon."""

import dataclasses
from collections.abc import Mapping, Sequence

from tsallis_rl.runs.errors import UserError


@dataclasses.dataclass(frozen=True)
class Choice:
    """An argument with a closed set of values, the first of which is the default."""

    values: Sequence[str]


def parse_argument(argument: str | None, accepted: Mapping[str, Choice | str | int | float], *, where: str) -> dict:
    """Reads the `key=value,key=value` after a config file's colon.

    Args:
      argument: the text after the colon, or None.
      accepted: key -> its default (whose type the value must have), or the Choice it is made from.
      where: the config file's name, for messages.

    Returns:
      key -> value for every accepted key.

    Raises:
      UserError: an unknown key, a key without a value, or a value that is not accepted; says what is.
    """
    values = {key: rule.values[0] if isinstance(rule, Choice) else rule for key, rule in accepted.items()}
    seen = set()
    for item in filter(None, (argument or "").split(",")):
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals or key not in accepted:
            raise UserError(f"{where}: unknown argument {item!r}; accepted: {', '.join(f'{k}=…' for k in accepted)}")
        if key in seen:
            raise UserError(f"{where}: {key} is given twice in {argument!r}; give it once")
        seen.add(key)
        rule = accepted[key]
        if isinstance(rule, Choice):
            if text not in rule.values:
                raise UserError(f"{where}: {key}={text!r} is not accepted; choose from {', '.join(rule.values)}")
            values[key] = text
        else:
            try:
                values[key] = type(rule)(text)
            except ValueError:
                raise UserError(f"{where}: {key}={text!r} is not a {type(rule).__name__}") from None
    return values
