r"""Grades mathematical answers by what they mean: \frac{1}{2} is 0.5, (x+1)^2 is x^2+2x+1.

The library math-verify decides, in a process of its own (`math_worker`), since no limit on an expression's text bounds
the cost of comparing it. An answer that is long, deeply nested or has a large power is not compared.
"""

import atexit
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Example
from tsallis_rl.tasks.numerals import UNITS, numbers, quotient

LONGEST = 300  # characters of an answer that is compared
DEEPEST = 12  # levels of nested brackets
SECONDS = 2.0  # of processor time for one comparison; an answer that takes more counts as wrong

_POWER = re.compile(r"(?:\^|\*\*) ?[{(]? ?-?(?:[0-9]{3}|[^{}()0-9 ]{0,3}[\^!])|[)}\]] ?(?:\^|\*\*) ?[{(]? ?[0-9]{2}|!")
_MEANINGLESS = re.compile(r"\\?\$|\\[()\[\],;:! ]|\\(?:left|right)(?![A-Za-z])")
_SPACE = re.compile(r"\\?\s")
_BOXED = r"\boxed{"
_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3}){1,6}(?:\.[0-9]{1,20})?")
_COUNTED = re.compile(r"(\S{1,60}) ([A-Za-z]{3,20}(?: [A-Za-z]{1,20}){0,6})")
_NO_NOUNS = {
    *(word for unit in UNITS for word in unit.split()),
    *("plus", "minus", "times", "over", "divided", "squared", "cubed", "factorial", "root", "sqrt", "mod", "modulo"),
    *("and", "or", "to", "by", "not", "more", "less", "than", "half", "halves", "thirds", "quarters", "dozen", "pairs"),
}
_PLAIN = re.compile(r"[-+]?[0-9]{1,20}(?:\.[0-9]{0,20})?|[-+]?\.[0-9]{1,20}")


def check_installed(field: str) -> None:
    """Raises UserError if the library is missing; `field` asked for it."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(f"config.{field}=math needs the package math-verify: pip install 'tsallis_rl[math]'")


def math(prediction: str, example: Example) -> float:
    """Scores 1 if the prediction is mathematically the gold answer or one of its aliases."""
    golds = tuple(gold.strip() for gold in (example.answer, *example.aliases) if gold.strip())
    return float(_is_equal(prediction.strip(), golds))


def math_key(text: str) -> str:
    r"""Makes the vote key of a mathematical answer: the value of a plain number or fraction, else the text.

    Signs without meaning are removed: \boxed around it, dollars, \left, spaces except between letters or digits, and
    words that a number counts.
    """
    text = text.strip()
    bare = _without_signs(text)
    if (value := _plain_value(bare)) is not None:
        return str(value)
    if (fraction := quotient(text)) is not None:
        return str(fraction)
    return re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", bare) or text


def _without_signs(text: str) -> str:
    r"""Removes \boxed around an answer, dollars, \left and the like, and the full stop."""
    bare = " ".join(_MEANINGLESS.sub(" ", text).split()).rstrip(" .")
    if bare.startswith(_BOXED) and is_one_group(bare[len(_BOXED) - 1 :]):
        bare = bare[len(_BOXED) : -1].strip()
    return bare


def _plain_value(bare: str) -> Fraction | None:
    """Reads a plain number, or one with the words that it counts ("18 eggs"), which are no factors; None: neither."""
    counted = _COUNTED.fullmatch(bare)
    if counted and _NO_NOUNS.isdisjoint(counted[2].lower().split()):
        bare = counted[1]
    if _THOUSANDS.fullmatch(bare):
        bare = bare.replace(",", "")
    return numbers(bare, ledger=False)[0].value if _PLAIN.fullmatch(bare) else None


def is_one_group(text: str) -> bool:
    """Returns whether the brace that opens a text is closed by its last character."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return i == len(text) - 1
    return False


@functools.lru_cache(maxsize=10_000)
def _is_equal(answer: str, golds: tuple[str, ...]) -> bool:
    """Compares an answer with its golds; asks the library only if text or plain numbers do not decide.

    The library takes a word for a product of letters, so that "seat" would be "east": the answer must hold the word.
    """
    if answer in golds:
        return True
    letters = _SPACE.sub("", answer).casefold()
    golds = tuple(gold for gold in golds if not _is_words(gold) or _SPACE.sub("", gold).casefold() in letters)
    if not golds:
        return False
    values = [_plain_value(_without_signs(text)) for text in (answer, *golds)]
    if None not in values:
        return values[0] in values[1:]
    return is_small(answer) and _worker().is_equal(answer, golds)


def _is_words(gold: str) -> bool:
    return len(gold) > 2 and gold.isascii() and gold.replace(" ", "").isalpha()


def is_small(answer: str) -> bool:
    """Returns whether an answer is short, flat and without large powers or factorials."""
    if not answer or len(answer) > LONGEST or _POWER.search(answer):
        return False
    depth = deepest = 0
    for character in answer:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest <= DEEPEST


class Worker:
    """A process that compares answers; if it ended on an answer, the next answer starts another.

    Args:
      seconds: processor time for one comparison.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._process: subprocess.Popen | None = None
        atexit.register(self.close)

    def is_equal(self, answer: str, golds: Sequence[str]) -> bool:
        """Asks the process whether an answer equals one of its golds; one on which it ends equals nothing.

        Raises:
          RuntimeError: the process does not start.
        """
        process = self._process or self._start()
        try:
            process.stdin.write(json.dumps({"answer": answer, "golds": golds}) + "\n")
            process.stdin.flush()
            said = process.stdout.readline()
        except OSError:
            said = ""
        if not said:
            self.close()
        return said.strip() == "1"

    def _start(self) -> subprocess.Popen:
        """Starts the process and waits until it is ready; its hash seed is fixed, so that sets keep their order."""
        command = [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py")), str(self._seconds)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": "0"},
            start_new_session=True,  # an interrupt is for the program that asks
        )
        if process.stdout.readline().strip() != "1":
            process.kill()
            raise RuntimeError("the process that compares mathematical answers does not start")
        self._process = process
        return process

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process:
            process.kill()
            process.communicate()


@functools.cache
def _worker() -> Worker:
    return Worker(SECONDS)
