"""Writes README.md of an exported folder: what the model is, its scores, its data and its settings.

Names, paths and metrics come from configs, tasks and other people's folders. They are quoted in YAML, escaped in
Markdown, and settings are in a fence that is longer than any in them.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tsallis_rl.config.naming import commitment_text, estimator_text, logged_q
from tsallis_rl.exports.data import fingerprints
from tsallis_rl.exports.rounding import Kept
from tsallis_rl.exports.usage import usage
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import plain
from tsallis_rl.runs.run_directory import read_records, read_settings
from tsallis_rl.tasks import load_task_of_run
from tsallis_rl.tasks.base import Task

_LICENSE = re.compile(r"^(license|license_name|license_link):[ \t]*(\S[^\n]*?)[ \t]*$", re.MULTILINE)
_PLAIN = re.compile(r"[\w.+:/-]+")  # of a licence's name or address
_MARKUP = re.compile(r"([\\`*_\[\]<>|&$~#!])")


@dataclasses.dataclass(frozen=True)
class Card:
    """The facts that a model card is written from.

    Attributes:
      run: folder of the run.
      config: the run's settings.
      source: the pretrained folder that it started from.
      base: that model's name on the hub; empty if it came from a folder.
      step: of the checkpoint.
      dtype: of the tensors.
      adapter: the folder holds adapters alone.
      kept: the part of training's change that the tensors keep; None: all of it.
    """

    run: Path
    config: ConfigDict
    source: Path
    base: str
    step: int
    dtype: str
    adapter: bool
    kept: Kept | None


def model_card(card: Card) -> str:
    """Writes the card as Markdown with YAML in front."""
    records = read_records(card.run)
    task = _load_task(card.config)
    program, told = usage(
        card.run,
        card.config,
        task if isinstance(task, Task) else None,
        card.base or str(card.source.absolute()),
        adapter=card.adapter,
    )
    parts = [
        _front(card),
        f"# {_text(Path(card.config.model.size).name)}, trained on {_text(card.config.task.name)}",
        _what(card, records),
        "## Use\n\n" + (f"{_fenced(program, 'python')}\n\n" if program else "") + told,
        "## Scores\n\n" + _scores(records, card.step),
        "## Data\n\n" + _data(task),
        "## Settings\n\nThe run's `config.json`:\n\n" + _fenced(json.dumps(read_settings(card.run), indent=2), "json"),
    ]
    return "\n\n".join(parts) + "\n"


def _front(card: Card) -> str:
    """Writes the YAML that a hub reads; JSON strings are YAML strings."""
    fields: dict[str, Any] = {"base_model": card.base} if card.base else {}
    fields |= {"library_name": "peft" if card.adapter else "transformers", "pipeline_tag": "text-generation"}
    fields |= {"tags": ["tsallis_rl", "reasoning", *["lora"] * card.adapter]} | _license(card.source)
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in fields.items()), "---"])


def _license(source: Path) -> dict[str, str]:
    """Reads the licence that the base model's own card states; {} if it states none that can be read."""
    try:
        text = (source / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    front = re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
    found = {name: value.strip("\"'") for name, value in _LICENSE.findall(front[1])} if front else {}
    return {name: value for name, value in found.items() if _PLAIN.fullmatch(value)} if "license" in found else {}


def _what(card: Card, records: Sequence[Mapping[str, Any]]) -> str:
    """Describes how the model was made and what the folder holds."""
    config, model = card.config, card.config.model
    trained = [
        f"estimator {estimator_text(config.estimator)}",
        commitment_text(config.estimator, logged_q(records)),
        "" if config.proposal.name == "prior" else f"proposal {config.proposal.name}",
        f"{config.task.start} start",
    ]
    rest = "low-rank adapters alone" if model.lora_rank or model.adapter else "all parameters"
    holds = (
        "The folder holds the adapters; peft loads them onto the base model."
        if card.adapter
        else "Adapters are merged; transformers loads the folder."
        if model.lora_rank or model.adapter
        else "transformers loads the folder."
    )
    lines = [
        f"* Base model: {_text(model.size)}",
        f"* Trained with tsallis_rl from question–answer pairs, {rest}: {_text(', '.join(filter(None, trained)))}",
        f"* Checkpoint of step {card.step} of {config.train.steps}, in {card.dtype}. {holds}",
    ]
    if card.kept:
        lines.append(f"* Rounding: {card.kept.sentence(card.dtype)}.")
    return "\n".join(lines)


def _scores(records: Sequence[Mapping[str, Any]], step: int) -> str:
    """Writes a table of the checkpoint's scores on validation, and of the test split before and after training."""
    tests = [(record.get("eval/test/checkpoint_step"), _of(record, "eval/test/")) for record in records]
    tests = [(at, scores) for at, scores in tests if scores]
    validation = [scores for r in records if r["step"] == step and (scores := _of(r, "eval/validation/"))]
    columns = {f"validation, step {step}": scores for scores in validation[-1:]}
    if tests and tests[0][0] is None:
        columns["test, before training"] = tests[0][1]
    columns |= {f"test, step {at}": scores for at, scores in tests[-1:] if isinstance(at, int)}
    if not columns:
        return "The run has recorded none for this checkpoint."
    names = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in names:
        cells = [f"{scores[name]:.4g}" if name in scores else "–" for scores in columns.values()]
        lines.append(f"| {_text(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _of(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Selects the finite scores of a record: name without its prefix → value."""
    return {
        name.removeprefix(prefix): value
        for name, value in record.items()
        if name.startswith(prefix) and name != "eval/test/checkpoint_step"
        if plain(value) is not None
    }


def _load_task(config: ConfigDict) -> Task | str:
    """Loads the run's task, or returns why that fails, since a card must not make the export fail."""
    try:
        return load_task_of_run(config)[0]
    except UserError as error:
        return str(error)
    except Exception as error:  # whatever a user's own task raises
        return f"the task cannot be loaded ({type(error).__name__}: {error})"


def _data(task: Task | str) -> str:
    """Writes the number of examples of each split and their SHA-256."""
    if isinstance(task, str):
        return f"Not available: {_text(task)}"
    found = fingerprints(task)
    lines = ["| split | examples | SHA-256 |", "|---|---|---|"]
    lines += [f"| {_text(name)} | {count} | `{digest}` |" for name, (count, digest) in found.items()]
    return (
        "\n".join(lines)
        + "\n\nHashed when this was exported: all examples that the settings below select, including those that do "
        "not fit and are then left out, each as a line of JSON with `id`, `prompt`, `answer` and `aliases`."
    )


def _text(value: Any) -> str:
    """Escapes text for a line of Markdown."""
    line = "".join(character if character.isprintable() else " " for character in str(value))
    return _MARKUP.sub(r"\\\1", " ".join(line.split()))


def _fenced(text: str, language: str) -> str:
    """Puts text into a fence that nothing in it ends."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}{language}\n{text}\n{fence}"
