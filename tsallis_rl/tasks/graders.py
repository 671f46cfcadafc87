"""Graders: pure functions of (prediction, example), each score in [0, 1].

`exact` and `substring` are the paper's (docs/method.md §6). Substring match is lenient: "15.5" passes for "5".
`substring_bounded` asks for a whole word or number instead. Each task has its official metrics as well.

Predictions are written by a model: no grader or vote key raises on any text, and each takes linear time.
"""

import re
import string
import unicodedata
from collections import Counter
from fractions import Fraction

from tsallis_rl.tasks.base import Example
from tsallis_rl.tasks.numerals import INVISIBLE, LONGEST, UNITS, UNREAD, Number, numbers, plain, quotient


def exact(prediction: str, example: Example) -> float:
    """Scores 1 if the prediction is the gold string, apart from white space around it."""
    return float(prediction.strip() == example.answer)


def substring(prediction: str, example: Example) -> float:
    """Scores 1 if the gold string is anywhere in the prediction."""
    return float(example.answer in prediction)


def substring_bounded(prediction: str, example: Example) -> float:
    """Scores 1 if the prediction holds the gold string as whole words, or as a number with its sign and percent."""
    gold = example.answer
    before = r"(?<!\w)(?<!\d[.,])"
    after = r"(?!\w)(?![.,]\d)"
    if gold[:1].isdigit():
        before += r"(?<![-−–‐‑.])"
    if gold[-1:].isdigit():
        after += r"(?!\s?(?:\\?[%％]|per\s?cent))"
    return float(re.search(before + re.escape(gold) + after, prediction) is not None)


def match_grades(prediction: str, example: Example) -> dict[str, float]:
    """Scores the three string matches: name -> score."""
    return {
        "exact": exact(prediction, example),
        "substring": substring(prediction, example),
        "substring_bounded": substring_bounded(prediction, example),
    }


_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Normalises as HotPotQA and MuSiQue do: lower case, no ASCII punctuation, no a/an/the, single spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def token_f1(prediction: str, gold: str) -> float:
    """Computes the harmonic mean of precision and recall over words of two normalised texts; 0 if they share none."""
    predicted, wanted = prediction.split(), gold.split()
    shared = (Counter(predicted) & Counter(wanted)).total()
    return 2 * shared / (len(predicted) + len(wanted)) if shared else 0.0


def hotpotqa(prediction: str, example: Example) -> dict[str, float]:
    """Scores string matches, and HotPotQA's em and f1; f1 is all or nothing where either answer is yes or no."""
    given, gold = normalize(prediction), normalize(example.answer)
    closed = {given, gold} & {"yes", "no", "noanswer"}
    f1 = 0.0 if closed and given != gold else token_f1(given, gold)
    return {**match_grades(prediction, example), "em": float(given == gold), "f1": f1}


def musique(prediction: str, example: Example) -> dict[str, float]:
    """Scores string matches, and MuSiQue's em and f1, each the best over the answer and its aliases."""
    given = normalize(prediction)
    golds = [normalize(gold) for gold in (example.answer, *example.aliases)]
    f1 = max(token_f1(given, gold) if given and gold else float(given == gold) for gold in golds)
    return {**match_grades(prediction, example), "em": float(given in golds), "f1": f1}


_TOLERANCE = Fraction(5, 100)  # relative: what rounding to two significant digits may change
_TOLERANCE_OF_PERCENTS = Fraction(10, 100)  # for rounded whole percents, as people write them: 6% for 0.05677
_ROUNDING = Fraction(5, 10**6)  # absolute: exe_ans is rounded to five decimals
_ANSWER_IS = re.compile(r"(?:the )?(?:final )?answer(?: is)?(?: ?:)? ")


def _says(number: Number, gold: Fraction) -> bool:
    """Returns whether a number is `gold`, read with its unit or without: gold may be in percent or in millions."""
    most = _TOLERANCE_OF_PERCENTS if number.last * number.scale == Fraction(1, 100) else _TOLERANCE
    return any(
        _is_rounded(number.value * unit, number.last * unit, gold, most * abs(gold))
        for unit in {Fraction(1), number.scale}
    )


def _is_rounded(value: Fraction, last: Fraction, gold: Fraction, most: Fraction) -> bool:
    """Returns whether `value` is `gold`, rounded or truncated at the last digit of `value`, or equal to 5 decimals.

    Args:
      value: the number to compare.
      last: place value of its last digit.
      gold: the number to compare with.
      most: largest rounding error that is accepted.
    """
    error = abs(value - gold)
    is_cut = value * gold >= 0 and 0 <= abs(gold) - abs(value) < last and error <= _TOLERANCE * abs(gold)
    return error <= _ROUNDING or is_cut or (error <= last / 2 and error <= most)


def _said(text: str, *, ledger: bool) -> list[Number]:
    """Reads the number that an answer states; none if it states several.

    If it states the same number twice, as in "$5 million ($5,000,000)", both forms are returned. Of a number and its
    rounding, as in "14.5% (0.14464)", the finer one is returned.
    """
    found = numbers(text, ledger=ledger)
    if len(found) == 2:
        finer, coarser = sorted(found, key=lambda number: number.last * number.scale)
        if finer.scaled == coarser.scaled:
            return found
        most = _TOLERANCE * abs(finer.scaled)
        rounded = _is_rounded(coarser.scaled, coarser.last * coarser.scale, finer.scaled, most)
        return [finer] if rounded else []
    return found if len(found) == 1 else []


def execution_accuracy(prediction: str, gold: str) -> float:
    """Scores 1 if the prediction says `gold`, FinQA's exe_ans: yes, no, or a number.

    A number is right if it is gold, rounded or truncated at the prediction's own last digit, and within 5% of it, or
    10% for whole percents. Other numbers beside it make it wrong; the same number may be stated twice.
    """
    wanted = numbers(gold, ledger=False)
    if len(wanted) != 1:
        return float(normalize(_words(prediction)) == normalize(gold))
    return float(any(_says(number, wanted[0].value) for number in _said(prediction, ledger=True)))


def _words(text: str) -> str:
    """Normalises an answer's text and removes "the answer is" before it."""
    text = plain(text)
    return text[found.end() :] if (found := _ANSWER_IS.match(text)) else text


def finqa(prediction: str, example: Example) -> dict[str, float]:
    """Scores string matches to the gold field, and execution accuracy, which is always against exe_ans."""
    return {
        **match_grades(prediction, example),
        "execution_accuracy": execution_accuracy(prediction, example.aliases[0]),
    }


def number_key(text: str, *, ledger: bool = True) -> str:
    """Makes the vote key of an answer that may be a number: its value (0.125 for 12.5%), else its words.

    Args:
      text: the answer.
      ledger: whether a number alone in parentheses is negative.
    """
    if found := _said(text, ledger=ledger):
        return str(found[0].scaled)
    words = _words(text).strip(" .,;:!?")
    return text.strip() if not words or UNREAD in words else words  # different unread signs would look the same


_AROUND = '.,;:!?"“”„«»`…。，、！？：；「」『』'  # characters around a word that are no part of it
_MARKS = ("***", "**", "*", "__", "_", "'")  # around a whole answer, on both sides
_SIGNS = str.maketrans(dict.fromkeys("−–—‐‑", "-") | dict.fromkeys("‘’", "'"))


def own_words(text: str) -> str:
    """Normalises an answer of a user's own task: case, white space, punctuation around words, an article before it.

    Signs that tell answers apart stay, as in −5, 1.5, C++, 5% and [0, 1). No answer that says something becomes empty.
    """
    text = text.translate(INVISIBLE).translate(_SIGNS).strip() or text.strip()
    if len(text) <= LONGEST:  # composing takes time quadratic in the number of accents
        text = unicodedata.normalize("NFC", text)
    for mark in _MARKS:
        if text.startswith(mark) and text.endswith(mark) and len(text) > 2 * len(mark):
            text = text[len(mark) : -len(mark)]
            break
    if text.startswith("(") and text.endswith(")") and text[1:-1].isalnum():
        text = text[1:-1]
    words = [_bare(word) for word in text.lower().split()]
    is_article = len(words) > 1 and (words[0] == "the" or (words[0] in ("a", "an") and words[1][1:].isalpha()))
    return " ".join(words[is_article:])


def _bare(word: str) -> str:
    """Strips punctuation around a word and the dots of u.s., but not the point of .5 or the sign of n!."""
    left = word.lstrip(_AROUND)
    before = word[: len(word) - len(left)]
    if before.endswith(".") and not before.endswith(".."):
        left = "." + left
    right = left.rstrip(_AROUND)
    if (right[-1:].isdigit() or len(right) == 1) and left[len(right) :].startswith("!"):
        right += "!"
    bare = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", right)
    return re.sub(r"(?<![^\W\d_])([^\W\d_])\.(?=[^\W\d_](?![^\W\d_]))", r"\1", bare) or word


_WORDS_THAT_COUNT = frozenset(unit for unit in UNITS if len(unit) > 3)  # "5 m" may be metres, "5 million" is no 5


def _meant(number: Number) -> set[Fraction]:
    """Lists the values that a number with its unit may mean."""
    if not number.unit or number.is_percent:
        return {number.value}
    return {number.scaled} if number.unit in _WORDS_THAT_COUNT else {number.value, number.scaled}


def numeric(prediction: str, gold: str, tolerance: float = 0.0) -> float:
    """Scores 1 if the prediction holds gold's number and no other; 0 if gold is no number.

    A fraction in lowest terms is a number as well. A percent sign may be left out or added if the number then is the
    same: 50 and 0.5 for 50%, 50% for 0.5.

    Args:
      prediction: the model's answer.
      gold: a number, with a unit or without.
      tolerance: relative difference that is accepted.
    """
    (said, as_percent), (wanted, of_percent) = _values(prediction), _values(gold)
    pairs = [(x, y) for x in said for y in wanted]
    if as_percent and not of_percent:
        pairs += [(x / 100, y) for x in said for y in wanted]
    if of_percent and not as_percent:
        pairs += [(x, y / 100) for x in said for y in wanted]
    accepted = Fraction(tolerance)
    return float(any(abs(x - y) <= accepted * abs(y) for x, y in pairs))


def _values(text: str) -> tuple[set[Fraction], bool]:
    """Reads the values that a text may mean, none if it is no number, and whether they are percents."""
    if (fraction := quotient(text)) is not None:
        return {fraction}, False
    found = _said(text, ledger=False)
    return (_meant(found[0]), found[0].is_percent) if found else (set(), False)


def numeric_key(text: str) -> str:
    """Makes the vote key of an answer that may be a number or a fraction, otherwise as `number_key`."""
    fraction = quotient(text)
    return number_key(text, ledger=False) if fraction is None else str(fraction)


def own_task(prediction: str, example: Example, *, tolerance: float = 0.0) -> dict[str, float]:
    """Scores an answer to a user's own task; each score is the best over the gold answer and its aliases.

    Args:
      prediction: the model's answer.
      example: the example with its golds.
      tolerance: relative difference that `numeric` accepts.
    """
    golds = [gold for gold in (example.answer, *example.aliases) if gold.strip()]
    words = own_words(prediction)
    wanted = [own_words(gold) for gold in golds]
    matches = [match_grades(prediction, Example("", "", gold.strip())) for gold in golds]
    return {
        **{name: max(match[name] for match in matches) for name in matches[0]},
        "em": float(words in wanted),
        "f1": max(token_f1(words, gold) for gold in wanted),
        "numeric": max(numeric(prediction, gold, tolerance) for gold in golds),
    }
