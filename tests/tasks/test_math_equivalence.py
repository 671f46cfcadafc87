"""Mathematical answers are compared by meaning, in a process that is ended if a comparison takes too much."""

import importlib.util

import pytest

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import math_equivalence
from tsallis_rl.tasks.base import Example
from tsallis_rl.tasks.math_equivalence import Worker, check_installed, is_small, math, math_key

needs_library = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is not there")


@needs_library
@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        (r"\frac{1}{2}", "0.5", 1), (r"$\frac12$", r"\frac{2}{4}", 1), ("(x+1)^2", "x^2+2x+1", 1), ("5", "x=5", 1),
        (r"2\sqrt2", r"\sqrt{8}", 1), ("(1, 2)", "(1,2)", 1), (r"\{2,1\}", r"\{1,2\}", 1), (r"\boxed{5}", "5", 1),
        (r"The answer is $\frac{\pi}{2}$.", r"\pi/2", 1), ("18.0", "18", 1), (r"\text{yes}", "yes", 1), ("", "5", 0),
        ("[0,1]", "[0,1)", 0), ("(x-1)^2", "x^2+2x+1", 0), ("5 or 6", "5", 0), (r"$5$ or $6$", "5", 0), ("15", "5", 0),
        ("seat", "east", 0), (r"\text{on Monday}", "Monday on", 0), (r"$\boxed{\text{East}}$", "East", 1),
        ("ba", "ab", 1), (r"\$18.00", "18", 1), ("**18**", "18", 1), (r"costs \$18 or \$19", "18", 0),
        ("18 eggs", "18", 1), ("18 dollars.", "18.0", 1), (r"\boxed{1,800} people a day", "1800", 1), ("18y", "18", 0),
        (r"\$1,800 people", "1800", 1), ("18 dozen", "18", 0), ("18 times two", "18", 0), ("19 eggs", "18", 0),
        ("18 eggs or 19", "18", 0), ("18 squared", "18", 0), ("18 thousand", "18", 0), ("18 xy", "18", 0),
        (r"\boxed{5} \boxed{6}", "5", 0), ("\ud800", "5", 0), ("{" * 200, "5", 0), (r"\frac{", "5", 0), ("0", "1/0", 0),
    ],
)  # fmt: skip
def test_answers_are_compared_by_what_they_mean(prediction, gold, right):
    assert math(prediction, Example("0", "", "no other", (gold, " "))) == right


@needs_library
def test_an_answer_that_takes_too_much_ends_its_process_alone(monkeypatch):
    worker = Worker(seconds=0.3)
    assert is_small("(a+b+c+d+e+f)^{9}") and not worker.is_equal("(a+b+c+d+e+f)^{9}", [r"\frac{1+x}{2}"])
    assert worker.is_equal("0.5", [r"\frac{1}{2}"])
    worker.close()
    monkeypatch.setattr(math_equivalence.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="does not start"):
        Worker(seconds=1.0).is_equal("5", ["x"])


@pytest.mark.parametrize(
    ("answer", "small"),
    [
        (r"\frac{1}{2}", True), ("x^{12}", True), ("(x+1)^2", True), ("2^{x+1}", True), ("x" * 300, True), ("", False),
        ("9^{9^{9}}", True), ("9^{99999}", False), ("(a+b+c)^{99}", False), ("2**1000", False), ("5!", False),
        ("x" * 301, False), ("(" * 13 + "x" + ")" * 13, False), (r"\sqrt{" * 13 + "2" + "}" * 13, False),
    ],
)  # fmt: skip
def test_large_answers_are_not_compared(answer, small):
    assert is_small(answer) == small


def test_plain_numbers_and_equal_texts_are_compared_without_the_library(monkeypatch):
    monkeypatch.setattr(math_equivalence, "_worker", None)
    assert [math(text, Example("0", "", "0.50", ("1",))) for text in ("0.5", ".5", "1.0", "+1", "2")] == [1, 1, 1, 1, 0]
    assert math("9^{9999}", Example("0", "", "9^{9999}")) == 1
    assert math("9^{9998}", Example("0", "", "9^{9999}")) == 0


def test_the_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(math_equivalence.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"config\.task\.metric=math needs .*: pip install 'tsallis_rl\[math\]'"):
        check_installed("task.metric")


def test_vote_keys_join_forms_of_a_number_and_no_different_expressions():
    assert math_key(r"\frac{1}{2}") == math_key("0.5") == math_key("1/2") == math_key(".50")
    assert math_key(r"\boxed{x + 1}") == math_key("$x+1$") == "x+1"
    assert math_key(r"\left( 1,\,2 \right)") == math_key("(1, 2)") == math_key(r"\[(1,2)\].")
    assert math_key(r"\boxed{1,234}") == math_key("$1234$") == math_key("1234.0") == math_key("1,234 eggs a day.")
    different = ("2", "2x", "x=2", "-2", "x+2", "", "9" * 5000, "1e999", "2 3", "23", "x", "X", "x_1", "x1", "x^{12}")
    different += ("2 thousand", "2 dozen", "2 to three")
    different += (r"\alpha", r"\beta", r"\sin x", r"\cos x", r"\sqrt{2}", r"\log{2}", r"\infty", r"-\infty", "x^{1}2")
    different += (r"\boxed{2}+\boxed{3}", "(1,2)", "(1,2]", r"\leftarrow")
    assert len({math_key(text) for text in different}) == len(different)
