"""Explains the symbols that pages use: a tooltip on each, and a list at the page's end."""

import html
import re

SYMBOLS = {
    "q": "Commitment, from 0 to 1: the loss is −log_q P, so that ∇ log P has the factor P^(1−q). At 0 it is expected "
    "accuracy, at 1 log-likelihood.",
    "τ": "Parameter of a floor, whose factor on ∇ log P is max(P, τ), or of a mixture, whose factor is P + τ.",
    "P": "Probability that the model gives the gold answer, over all the rationales that it might write.",
    "P̂": "Estimate of P: the mean weight of a prompt's M rollouts. log P̂ is in nats.",
    "M": "Rollouts per prompt in training.",
    "w": "Weight of a rollout: the probability of the gold answer after its rationale.",
    "c_m": "Coefficient of rollout m: what multiplies the log-probability of its rationale in the update.",
    "c_m/M^q": "Coefficient over its bound: near 1 where a single rollout carries its group.",
    "ESS": "Effective sample size (Σw)²/Σw²: how many rollouts of a group carry its weight.",
    "p@1": "Share of sampled answers that are right, averaged over prompts.",
    "p@n": "Share of prompts with a right answer among n sampled ones.",
    "m@n": "Share of prompts whose most frequent answer among n sampled ones is right.",
}
_IN_TEXT = re.compile(r"c_m/M\^q|\bc_m\b|P̂|[pm]@(?:\d+|n)\b|(?<![\w^/])(?:q|M)(?= [=≤≥])")


def symbol(name: str, shown: str = "") -> str:
    """Writes a symbol as markup: its meaning as a tooltip, and a link to the list; `shown` replaces its text."""
    tip = html.escape(SYMBOLS[name])
    return f'<a class="symbol" href="#symbols"><abbr title="{tip}">{shown or typeset(name)}</abbr></a>'


def explained(text: str) -> str:
    """Escapes plain text and explains the first occurrence of each symbol in it."""
    seen: set[str] = set()

    def replaced(found: re.Match[str]) -> str:
        shown = found[0]
        name = re.sub(r"@(?!1$)\d+$", "@n", shown)
        if name in seen:
            return shown
        seen.add(name)
        return symbol(name, typeset(shown))

    return _IN_TEXT.sub(replaced, html.escape(text))


def typeset(name: str) -> str:
    """Writes a symbol as markup, with its index and power."""
    return {"c_m": "c<sub>m</sub>", "c_m/M^q": "c<sub>m</sub>/M<sup>q</sup>"}.get(name, name)


def glossary() -> str:
    """Writes the list of all symbols."""
    rows = "".join(f"<dt>{typeset(name)}</dt><dd>{html.escape(meaning)}</dd>\n" for name, meaning in SYMBOLS.items())
    return f"<dl>\n{rows}</dl>\n"
