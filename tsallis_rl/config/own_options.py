"""Fields for the options of users' own estimators, which the table of settings lacks."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.config.schema import FIELDS
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.own_code import is_dotted


def set_own_options(config: ConfigDict, names: Iterable[str]) -> None:
    """Adds to config.estimator the options of the estimators `names` that the schema lacks.

    Removes those of config.estimator.name that none of `names` has. An option that the config has already keeps its
    value, so that config files can set it.

    Raises:
      UserError: there is no such estimator; an option has another default than the schema's field of that name; or the
        config has a value of another type.
    """
    section = config.estimator
    wanted: dict[str, Any] = {}
    for name in names:
        wanted = _own_options(name) | wanted
    with section.unlocked():
        for option in _own_options(section.name).keys() - wanted.keys():
            if option in section:
                del section[option]
        for option, default in wanted.items():
            value = section.get(option, default)
            if type(value) is not type(default) and (type(value), type(default)) != (int, float):
                raise UserError(
                    f"config.estimator.{option}={value!r:.60} is of another type: the default is {default!r}"
                )
            if option in section:
                del section[option]  # a field keeps its type
            section[option] = type(default)(value)


def _own_options(name: Any) -> dict[str, Any]:
    """Returns the options of an estimator that the schema lacks, with their defaults; {} for a row of ESTIMATORS."""
    if not isinstance(name, str) or not is_dotted(name):
        return {}
    from tsallis_rl.objectives import ESTIMATORS  # here, since it imports jax, for which no flag should wait

    found = ESTIMATORS[name].defaults
    for option, default in found.items():
        field = FIELDS.get(f"estimator.{option}")
        if field and repr(default) != repr(field.default):
            raise UserError(
                f"estimator {name!r}: its option {option} has the default {default!r:.60}, and "
                f"config.estimator.{option} has {field.default!r}; give it that default, or another name"
            )
    return {option: default for option, default in found.items() if f"estimator.{option}" not in FIELDS}
