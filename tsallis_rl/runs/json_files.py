"""JSON files that people bring, each of which must hold one object."""

import json
from pathlib import Path
from typing import Any

from tsallis_rl.runs.errors import UserError


def read_object(file: Path) -> dict[str, Any]:
    """What `file` holds; raises UserError when it cannot be read or is not a JSON object."""
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); copy the folder again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); copy the folder again") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds {found!r:.60} where an object {{…}} is expected; copy the folder again")
    return found
