"""Cache of encoded splits: a split is tokenised once and then read from files, until its records, the tokeniser, the
markers, the budgets or this package's code change.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tsallis_rl.runs.cache import cache_folder
from tsallis_rl.runs.cache import fingerprint as of_settings
from tsallis_rl.runs.progress import say
from tsallis_rl.tasks.base import Example, Split, Task
from tsallis_rl.tasks.checked_files import code_digest, read_checked, remove, sha256, whole_folder, write_checked
from tsallis_rl.tasks.encoding import EncodedExamples, EncodedSplit, Head, encode_split, fingerprint, unattainable_golds
from tsallis_rl.tasks.markers import Markers
from tsallis_rl.tasks.token_rows import TokenRows
from tsallis_rl.tasks.tokenizers import Tokenizer, hash_texts

LEAST = 2000  # examples; a smaller split is not cached, as it is tokenised in seconds
_UNUSED = 30 * 24 * 3600  # seconds; a split that no command reads for so long is removed
_MANIFEST = "manifest.json"
_ARRAYS = (
    "prompts",
    "prompt_offsets",
    "answers",
    "answer_offsets",
    "kept",
    "shortened",
    "prompts_before",
    "answers_before",
)


def encode_cached(
    split: Split,
    tokenizer: Tokenizer,
    markers: Markers,
    *,
    max_prompt: int,
    max_answer: int,
    name: str = "",
    wider: EncodedSplit | None = None,
) -> EncodedSplit:
    """Encodes a split as `encode_split` does, or reads it from the cache, with its prompt ids mapped from a file."""
    budgets = {"max_prompt": max_prompt, "max_answer": max_answer}
    key = _key(split, tokenizer, markers, budgets) if len(split.examples) >= LEAST else ""
    folder = cache_folder("encoded") / key
    if key and (found := _read(folder, split)) is not None:
        return found
    encoded = encode_split(split, tokenizer, markers, **budgets, name=name, wider=wider)
    if not key:
        return encoded
    try:
        _write(folder, encoded)
    except (OSError, ValueError) as error:  # a UserError is a ValueError
        say(f"WARNING: the encoded split is not cached: {error}")
        return encoded
    found = _read(folder, split)
    return encoded if found is None else found


def _content(split: Split) -> str:
    """Hashes a split's examples; "" if trimmed prompts cannot be known without trimming."""
    if known := getattr(split.examples, "fingerprint", ""):
        return known
    if any(example.shorten for example in split.examples):
        return ""
    return hash_texts(itertools.chain.from_iterable(map(_texts, split.examples)))


def _texts(example: Example) -> tuple[str, str]:
    """Writes an example as two texts: its fields as JSON, and its prompt, which is not escaped if it is text."""
    prompt = example.prompt if isinstance(example.prompt, str) else json.dumps(example.prompt, default=dict)
    return json.dumps(
        [example.id, example.answer, example.aliases, example.part, type(example.prompt).__name__]
    ), prompt


def _key(split: Split, tokenizer: Tokenizer, markers: Markers, budgets: Mapping[str, int]) -> str:
    """Names the split's folder in the cache; "" if its examples or the tokeniser have no fingerprint."""
    content, reader = _content(split), getattr(tokenizer, "fingerprint", "")
    if not content or not reader:
        return ""
    marked = [markers.think_prefix, markers.end_of_answer, tokenizer.pad]
    return of_settings([code_digest(), content, reader, marked, budgets, dict(split.dropped)])


def _write(folder: Path, encoded: EncodedSplit) -> None:
    """Writes a split's folder whole or not at all."""
    with whole_folder(folder, lambda: _manifest(folder) is not None) as partial:
        arrays = (*encoded.prompts, *encoded.answers, encoded.examples.kept, encoded.examples.shortened)
        for name, values in zip(_ARRAYS, (*arrays, *encoded.before), strict=True):
            np.save(partial / f"{name}.npy", values)
        (partial / "heads.json").write_text(json.dumps(encoded.heads))
        manifest = {
            "files": {file.name: sha256(file) for file in sorted(partial.iterdir())},
            "dropped": dict(encoded.dropped),
            "max_prompt": encoded.max_prompt,
            "max_answer": encoded.max_answer,
            "pad": encoded.pad,
            "digest": fingerprint(encoded),
        }
        write_checked(partial / _MANIFEST, manifest)
    with contextlib.suppress(OSError):  # another process removes them too
        for other in folder.parent.iterdir():
            if time.time() - other.stat().st_mtime > _UNUSED:
                remove(other)


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Reads a folder's manifest; None if there is none, or a file was changed since."""
    manifest = read_checked(folder / _MANIFEST)
    if manifest is None or any(sha256(folder / name) != digest for name, digest in manifest["files"].items()):
        return None
    return manifest


def _read(folder: Path, split: Split) -> EncodedSplit | None:
    """Reads a split's folder; None if there is none, or a file in it was changed since."""
    manifest = _manifest(folder)
    if manifest is None:
        return None
    with contextlib.suppress(OSError):  # others may own the cache
        os.utime(folder)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r" if name == "prompts" else None) for name in _ARRAYS}
    heads = json.loads((folder / "heads.json").read_bytes())
    return EncodedSplit(
        prompts=TokenRows(arrays["prompts"], arrays["prompt_offsets"]),
        answers=TokenRows(arrays["answers"], arrays["answer_offsets"]),
        examples=EncodedExamples(split.examples, arrays["kept"], arrays["shortened"]),
        heads=[Head(id, answer, tuple(aliases), part) for id, answer, aliases, part in heads],
        dropped=manifest["dropped"],
        max_prompt=manifest["max_prompt"],
        max_answer=manifest["max_answer"],
        pad=manifest["pad"],
        before=(arrays["prompts_before"], arrays["answers_before"]),
        digest=manifest["digest"],
    )


def unattainable_cached(
    encoded: EncodedSplit, tokenizer: Tokenizer, markers: Markers, task: Task, settings: ConfigDict
) -> dict[str, int]:
    """Counts as `unattainable_golds` does; the counts of a large split graded by this package's graders are cached.

    Args:
      encoded: the split.
      tokenizer: the model's tokeniser.
      markers: the run's markers.
      task: the split's task.
      settings: config.task, which chooses the grader.
    """
    reader = getattr(tokenizer, "fingerprint", "")
    # A dotted name is your own module or function, whose code may change.
    own = not any("." in str(settings.get(name, "")) for name in ("name", "metric", "reward"))
    if len(encoded) < LEAST or not reader or not own:
        return unattainable_golds(encoded, tokenizer, markers, task)
    key = of_settings([code_digest(), fingerprint(encoded), reader, markers.stop_ids, settings.to_json()])
    file = cache_folder("encoded") / f"golds-{key}.json"
    found = read_checked(file)
    if found is None:
        found = unattainable_golds(encoded, tokenizer, markers, task)
        try:
            write_checked(file, found)
        except ValueError as error:
            say(f"WARNING: the check of gold answers is not cached: {error}")
    return found
