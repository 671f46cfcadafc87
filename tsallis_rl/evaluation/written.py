"""Writes an evaluation as files and as a table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tsallis_rl.evaluation.evaluator import Evaluation
from tsallis_rl.evaluation.figures_of_merit import Figure
from tsallis_rl.runs.cache import write_whole
from tsallis_rl.runs.progress import count_of
from tsallis_rl.runs.run_directory import finite, write_rows

_CLOSINGS = {
    "closed_sampled": "closed by the model",
    "closed_forced": "by the budget",
    "unclosed": "ended by an end of sequence",
}


def write_evaluation(
    folder: Path,
    found: Evaluation,
    about: Mapping[str, Any],
    figures: Mapping[str, Figure],
    by_example: Mapping[str, np.ndarray],
) -> None:
    """Writes summary.json, examples.jsonl (a line an example) and samples.jsonl (a line a sampled answer).

    Args:
      folder: where the files are written.
      found: the evaluation, with the texts of every example.
      about: what was evaluated and how, for summary.json.
      figures: for summary.json.
      by_example: the figures of each example, [P] each.
    """
    prompts = {row["example"]: row["prompt"] for row in found.answers}
    examples = [
        {"example": x.example.id, "part": x.example.part, "prompt": prompts[x.example.id], "gold": x.example.answer}
        | outcome
        | {name: float(column[i]) for name, column in by_example.items()}
        for i, (x, outcome) in enumerate(zip(found.graded, found.outcomes, strict=True))
    ]
    write_rows(folder / "examples.jsonl", examples)
    write_rows(folder / "samples.jsonl", [{k: v for k, v in row.items() if k != "prompt"} for row in found.answers])
    summary = {**about, "figures": {name: figure._asdict() for name, figure in figures.items()}}
    summary["closing"] = {name: value for name, value in found.scores.items() if "closed" in name and "/" not in name}
    summary["answers"] = {name: found.scores[name] for name in ("answer_length", "answer_truncated", "grader_errors")}
    summary["rationales"] = _rationales(found.scores)
    summary["parts"] = {name: value for name, value in found.scores.items() if "/" in name}
    write_whole(folder / "summary.json", (json.dumps(finite(summary), indent=2, ensure_ascii=False) + "\n").encode())


def table(about: Mapping[str, Any], found: Evaluation, figures: Mapping[str, Figure]) -> str:
    """Tabulates figures with their intervals, and how rationales closed."""
    how = "greedy" if about["greedy"] else f"temperature {about['temperature']:g}"
    how += "".join(f", {name} {about[name]:g}" for name, off in (("top_k", 0), ("top_p", 1.0)) if about[name] != off)
    of = f"{about['examples']:,} of " if about["examples"] < about["of"] else ""
    rationales = _rationales(found.scores)
    unreasoned = " without a rationale" if about["rationale"] == "none" else ""
    samples = count_of(about["samples"], "sampled answer")
    lines = [
        f"{of}{count_of(about['of'], 'example')}, {samples} each{unreasoned}, {how}; correct is {about['metric']}",
        f"{'':<24}{'mean':>9}   95% interval over examples",
    ]
    for name, (value, low, high) in figures.items():
        short = name.replace("pass@", "p@").replace("maj@", "m@").replace("log_p_hat", "log P̂")
        short = short.replace("rationale_gain", "gain by rationales, nats")
        lines.append(f"{_left(short)}{value:>9.3f}   " + ("–" if low is None else f"{low:.3f} … {high:.3f}"))
    lines += [
        f"{_left(name.replace('/pass@', ' p@'))}{value:>9.3f}"
        for name, value in found.scores.items()
        if name.endswith("/pass@1")
    ]
    if how != "temperature 1":
        lines.append("log P̂ is over rationales sampled in that way; the model's own log P̂ needs temperature 1")
        if rationales:
            lines.append("the same holds for the gain; entropies are cross-entropies of that sampling and the model")
    shares = [f"{found.scores[name]:.1%} {words}" for name, words in _CLOSINGS.items()]
    lines.append(f"rationales: {', '.join(shares)}")
    if rationales:
        lines += _rationale_lines(rationales)
    length, cut, failed = (found.scores[name] for name in ("answer_length", "answer_truncated", "grader_errors"))
    lines.append(f"answers: {length:.1f} tokens on average, {cut:.1%} cut off before an end of sequence")
    if failed:
        lines.append(f"failures of the grader, which count as wrong answers: {failed:,}")
    if any(low == high for name, (_, low, high) in figures.items() if "@" in name):
        count = about["examples"]
        lines.append(
            "where an interval has no width, every example came out alike; with "
            f"{count_of(count, 'example')} a rate of up to {min(1.0, 3 / count):.1%} may be missed"
        )
    return "\n".join(lines)


def _rationales(scores: Mapping[str, float]) -> dict[str, float]:
    """Selects the scores of rationales of the whole split; {} if none were sampled."""
    if "rationale_gain" not in scores:
        return {}
    named = [name for name in scores if name.startswith("rationale_")]
    return {
        name: scores[name]
        for name in ("unique_rationales", *named, "log_p_without", "answer_token_entropy", "kl_to_start")
        if name in scores
    }


def _rationale_lines(scores: Mapping[str, float]) -> list[str]:
    """Describes how different and how long rationales were, how sure the model was of its tokens, and their gain."""
    low, median, high = (scores[f"rationale_length_{name}"] for name in ("p10", "median", "p90"))
    entropy = f"{scores['rationale_token_entropy']:.3f} nats a token"
    if "answer_token_entropy" in scores:
        entropy += f", of answers {scores['answer_token_entropy']:.3f}"
    lines = [
        f"  {scores['unique_rationales']:.1%} differ from every earlier one of their prompt; {median:g} tokens in the "
        f"median, {low:g} to {high:g} from the first decile to the last; entropy {entropy}",
        f"  gain: log P̂ against log p(gold) with thinking closed at once, {scores['log_p_without']:.3f} on average; "
        f"it is above 0 for {scores['rationale_helps']:.1%} of the prompts",
    ]
    if "kl_to_start" in scores:
        lines.append(f"  KL to the run's start: {scores['kl_to_start']:.3f} nats a rationale")
    return lines


def _left(name: str) -> str:
    """Pads a name to the first column's width, in which a combining circumflex takes no room."""
    return name.ljust(24 + name.count("\N{COMBINING CIRCUMFLEX ACCENT}"))
