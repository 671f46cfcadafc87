"""Graders: pure functions of (prediction, example), each score in [0, 1].

`exact` and `substring` are the paper's (docs/method.md §6). Substring match is lenient: "15.5" passes for "5".
`substring_bounded` asks for a whole word or number instead. Each task has its official metrics as well.
"""

import re
import string
from collections import Counter

from tsallis_rl.tasks.base import Example


def exact(prediction: str, example: Example) -> float:
    """Scores 1 if the prediction is the gold string, apart from white space around it."""
    return float(prediction.strip() == example.answer)


def substring(prediction: str, example: Example) -> float:
    """Scores 1 if the gold string stands anywhere in the prediction."""
    return float(example.answer in prediction)


def substring_bounded(prediction: str, example: Example) -> float:
    """Scores 1 if the prediction holds the gold string as whole words, or as a number with its sign and percent."""
    gold = example.answer
    before = r"(?<!\w)(?<!\d[.,])"
    after = r"(?!\w)(?![.,]\d)"
    if gold[:1].isdigit():
        before += r"(?<![-−.])"
    if gold[-1:].isdigit():
        after += r"(?!\s?%)"
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


_NUMBER = re.compile(
    r"""(?P<sign>(?<![\w.])[-−])?\s*\$?\s*      # a sign stands free: the second number of 2001-5 has none
        (?P<digits>\d+(?:\.\d*)?|\.\d+)
        (?P<power>e[-+]?\d+)?
        \s*(?P<unit>%|percent|thousand|million|billion|trillion)?""",
    re.VERBOSE,
)
_UNITS = {"%": 1e-2, "percent": 1e-2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_TOLERANCE = 0.05  # relative: what rounding to two significant digits may change
_ROUNDING = 5e-6  # absolute: exe_ans is rounded to five decimals


def readings(text: str) -> list[tuple[float, float]]:
    """Reads the only number in a text in each way it can be meant; none if there is not exactly one number.

    A reading is (value, unit of its last digit). A unit gives a second reading, for FinQA's gold numbers may be in
    percent or in millions: "3.8%" is 3.8 or 0.038.
    A number in parentheses alone, as in ledgers, is negative.
    """
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower().strip())
    ledger = re.fullmatch(r"\$?\s*\(([^()]*)\)", text)
    found = list(_NUMBER.finditer(ledger[1] if ledger else text))
    if len(found) != 1:
        return []
    number = found[0]
    negative = bool(number["sign"]) != bool(ledger)
    power = 10.0 ** int((number["power"] or "e0")[1:])
    value = float(number["digits"]) * power * (-1 if negative else 1)
    last = 10.0 ** -len(number["digits"].partition(".")[2]) * power
    scales = [1.0, *([_UNITS[number["unit"]]] if number["unit"] else [])]
    return [(value * scale, last * scale) for scale in scales]


def _says(value: float, last: float, gold: float) -> bool:
    """Tells whether `value`, whose last digit counts `last`, is `gold` rounded or cut there, or equal to 5 decimals."""
    error = abs(value - gold)
    cut = value * gold >= 0 and 0 <= abs(gold) - abs(value) < last
    return error <= _ROUNDING or ((cut or error <= last / 2 * (1 + 1e-9)) and error <= _TOLERANCE * abs(gold))


def execution_accuracy(prediction: str, gold: str) -> float:
    """Scores 1 if the prediction says `gold`, FinQA's exe_ans: yes, no, or a number.

    A number is right if it is gold rounded or cut at the prediction's own last digit, and within 5% of it.
    """
    wanted = readings(gold)
    if not wanted:
        return float(normalize(prediction) == normalize(gold))
    return float(any(_says(value, last, wanted[0][0]) for value, last in readings(prediction)))


def finqa(prediction: str, example: Example) -> dict[str, float]:
    """Scores string matches to the gold field, and execution accuracy, which is always against exe_ans."""
    return {
        **match_grades(prediction, example),
        "execution_accuracy": execution_accuracy(prediction, example.aliases[0]),
    }


def number_key(text: str) -> str:
    """Makes the vote key of a numeric answer: no white space, dollar signs or thousands separators."""
    return re.sub(r"[\s$]|(?<=\d),(?=\d{3})", "", text.lower())
