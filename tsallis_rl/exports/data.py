"""Fingerprints of a run's data: the examples that it was trained, chosen and tested on."""

import hashlib
import json

from tsallis_rl.tasks.base import Task


def fingerprints(task: Task) -> dict[str, tuple[int, str]]:
    """Hashes the splits of a task: name → number of examples, SHA-256 of their texts in order.

    An example is a line of JSON with its id, prompt (text or messages), answer and aliases.
    """
    found = {}
    for name, split in task.splits.items():
        digest = hashlib.sha256()
        for example in split.examples:
            prompt = example.prompt if isinstance(example.prompt, str) else [dict(turn) for turn in example.prompt]
            fields = {"id": example.id, "prompt": prompt, "answer": example.answer, "aliases": list(example.aliases)}
            digest.update(json.dumps(fields).encode() + b"\n")
        found[name] = (len(split.examples), digest.hexdigest())
    return found
