"""Reads the numbers in a model's answer, with its LaTeX, typography, signs and units.

No text raises, and none takes more than linear time. A text longer than LONGEST characters, with runs of white space
counted once, is not searched and holds no number. In shorter texts every repetition of a pattern has an upper limit,
which bounds the cost of a search.
"""

import re
import unicodedata
from fractions import Fraction
from itertools import islice
from math import gcd
from typing import NamedTuple

LONGEST = 1000  # characters of an answer in which numbers are looked for
MOST = 3  # numbers read at most; an answer with that many counts as none
UNREAD = "\N{REPLACEMENT CHARACTER}"  # stands for LaTeX that changes a number, such as \sqrt
_THIN = "\ue000"  # stands for a space that may separate groups of three digits

INVISIBLE = dict.fromkeys(  # characters of width 0: joiners, soft hyphens, directions of writing
    (0xAD, 0x61C, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A))
)
_SCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺"
_TYPOGRAPHY = (
    {wide: chr(wide - 0xFEE0) for wide in range(0xFF01, 0xFF5F)}
    | str.maketrans(
        dict.fromkeys("−‐‑‒–—―﹣－", "-")
        | dict.fromkeys("\u00a0\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f", _THIN)
        | {part: " " + unicodedata.normalize("NFKC", part).replace("⁄", "/") for part in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
        | {"﹪": "%", "٪": "%", "٫": ".", "٬": ",", "’": "'"}
        | dict.fromkeys("√∛∜π∞±∓≠≤≥", UNREAD)
    )
    | INVISIBLE
)
_SUPERSCRIPT = re.compile(rf"(?<=[0-9)])[{_SCRIPT}]{{1,5}}")
_POWERS = str.maketrans(_SCRIPT, "0123456789-+")
_TAG = re.compile(r"</?[A-Za-z]{1,20}>")

_BRACED_FRACTION = re.compile(
    r"\\[dt]?frac ?\{ ?(-?[0-9]{1,12}) ?\} ?\{ ?([0-9]{1,12}) ?\}|\\[dt]?frac ?([0-9])([0-9])"
)
_LATEX = re.compile(r"\\(?:[A-Za-z]{1,20}|[^A-Za-z])|\{,\}|\*\*|[{}`_~]")
_LATEX_SIGNS = {
    **dict.fromkeys(("{", "}", r"\{", r"\}", r"\!"), ""),
    **dict.fromkeys((r"\,", r"\;", r"\:", r"\ ", "~"), _THIN),
    **dict.fromkeys((r"\(", r"\)", r"\[", r"\]", r"\\", r"\quad", r"\qquad", r"\n", "`", "_", "**"), " "),
    **dict.fromkeys((r"\text", r"\textbf", r"\textit", r"\textrm", r"\mathrm", r"\mathbf", r"\mathit"), " "),
    **dict.fromkeys((r"\boxed", r"\fbox", r"\bf", r"\rm", r"\bm", r"\mathsf", r"\boldsymbol", r"\mbox"), " "),
    **dict.fromkeys((r"\emph", r"\underline", r"\num", r"\texttt", r"\textsf"), " "),
    **dict.fromkeys((r"\displaystyle", r"\textstyle", r"\left", r"\right", r"\big", r"\Big", r"\bigl", r"\bigr"), " "),
    **dict.fromkeys((r"\approx", r"\simeq", r"\sim", r"\thickapprox"), "≈"),
    **dict.fromkeys((r"\times", r"\cdot"), "×"),
    **{r"\%": "%", r"\$": "$", r"\#": "#", r"\&": "&", r"\_": " ", "{,}": ",", r"\percent": "%", r"\euro": "€"},
    **{r"\pounds": "£", r"\textdollar": "$", r"\textpercent": "%", r"\textminus": "-"},
}  # fmt: skip


def plain(text: str) -> str:
    """Rewrites typography, LaTeX and Markdown as plain text in lower case with single spaces.

    Whatever changes a number but is not understood, such as a root or ±, becomes UNREAD, so that the text is not read
    as a number. Digits of other scripts become 0 to 9.
    """
    text = " ".join(text.translate(_TYPOGRAPHY).split())
    if len(text) <= LONGEST:
        text = _boxed(_TAG.sub(" ", text)).strip()
        text = re.sub(r"(?![0-9])\d", lambda digit: str(unicodedata.decimal(digit[0])), text)
        text = re.sub(r"(?<=[0-9])'(?=[0-9]{3}(?![0-9]))", "", text)
        text = re.sub(r"(?<=[0-9])\*\*(?=[-0-9])", "^", text)
        text = _SUPERSCRIPT.sub(lambda power: "^" + power[0].translate(_POWERS), text)
        text = _BRACED_FRACTION.sub(lambda found: f" {found[1] or found[3]}/{found[2] or found[4]} ", text)
        text = _LATEX.sub(lambda found: _LATEX_SIGNS.get(found[0], UNREAD), text)
        text = re.sub(f"(?<=[0-9]){_THIN}(?=[0-9]{{3}}(?![0-9]))", "", text)
    return " ".join(text.replace(_THIN, " ").lower().split())


def _boxed(text: str) -> str:
    r"""Returns the content of the only \boxed if there are other numbers around it, else the whole text."""
    before, box, rest = text.partition(r"\boxed{")
    if not box or r"\boxed" in rest:
        return text
    depth = 1
    for end, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if not depth:
            return rest[:end] if any("0" <= x <= "9" for x in before + rest[end:]) else text
    return text


# Unit after a number -> its power of ten.
UNITS = {
    **dict.fromkeys(
        ("percentage points", "percentage point", "percentage", "per cent", "percent", "pct", "pp", "%"), -2
    ),
    **dict.fromkeys(("basis points", "basis point", "bps", "bp"), -4),
    **dict.fromkeys(("hundred",), 2),
    **dict.fromkeys(("thousands", "thousand", "k"), 3),
    **dict.fromkeys(("lakhs", "lakh"), 5),
    **dict.fromkeys(("crores", "crore"), 7),
    **dict.fromkeys(("millions", "million", "mio", "mil", "mn", "mm", "m"), 6),
    **dict.fromkeys(("billions", "billion", "bn", "b"), 9),
    **dict.fromkeys(("trillions", "trillion", "tn"), 12),
}
_UNIT = rf"(?:{'|'.join(map(re.escape, UNITS))})(?![a-z0-9])"
_NUMBER = re.compile(
    rf"""(?P<digits>[0-9]{{1,3}}(?:,[0-9]{{3}}){{1,12}}(?![0-9])(?:\.[0-9]{{0,40}})?
                   |[0-9]{{1,40}}(?:\.[0-9]{{0,40}})?|\.[0-9]{{1,40}})
        (?:e(?P<power>[-+]?[0-9]{{1,3}})(?![0-9])|\ ?[×x*]\ ?10\ ?\^\ ?(?P<ten>[-+]?[0-9]{{1,3}})(?![0-9.]))?
        (?:\ ?(?P<unit>{_UNIT}))?""",
    re.VERBOSE,
)
_MONEY = (
    r"(?:(?:us|ca|hk|au|sg|nz|c|a|s|r) ?\$|usd|eur|gbp|jpy|cny|rmb|chf|cad|aud|inr|sek|nok|dkk|krw|rs\.?|kr|[$€£¥₹₩₽₺])"
)
_SIGN = re.compile(rf"(?P<sign>-|minus|negative)(?P<apart> ?){_MONEY}?(?P<behind> ?)$")
_OPERATOR = re.compile(r" ?(?:[-+/^×÷:·]|x|\*{1,2}) ?[-+]? ?\(?[$€£]?|,")  # between two numbers
_DENIAL = re.compile(
    rf"(?:(?<![a-z])(?:not|never)(?: equal to| be| about)?|n't(?: be)?|!=|(?:(?<![-=|/a-z0-9])[<>]|(?<=[a-z])<)=?)"
    rf" ?{_MONEY}? ?-?[0-9]"
)
_VERB = re.compile(r"(?<![a-z])(?:is|was|are|be|about|approximately|around|roughly|of|by|to|equals)$")
_BEFORE_LEDGER = re.compile(rf"-?{_MONEY}? ?\( ?-? ?{_MONEY}? ?")
_AFTER_LEDGER = re.compile(rf" ?\) ?(?P<unit>{_UNIT})?(?: dollars| usd)? ?\$?\.?")
_QUOTIENT = re.compile(r"[$ ]{0,2}(-?) ?([0-9]{1,12}) ?/ ?([0-9]{1,12})[$. ]{0,2}")


class Number(NamedTuple):
    """A number as it is written.

    Attributes:
      value: the number without its unit.
      last: place value of its last digit.
      unit: the sign or word after it, a key of UNITS; empty: none.
    """

    value: Fraction
    last: Fraction
    unit: str

    @property
    def scale(self) -> Fraction:
        """The factor of the unit: 1/100 for a percent sign."""
        return _ten_to(UNITS[self.unit]) if self.unit else Fraction(1)

    @property
    def scaled(self) -> Fraction:
        """The value with its unit."""
        return self.value * self.scale

    @property
    def is_percent(self) -> bool:
        """Returns whether a percent sign or word follows it."""
        return self.scale == Fraction(1, 100)


def numbers(text: str, *, ledger: bool) -> list[Number]:
    """Reads the first MOST numbers of a text; none if it holds LaTeX that changes a number and is not understood.

    In an equation only the right side counts: "110/97 - 1 = 13.4%" holds one number. An expression that is not
    computed ("5/5"), a decimal comma ("5,5") and a denial ("not 5", "< 5") hold none.

    Args:
      text: the model's text, as it is.
      ledger: whether a number alone in parentheses is negative, as in accounts.
    """
    text = plain(text)
    if len(text) > LONGEST or UNREAD in text or text.count("=") > 3 or _DENIAL.search(text):
        return []
    text = re.split("[=≈]", text)[-1].strip()
    found = [(match, _number(match, text)) for match in islice(_NUMBER.finditer(text), MOST)]
    if len(found) == 2 and _OPERATOR.fullmatch(text, found[0][0].end(), found[1][0].start()):
        return []
    if ledger and len(found) == 1 and (closed := _AFTER_LEDGER.fullmatch(text, found[0][0].end())):
        match, number = found[0]
        if _BEFORE_LEDGER.fullmatch(text, 0, match.start()):
            return [Number(-abs(number.value), number.last, closed["unit"] or number.unit)]
    return [number for _, number in found]


def quotient(text: str) -> Fraction | None:
    r"""Reads a text that is a fraction in lowest terms and nothing else, such as 3/4 or \frac{3}{4}."""
    text = plain(text)
    if len(text) > LONGEST or not (found := _QUOTIENT.fullmatch(text)):
        return None
    above, below = int(found[2]), int(found[3])
    return Fraction(-above if found[1] else above, below) if below and gcd(above, below) == 1 else None


def _number(match: re.Match, text: str) -> Number:
    """Reads a match of `_NUMBER` in `text` as a number."""
    whole, _, decimals = match["digits"].replace(",", "").partition(".")
    last = _ten_to(int(match["power"] or match["ten"] or 0) - len(decimals))
    value = int(whole + decimals) * last
    return Number(-value if _is_negative(text, match.start()) else value, last, match["unit"] or "")


def _ten_to(power: int) -> Fraction:
    return Fraction(10) ** power


def _is_negative(text: str, start: int) -> bool:
    """Returns whether a minus sign belongs to the number at `start`.

    The hyphen of 2001-5 is no sign, nor is a dash between spaces after a noun, which is punctuation.
    """
    first = max(0, start - 20)
    found = _SIGN.search(text, first, start)
    if not found:
        return False
    before = text[first : found.start()]
    if found["sign"] != "-":
        return not before[-1:].isalnum()
    if found["apart"] or found["behind"]:
        return not before.rstrip()[-1:].isalnum() or _VERB.search(before.rstrip()) is not None
    return not (before[-1:].isalnum() or before.endswith((".", ")")))
