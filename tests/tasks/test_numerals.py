"""Forms in which models write numbers: each has a decision, and look-alikes that must not pass."""

import re
import re._parser as parser
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tsallis_rl.tasks import graders, math_equivalence, numerals
from tsallis_rl.tasks.base import Example

FORTY = " ".join(str(n / 100) for n in range(1, 41))
RIGHT = [
    # LaTeX
    (r"14.46\%", "0.14464"), (r"\boxed{14.46\%}", "0.14464"), (r"$14.5\%$", "0.14464"), (r"\(14.5\%\)", "0.14464"),
    (r"$\boxed{\text{14.5 percent}}$", "0.14464"), (r"\[ 0.14464 \]", "0.14464"), (r"\boxed{14.46}\%", "0.14464"),
    (r"\textbf{14.5\%}", "0.14464"), (r"$\approx 14.5\%$", "0.14464"), (r"\$1{,}234.5", "1234.5"),
    (r"1\,234", "1234"), (r"\$ 5 \text{ million}", "5000000"), (r"1.2 \times 10^{6}", "1200000"),
    (r"$-14.5\%$", "-0.14464"),
    (r"Sales rose from 100 to 114.464, so \boxed{14.46\%}", "0.14464"), (r"101\n\n", "101"),
    # typography and Markdown
    ("**14.5%**", "0.14464"), ("`0.14464`", "0.14464"), ("14.5 %", "0.14464"), ("１４．５％", "0.14464"),
    ("1\u202f234\u202f567", "1234567"), ("1\u00a0234", "1234"), ("14.5\u200b%", "0.14464"), ("14.5%.", "0.14464"),
    # signs
    ("–14.5%", "-0.14464"), ("‑5", "-5"), ("—5", "-5"), ("minus 5", "-5"), ("negative 14.5%", "-0.14464"),
    ("-$5", "-5"),
    ("$-5", "-5"), ("−US$5", "-5"), ("- $ 5", "-5"), ("The answer is –5.", "-5"), ("answer: - 5", "-5"), ("(-5)", "-5"),
    ("+5", "5"), ("the result – 5", "5"), ("The answer is - 5", "-5"),
    # accounts
    ("(5)%", "-0.05"), ("(5%)", "-0.05"), ("($5) million", "-5000000"), ("$(5) million", "-5"), ("($5 million)", "-5"),
    ("$ (23,158).", "-23158"), ("(5) million dollars", "-5"), ("the loss (5 shares)", "5"),
    # units
    ("14.5 percentage points", "0.145"), ("14.5 per cent", "0.145"), ("50 bps", "0.005"), ("50 basis points", "50"),
    ("$5bn", "5000000000"), ("5 mn", "5000000"), ("5mm", "5000000"), ("$5m", "5"), ("5k", "5000"),
    ("2.5 billion", "2.5"),
    ("€5", "5"), ("5 USD", "5"), ("USD 5", "5"), ("about $5 million", "5"), ("~14.5%", "0.14464"),
    ("≈ 14.5%", "0.14464"),
    # said twice, or behind an equation
    ("14.46% (0.14464)", "0.14464"), ("$5 million ($5,000,000)", "5"), ("0.14464 or 14.46%", "0.14464"),
    ("114.464/100 - 1 = 14.46%", "0.14464"), ("0.144637 ≈ 14.46%", "0.14464"),
    # roundings
    ("6%", "0.05677"), ("6%", "5.677"), ("0.06", "0.05677"), ("14%", "0.14464"), ("0.1446", "0.14464"),
    # scripts, invisible marks, tags, currencies
    ("1.2 × 10⁶", "1200000"), ("1.2×10⁻³", "0.0012"), ("٢٥٪", "0.25"), ("१२५", "125"), ("𝟓", "5"), ("14٫46%", "0.1446"),
    ("\u2066\u202a14.46%\u202c\u2069\u200f", "0.14464"), ("14\u00ad.46%", "0.14464"), ("1’234", "1234"),
    ("-CHF 500", "-500"), ("-Rs. 500", "-500"), ("-₩500", "-500"), ("R$ -500", "-500"), (r"\underline{5}", "5"),
    (r"\num{5}", "5"), ("14.464 pp", "0.14464"), ("1446.4 bp", "0.14464"), ("5 lakh", "500000"), ("5 hundred", "500"),
    ("<answer>14.46%</answer>", "0.14464"), ("14.46%<|im_end|>", "0.14464"), ("<|x|>5", "5"), ("=> 5", "5"),
    ("->5", "5"),
    ("2²=4", "4"), ("| 14.46% |", "0.14464"), ("14.46%%", "0.14464"), ("5 m²", "5"),
    # yes and no
    ("ｙｅｓ", "yes"), ("yes\u200b", "yes"), ("<answer>yes</answer>", "yes"),
    (r"\text{yes}", "yes"), (r"\boxed{\text{No}}", "no"), ("**Yes**", "yes"), ("The answer is yes.", "yes"),
    ("Answer: no", "no"),
]  # fmt: skip
WRONG = [
    ("121.5", "1"), (FORTY, "0.14"), (FORTY, "0.01"), ("1e400", "5"), ("$3.2e999 million", "3.2"), ("1e", "5"),
    ("9" * 5000, "5"), ("", "5"), (r"\sqrt{25}", "25"), (r"2\pi", "2"), (r"\frac{5}{x}", "5"), ("1/8", "0.125"),
    (r"\frac{1}{8}", "0.125"), ("1,23", "123"), ("1.234,5", "1234.5"), ("14,5%", "0.145"), ("1 234", "1234"),
    ("10-15", "10"), ("10–15%", "0.15"), ("2001-5", "-5"), ("50% or 0.5%", "0.5"), ("5% or 6%", "0.05"),
    ("386.8 percent and 3", "386.8"), ("5% (0.056)", "0.056"), ("6% (0.0585)", "0.062"),
    ("14.46% in 2008", "0.14464"), ("five", "5"), ("5 thousand", "0.005"), ("(5)%", "0.05"), ("-14.5%", "0.14464"),
    (r"\boxed{14.46\%} or \boxed{3\%}", "0.14464"), ("5, 14.46%", "0.14464"), ("1 = 2 = 3 = 4 = 5", "5"),
    ("1%", "0.0149"), ("2%", "0.0243"), ("0%", "0.004"), ("0.3", "0.34719"), ("14.5", "0.145"), ("7%", "0.05677"),
    ("yes and no", "yes"), ("yes, because it rose", "yes"), (r"\text{no}", "yes"), ("10^6", "10"), ("5 bps", "0.05"),
    # not computed, or a decimal comma: both halves being equal makes no number of it
    ("5,5", "5"), ("14,14", "14"), ("3/3", "3"), ("5-5", "5"), ("5 - 5", "5"), ("10/10", "10"), ("2:2", "2"),
    ("5*5", "5"),
    ("5 x 5", "5"), ("5×5", "5"), ("5**5", "5"), ("5^5", "5"), ("5%-5%", "0.05"), ("14.46/14.5", "14.46"), ("5+5", "5"),
    ("$5 - $5", "5"), ("5 - (5)", "5"), ("2019–2019", "2019"),
    # signs that change a number
    ("√25", "25"), ("5²", "5"), ("10⁶", "10"), ("2π", "2"), ("±5", "5"), ("≥5", "5"), ("≠ 5", "5"), ("!= 5", "5"),
    ("<5", "5"),
    ("x<5", "5"),
    ("x > 5", "5"),
    ("> 5", "5"), ("not 5", "5"), ("It is not 14.46%", "0.14464"), ("it isn't $5", "5"), ("1⅓", "1"), ("5٣", "5"),
    ("1 234 567", "1234567"), ("five percent (5", "-5"), ("a decrease of 14.46%", "-0.14464"), ("three (3)", "-3"),
]  # fmt: skip


@pytest.mark.parametrize(("prediction", "exe_ans"), RIGHT, ids=ascii)
def test_a_form_that_models_write_is_read(prediction, exe_ans):
    assert graders.execution_accuracy(prediction, exe_ans) == 1


@pytest.mark.parametrize(("prediction", "exe_ans"), WRONG, ids=lambda text: ascii(text)[:40])
def test_a_form_that_says_something_else_or_several_things_is_wrong(prediction, exe_ans):
    assert graders.execution_accuracy(prediction, exe_ans) == 0


@pytest.mark.parametrize(
    "forms",
    [
        ("94", "94.0", "$ 94", "94.", r"\boxed{94}", "+94"),
        ("0.5", ".5", "50%", r"50\%", "0.50"),
        ("yes", "yes.", "Yes", r"\text{yes}", "**yes**", "The answer is yes."),
        ("12.5%", "0.125", "12.5 percent", r"$12.5\%$"),
        ("-5", "–5", "(5)", "minus 5", "-5.0"),
        ("5 million", "5,000,000", "$5mn"),
        ("yes", "ｙｅｓ", "yes\u200b", "<b>yes</b>"),
    ],
)
def test_answers_that_say_one_thing_have_one_vote_key(forms):
    assert len({graders.number_key(form) for form in forms}) == 1


def test_answers_that_say_different_things_have_different_vote_keys():
    texts = (
        "94",
        "-94",
        "94%",
        "9.4",
        "94 or 95",
        "95 or 94",
        "yes",
        "no",
        "1e400",
        "1e401",
        "",
        "9" * 5000,
        "8" * 5000,
        r"\sqrt{2}",
        r"\log{2}",
        "√2",
        "5,5",
        "5/5",
    )
    assert len({graders.number_key(text) for text in texts}) == len(texts)


def test_a_number_in_parentheses_votes_as_its_grade_reads_it():
    assert graders.numeric_key("(18)") == graders.numeric_key("18") != graders.numeric_key("-18")
    assert graders.number_key("(18)") == graders.number_key("-18") != graders.number_key("18")
    assert [graders.numeric("(18)", gold) for gold in ("18", "-18")] == [1, 0]


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("5", 1),
        ("$5.", 1),
        ("5%", 0),
        (r"5\%", 0),
        ("5％", 0),
        ("5 percent", 0),
        ("-5", 0),
        ("–5", 0),
        ("‑5", 0),
        ("15", 0),
    ],
)
def test_a_bounded_match_sees_every_percent_and_minus(prediction, right):
    assert graders.substring_bounded(prediction, Example("0", "", "5")) == right


@pytest.mark.parametrize(
    ("prediction", "exe_ans", "right"),
    [
        ("1.5×10²", "150", 1), ("1.5*10**2", "150", 1), ("٥٬٠٠٠", "5000", 1), ("5\ufe0f\u20e3", "5", 1),
        ("(CHF 5)", "-5", 1),
        ("1'234'567.5", "1234567.5", 1), ("5 vs 5", "5", 1), ("5, 5", "5", 1), ("5 – five", "5", 1), ("note 5", "5", 1),
        ("<br>-5", "-5", 1), ("5, not 6", "5", 0), ("x > 5", "5", 0), ("6'2", "6", 0), ("5¹", "5", 0), ("0,0", "0", 0),
        ("3–3.5%", "0.035", 0), ("12,34,567", "1234567", 0), ("5:5", "5", 0), ("⑤", "5", 0), ("5±0", "5", 0),
    ],
)  # fmt: skip
def test_forms_next_to_those_that_are_read(prediction, exe_ans, right):
    assert graders.execution_accuracy(prediction, exe_ans) == right


# Any text

PIECES = st.sampled_from(
    ["1", "9" * 5000, "e", "e400", "-", "−", "(", ")", "$", "%", ".", ",", " ", " " * 1600, "\u2009", "million",
    "\\", "{",
     "}", "\\frac", "\\boxed{", "\\text{", "*", "_", "=", "/", "^", "10", "\ud800", "\0", "٣", "²", "½", "yes",
     "the", "İ"]
)  # fmt: skip
TEXTS = st.one_of(st.text(st.characters(exclude_categories=())), st.lists(PIECES, max_size=40).map("".join))
GOLDS = ("5", "0.14464", "yes", "A", ".", "C++", r"\frac{1}{2}", "9" * 5000, "1e400")


def grade_in_every_way(prediction: str, gold: str) -> list:
    one = Example("0", "", gold, (gold, "x"))
    return [
        *(grade(prediction, one) for grade in (graders.finqa, graders.hotpotqa, graders.musique, graders.own_task)),
        *(key(prediction) for key in (graders.number_key, graders.numeric_key, graders.normalize, graders.own_words)),
        *(math_equivalence.math_key(prediction), math_equivalence.is_small(prediction)),
    ]


@given(TEXTS, st.sampled_from(GOLDS))
@example("1e400", "5")
@example("$3.2e999 million", "5")
@example("1e", "5")
@example("1" * 5000, "5")
@example("1e" + "9" * 5000, "5")
@example("." * 20000, ".")
@example("5" + " " * 10_000 + "x", "5")
@settings(max_examples=150, deadline=None)
def test_no_grader_and_no_vote_key_raises_on_any_text(prediction, gold):
    for found in grade_in_every_way(prediction, gold):
        if isinstance(found, dict):
            assert all(0 <= score <= 1 for score in found.values())
    for found in grade_in_every_way(gold, prediction if prediction.strip() else gold)[3:]:
        assert isinstance(found, dict | str | bool)


def repeats(pattern: re.Pattern) -> list[int]:
    """The upper limits of a pattern's repetitions."""
    found = []

    def walk(node) -> None:
        if isinstance(node, parser.SubPattern | list | tuple):
            if isinstance(node, tuple) and len(node) == 3 and isinstance(node[2], parser.SubPattern):
                found.append(int(node[1]))
            for part in node:
                walk(part)

    walk(parser.parse(pattern.pattern, pattern.flags))
    return found


def test_what_a_search_costs_is_bounded_by_the_length_that_is_searched():
    """No pattern repeats without a limit, and none searches a text of more than LONGEST characters."""
    modules = (graders, numerals, math_equivalence)
    patterns = {name: x for module in modules for name, x in vars(module).items() if isinstance(x, re.Pattern)}
    assert len(patterns) > 6 and repeats(re.compile(r"a\s*b+")) == [parser.MAXREPEAT, parser.MAXREPEAT]
    assert {name for name, pattern in patterns.items() if max(repeats(pattern), default=0) > 60} == set()
    assert numerals.numbers("5" + " " * 10**6, ledger=True)[0].value == 5  # white space counts once
    assert numerals.numbers("5" + " x" * numerals.LONGEST, ledger=True) == []
    assert len(numerals.numbers("1 2 3 4 5 6", ledger=True)) == numerals.MOST


# A user's own task


@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("18", "18", 1), ("18.0", "18", 1), ("$18", "18", 1), ("18 dollars", "18", 1), ("The answer is 18.", "18", 1),
        (r"\boxed{18}", "18", 1), ("1,800", "1800", 1), ("1{,}800", "1800", 1), ("1.8e3", "1800", 1), ("−18", "-18", 1),
        ("(18)", "18", 1), ("3/4", "0.75", 1), (r"\frac{3}{4}", "3/4", 1), (r"$\dfrac34$", "0.75", 1), ("½", "0.5", 1),
        ("50%", "50", 1), ("50%", "0.5", 1), ("50", "50%", 1), ("0.5", "50%", 1), ("5 million", "5000000", 1),
        ("5 m", "5", 1), ("5k", "5000", 1), ("5", "5 m", 1), ("9" * 30, "9" * 30, 1), ("0.1", "0.10", 1),
        (r"\frac{-3}{4}", "-3/4", 1), ("⅔", "2/3", 1), ("١٨", "18", 1),
        ("18²", "18", 0), ("√18", "18", 0), ("±18", "18", 0), ("18,18", "18", 0), ("9/9", "9", 0),
        ("5 hundred", "5", 0),
        ("18.01", "18", 0), ("-18", "18", 0), ("118", "18", 0), ("18 or 19", "18", 0), ("18 (18.3)", "18", 0),
        ("18 (18.0)", "18", 1), (FORTY, "0.18", 0),
        ("0.5%", "50%", 0), ("5 million", "5", 0), ("36/2", "18", 0), ("eighteen", "18", 0), ("", "18", 0),
        ("9" * 29 + "8", "9" * 30, 0), ("yes", "yes", 0), ("1.5", "15", 0), (r"\sqrt{18}", "18", 0), ("2x", "3x", 0),
    ],
)  # fmt: skip
def test_numeric_compares_canonical_numbers(prediction, gold, right):
    assert graders.numeric(prediction, gold) == right


def test_numeric_accepts_a_relative_difference_where_one_is_set():
    assert [graders.numeric(text, "200", 0.01) for text in ("198", "202", "197.9", "-200")] == [1, 1, 0, 0]
    assert graders.own_task("3.14", Example("", "", "3.14159"), tolerance=1e-3)["numeric"] == 1
    assert graders.own_task("3.14", Example("", "", "3.14159"))["numeric"] == 0


@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("the", "A", 0), (".", "A", 0), ("", "A", 0), ("a.", "A", 1), ("-5", "5", 0), ("−5", "-5", 1), ("1.5", "15", 0),
        (".5", "5", 0), ("C", "C++", 0), ("c++", "C++", 1), ("C#", "C", 0), ("5%", "5", 0), ("5!", "5", 0),
        ("5.", "5", 1),
        ("Vitamin", "Vitamin A", 0), ("B", "A B", 0), ("Beatles", "The Beatles!", 1), ("a cat", "cat", 1),
        (".", ".", 1),
        ("?", "!", 0), ("**New  York**", "new york", 1), ("“Paris”", "Paris", 1), ("U.S.", "US", 1),
        ("1,234", "1234", 1),
        ("Paris\u200b", "Paris", 1), ("\ufeffParis\u200f", "Paris", 1), ("cafe\u0301", "caf\u00e9", 1),
        ("«Paris»", "Paris", 1),
        ("„Paris“", "Paris", 1), ("「東京」。", "東京", 1), ("\u200b", "\u200b", 1),
        ("\u200b", "A", 0), ("x²", "x2", 0),
        (".NET", "net", 0), ("(0,1)", "[0,1]", 0), ("(B)", "b", 1), ("n!", "n", 0), ("f'", "f", 0),
        ("'Paris'", "paris", 1),
        ("‘Paris’.", "'Paris'.", 1), ("...5", "5", 1), ("A*", "A", 0), ("<5", "5", 0), ("New York", "York", 0),
        ("the the", "The", 1),
    ],
)  # fmt: skip
def test_em_of_an_own_task_erases_nothing_that_tells_answers_apart(prediction, gold, right):
    assert graders.own_task(prediction, Example("0", "", gold))["em"] == right


def test_accents_are_composed_in_texts_of_a_length_that_bounds_what_it_takes():
    assert graders.own_words("e\u0301" * 400) == "\u00e9" * 400
    assert graders.own_words("e\u0301" * 600) == "e\u0301" * 600


def test_every_grade_of_an_own_task_knows_aliases_and_empty_ones_accept_nothing():
    of_two = Example("0", "", "fifty", ("50", " "))
    assert set(graders.own_task("50", of_two).values()) == {1.0}
    assert set(graders.own_task("fourty", of_two).values()) == {0.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("6/8", None),
        ("3/0", None),
        ("1 3/4", None),
        ("3/4/5", None),
    ],
)
def test_a_fraction_in_lowest_terms_is_a_number(text, value):
    assert numerals.quotient(text) == value
