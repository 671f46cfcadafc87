"""Lists the commands: python -m tsallis_rl"""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from tsallis_rl.config.suggestions import nearest
from tsallis_rl.runs.errors import UserError, one_sentence

COMMANDS = ("main", "sweep", "report", "evaluate", "export", "replay", "regenerate", "tasks", "laboratory")


def listing() -> str:
    """Returns one line per command: the first of its module's docstring, read without importing jax."""
    lines = [f"  python -m tsallis_rl.{name:<12} {_first_line(name)}" for name in COMMANDS]
    head = "Trains reasoning language models from answers alone. Each command's --help has examples and flags."
    return "\n".join([head, "", *lines])


def _first_line(name: str) -> str:
    module = Path(__file__).parent / name
    file = module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the list; refuses anything but --help."""
    with one_sentence(is_process=arguments is None):
        for word in sys.argv[1:] if arguments is None else arguments:
            if word not in ("--help", "-h"):
                name = (nearest(word, COMMANDS, 1) or COMMANDS)[0]
                raise UserError(
                    f"{word!r}: each command is a module, as python -m tsallis_rl.{name}; --help lists them"
                )
        print(listing())


if __name__ == "__main__":
    main()
