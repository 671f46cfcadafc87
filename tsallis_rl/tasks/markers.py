"""The ids around a rationale and an answer, from the settings of a task and the model's own files.

prompt, think prefix | rationale | end-of-think, joint | answer | end of answer
"""

import itertools
import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tsallis_rl.runs.cache import write_whole
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.tasks.tokenizers import Tokenizer

AUTO = "auto"
FILE = "markers.json"  # in a run's folder
# For a model without </think>. It begins with a word, so that its ids are the same at the start of every line. The
# answer is on a line of its own, so that its ids do not depend on the text before it. A joint of one space would be a
# token of its own, and models hardly ever read a word after such a token (log P̂ of gold answers of HotPotQA, cold
# start, after a line break and after a space: SmolLM2-135M −17.4 and −22.4 nats, Gemma 3 270M −10.5 and −22.1).
PLAIN_END_OF_THINK, _PLAIN_JOINT = "Final answer:", "\n"
# After the model's own </think>. Other starts have an empty line there, as its chat template does.
_THINKING_JOINT = {"cold": "", "mixed": ""}


class Markers(NamedTuple):
    """The fixed ids of a rollout.

    Attributes:
      think_prefix: text after the prompt, which the model reads; it is not scored.
      end_of_think: L ids that close a rationale.
      joint: J ids between end-of-think and answer.
      end_of_answer: id that is scored after the gold answer.
      stop_ids: E ids, any of which ends a sampled answer.
      notes: sentences for the user, if the model's files disagree.
    """

    think_prefix: str
    end_of_think: tuple[int, ...]
    joint: tuple[int, ...]
    end_of_answer: int
    stop_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def fixed_tokens(self) -> int:
        """L + J, the tokens between rationale and answer."""
        return len(self.end_of_think) + len(self.joint)

    def lines(self, tokenizer: Tokenizer) -> list[str]:
        """Describes each marker on a line: its text and its ids."""

        def shown(name: str, ids: tuple[int, ...]) -> str:
            return f"{name}: {tokenizer.decode(ids, special=True)!r} {list(ids)}"

        stops = ", ".join(f"{tokenizer.decode([id], special=True)!r} [{id}]" for id in self.stop_ids)
        return [
            f"think prefix, read and not scored: {self.think_prefix!r}",
            shown("end-of-think", self.end_of_think),
            shown("joint", self.joint),
            shown("end of answer, scored after the gold answer", (self.end_of_answer,)),
            f"each of these ends an answer: {stops}",
        ]


def keep_markers(markers: Markers, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the markers into a run's folder, as ids and as text; if it has markers, they must be the same.

    Raises:
      UserError: the run began with other markers.
    """
    file = folder / FILE
    if not file.exists():
        write_whole(file, (json.dumps(_told(markers, tokenizer), indent=2, ensure_ascii=False) + "\n").encode())
    if other := other_markers(markers, tokenizer, folder):
        raise UserError(f"{other}; put the model's files back, or start in another --workdir")


def other_markers(markers: Markers, tokenizer: Tokenizer, folder: Path) -> str:
    """Describes the first marker that differs from the run folder's; "" if none differs, or none is kept.

    Raises:
      UserError: the file is not one that a run writes.
    """
    file, found, remedy = (
        folder / FILE,
        _told(markers, tokenizer),
        "remove it to take the markers of the model's files as they are now",
    )
    if not file.exists():
        return ""
    kept = read_object(file, remedy)
    if missing := sorted(found.keys() - kept.keys()):
        raise UserError(f"{file} holds no {missing[0]}, which every run writes; {remedy}")
    for name, was in kept.items():
        if was != found.get(name):
            return (
                f"{file}: the run began with {name} = {was!r:.120}, and the model's files and config.task make it "
                f"{found.get(name)!r:.120} now"
            )
    return ""


def _told(markers: Markers, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Writes each marker as ids and as text, by name."""
    ids = {name: list(getattr(markers, name)) for name in ("end_of_think", "joint", "stop_ids")}
    ids |= {"end_of_answer": [markers.end_of_answer], "think_prefix": tokenizer.encode(markers.think_prefix, True)}
    return {name: {"ids": row, "text": tokenizer.decode(row, special=True)} for name, row in sorted(ids.items())}


def name_end_of_think(task: ConfigDict, tokenizer: Tokenizer) -> ConfigDict:
    """Sets task.end_of_think to PLAIN_END_OF_THINK if the model has no </think> and the config names none.

    The task is loaded with this config, so that a warm start's instruction can name it.
    """
    if task.end_of_think != AUTO or tokenizer.end_of_think is not None:
        return task
    task = task.copy_and_resolve_references()
    task.end_of_think = PLAIN_END_OF_THINK
    return task


def find_markers(task: ConfigDict, tokenizer: Tokenizer) -> Markers:
    """Finds the ids around a rationale and an answer, from config.task and the model's files.

    Raises:
      UserError: a setting cannot be encoded as it must be, or nothing names an end of sequence.
    """
    text = name_end_of_think(task, tokenizer).end_of_think
    own = (tokenizer.end_of_think,)
    end_of_think = own if text == AUTO else _inside(text, tokenizer)
    joint, notes = task.joint, ()
    if joint == AUTO and end_of_think == own:
        joint = _THINKING_JOINT.get(task.start, "\n\n")
    elif joint == AUTO:
        # If the tokeniser begins every text with a space, the answer brings its own.
        joint = _PLAIN_JOINT if end_of_think == tuple(tokenizer.encode(text, special=True)) else ""
        notes = _merged(text, joint, tokenizer)
    rendered = tokenizer.end_of_turn if task.start in ("chat", "warm") else None
    listed = tokenizer.stop_ids
    end_of_answer = _end_of_answer(task.end_of_answer, tokenizer, rendered)
    stop_ids = tuple(dict.fromkeys(id for id in (end_of_answer, *listed, rendered) if id is not None))
    if not end_of_think or set(end_of_think) & set(stop_ids):
        found = "no token" if not end_of_think else "a token that ends a sequence"
        raise UserError(f"config.task.end_of_think={text!r} holds {found}; choose another token or text")
    return Markers(
        think_prefix=task.think_prefix,
        end_of_think=end_of_think,
        joint=_inside(joint, tokenizer),
        end_of_answer=end_of_answer,
        stop_ids=stop_ids,
        notes=(*notes, *_disagreement(tokenizer, rendered, end_of_answer)),
    )


def _inside(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Encodes text as at the start of a line, without the space that some tokenisers put before a text."""
    before, alone = (tuple(tokenizer.encode(x, special=True)) for x in ("\n", text))
    whole = tuple(tokenizer.encode(f"\n{text}", special=True))
    return whole[len(before) :] if whole[: len(before)] == before else alone


def _merged(text: str, joint: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Writes a sentence if the tokeniser writes end-of-think and joint with other tokens than one after the other."""
    if _inside(text + joint, tokenizer) == (*_inside(text, tokenizer), *_inside(joint, tokenizer)):
        return ()
    flags = f"--config.task.end_of_think={shlex.quote(text)}$'\\n' --config.task.joint="
    return (
        f"this tokeniser has one token for the end of {text!r} and the line break behind it: a rationale is closed by "
        f"{text!r} with anything else behind it, not by {text!r} alone on its line; {flags} closes by the latter "
        "alone. The logs' closed_sampled says how many rationales the model closes itself",
    )


def _end_of_answer(setting: str, tokenizer: Tokenizer, rendered: int | None) -> int:
    """Finds the id that is scored after the gold answer."""
    if setting != AUTO:
        ids = tokenizer.encode(setting, special=True)
        if len(ids) != 1:
            raise UserError(f"config.task.end_of_answer={setting!r} is {len(ids)} tokens, choose a single one")
        return ids[0]
    if rendered is None and not tokenizer.stop_ids:
        raise UserError(
            "the model's folder names no end of sequence: set eos_token in its tokenizer_config.json, eos_token_id in "
            "its generation_config.json, or config.task.end_of_answer to one of its tokens"
        )
    return tokenizer.stop_ids[0] if rendered is None else rendered


def _disagreement(tokenizer: Tokenizer, rendered: int | None, end_of_answer: int) -> tuple[str, ...]:
    """Writes a sentence if two of the model's files name no end of sequence in common."""
    sources = dict(tokenizer.stop_sources)
    if rendered is not None:
        sources["the chat template"] = (rendered,)
    if all(set(a) & set(b) for a, b in itertools.combinations(sources.values(), 2)):
        return ()

    def text(id: int) -> str:
        return tokenizer.decode([id], special=True)

    said = ", ".join(f"{name} ends a sequence with {' or '.join(map(text, ids))}" for name, ids in sources.items())
    return (
        f"{said}: each of them ends a sampled answer, and {text(end_of_answer)} is scored after the gold answer "
        "(config.task.end_of_answer chooses another)",
    )
