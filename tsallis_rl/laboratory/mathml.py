"""Typesets plain-text formulas, such as `O(q/(M P^q))`, as MathML, which browsers draw without a script.

One letter is a variable, several are a word or function; digits after a letter are its index, as in p0; `^` and `_`
raise and lower what follows; `a/b` is a fraction of the factors on both sides; brackets group, and are not drawn around
a whole exponent or a whole side of a fraction.
"""

import html
import re

_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:\.\d+)?)|(?P<word>[A-Za-z]{2,})"
    r"|(?P<letter>[^\W\d_][\u0300-\u036f]*[′″]*)(?P<index>\d*)|(?P<sign>.)",
    re.S,
)
_RAISED = {"²": "2", "³": "3"}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def with_formulas(text: str) -> str:
    """Escapes plain text, and typesets what is between backticks."""
    parts = text.split("`")
    return "".join(formula(part) if i % 2 else html.escape(part) for i, part in enumerate(parts))


def formula(text: str) -> str:
    """Typesets one formula as markup."""
    tokens = [(found.lastgroup or "", found[0], found["index"] or "") for found in _TOKEN.finditer(text)]
    tokens = [("letter", text, index) if index or kind == "index" else (kind, text, "") for kind, text, index in tokens]
    return f"<math>{_Reader(tokens).row()}</math>"


class _Reader:
    """Reads tokens (kind, text, index) from left to right."""

    def __init__(self, tokens: list[tuple[str, str, str]]):
        self.tokens, self.at = tokens, 0

    def row(self, closing: str = "") -> str:
        """Reads factors, signs and fractions up to the closing bracket, or to the end."""
        parts: list[str] = []
        bare = ""  # the last factor as the side of a fraction
        while self.at < len(self.tokens) and self.tokens[self.at][1] != closing:
            kind, text, _ = self.tokens[self.at]
            if kind == "space":
                self.at += 1
            elif text == "/" and bare:
                self.at += 1
                self.skip()
                parts[-1] = bare = f"<mfrac>{bare}{self.factor()[1]}</mfrac>"
            elif kind == "sign" and text not in _CLOSING and text != "√":
                self.at += 1
                parts.append(f"<mo>{html.escape(text)}</mo>")
                bare = ""
            else:
                drawn, bare = self.factor()
                parts.append(drawn)
        self.at = min(self.at + 1, len(self.tokens))
        return f"<mrow>{''.join(parts)}</mrow>"

    def skip(self) -> None:
        """Skips a space."""
        if self.at < len(self.tokens) and self.tokens[self.at][0] == "space":
            self.at += 1

    def factor(self) -> tuple[str, str]:
        """Reads an atom, or a function with its argument, and its scripts: as drawn, and as a side of a fraction."""
        drawn, bare = self.atom()
        name = self.tokens[self.at - 1][0] in ("letter", "word")
        drawn, bare = self.scripts(drawn, bare)
        if name and self.next() == "(":
            argument, _ = self.scripts(*self.atom())
            drawn = bare = f"<mrow>{drawn}{argument}</mrow>"
        return drawn, bare

    def next(self) -> str:
        """Returns the text of the next token; "" at the end."""
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def atom(self) -> tuple[str, str]:
        """Reads a number, a name, a root or a group: as drawn, and without a group's brackets."""
        if self.at >= len(self.tokens):
            return "<mrow></mrow>", "<mrow></mrow>"
        kind, text, index = self.tokens[self.at]
        self.at += 1
        if text in _CLOSING:
            inner = self.row(_CLOSING[text])
            mark = "<mo>" if "<mfrac>" in inner else '<mo stretchy="false">'
            return f"<mrow>{mark}{text}</mo>{inner}{mark}{_CLOSING[text]}</mo></mrow>", inner
        if text == "√":
            root = f"<msqrt>{self.factor()[1]}</msqrt>"
            return root, root
        if kind == "letter" and index:
            name = f"<msub><mi>{text.removesuffix(index)}</mi><mn>{index}</mn></msub>"
        else:
            tag = "mn" if kind == "number" else "mi" if kind in ("letter", "word") else "mo"
            gap = '<mspace width=".2em"></mspace>' if kind == "word" and self.next().isspace() else ""
            name = f"<{tag}>{html.escape(text)}</{tag}>{gap}"
        return name, name

    def scripts(self, drawn: str, bare: str) -> tuple[str, str]:
        """Reads the index and the power after an atom."""
        while (sign := self.next()) in ("^", "_", *_RAISED):
            self.at += 1
            tag = "msub" if sign == "_" else "msup"
            script = f"<mn>{_RAISED[sign]}</mn>" if sign in _RAISED else self.script()
            drawn = bare = f"<{tag}>{drawn}{script}</{tag}>"
        return drawn, bare

    def script(self) -> str:
        """Reads what is raised or lowered: an atom, with a sign if it has one."""
        if self.next() in ("−", "-"):
            self.at += 1
            return f"<mrow><mo>−</mo>{self.atom()[0]}</mrow>"
        return self.atom()[1]
