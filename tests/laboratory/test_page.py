"""The laboratory's page: formulas, contents, and the style sheet that it shares with the report."""

import re
import xml.etree.ElementTree

import numpy as np
import pytest

from tsallis_rl.laboratory.figures import draw
from tsallis_rl.laboratory.mathml import formula, with_formulas
from tsallis_rl.laboratory.page import write_page
from tsallis_rl.laboratory.study import Study
from tsallis_rl.laboratory.web_page import STYLE


def flat(markup: str) -> str:
    """MathML as text that keeps its structure: (n)/(d), x^(y), x_(y)."""

    def told(node) -> str:
        parts = [told(child) for child in node]
        form = {"mfrac": "({})/({})", "msup": "{}^({})", "msub": "{}_({})", "msqrt": "√({})"}.get(node.tag)
        return form.format(*parts) if form else (node.text or "") + "".join(parts)

    return told(xml.etree.ElementTree.fromstring(markup))


@pytest.mark.parametrize(
    ("plain", "typeset"),
    [
        ("O(q/(M P^(q+1)))", "O((q)/(MP^(q+1)))"),
        ("Θ(p0^(−(1−q))/(1−q))", "Θ((p_(0)^(−(1−q)))/(1−q))"),
        ("θ_j ∝ α_j^(1/q)", "θ_(j)∝α_(j)^((1)/(q))"),
        ("(1−c) ln(c/p0)/τ(c)", "(1−c)(ln((c)/(p_(0))))/(τ(c))"),
        ("du/(u^(2−q)(1−u)²)", "(du)/(u^(2−q)(1−u)^(2))"),
        ("p̃0^−(1−q)/((1−q) ε)", "(p̃_(0)^(−(1−q)))/((1−q)ε)"),
        ("O(1/√M)", "O((1)/(√(M)))"),
        ("(q/2) P̄^(−q−1) Var(P)", "((q)/(2))P̄^(−q−1)Var(P)"),
        ("h″(P)/2", "(h″(P))/(2)"),
        ("a < b/", "a<(b)/()"),
        ("((", "(())"),
    ],
)
def test_a_formula_in_plain_text_is_typeset(plain, typeset):
    assert flat(formula(plain)) == typeset


def test_the_page_has_contents_formulas_and_the_reports_style(tmp_path):
    made = [Study(f"s{i}", f"Title <{i}>", "It is `P^(1−q)` & more.", "1 < 2", [{"x": 1}]) for i in range(2)]
    for study in made:
        draw(study, lambda study, figure: figure.subplots().plot(np.arange(2)), tmp_path)
    page = write_page(made, tmp_path).read_text()
    assert STYLE in page and re.findall(r'<section id="([^"]+)">', page) == [
        "summary", "contents", "study-s0", "study-s1", "symbols",
    ]  # fmt: skip
    links = re.findall(r'<li><a href="#([^"]+)">', page)
    assert links == ["study-s0", "study-s1", "symbols"] and "Title &lt;1&gt;" in page
    assert f"It is {formula('P^(1−q)')} &amp; more." in page and "1 &lt; 2" in page
    assert with_formulas("a < `b") == "a &lt; <math><mrow><mi>b</mi></mrow></math>"
