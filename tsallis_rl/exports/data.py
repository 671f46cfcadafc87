"""Fingerprints of a run's data: which examples it was trained, chosen and tested on."""

import hashlib
import json

from ml_collections import ConfigDict

from tsallis_rl.tasks import load_task_of_run


def fingerprints(config: ConfigDict) -> dict[str, tuple[int, str]]:
    """Loads config.task and hashes its splits: name → number of examples, SHA-256 of their texts in order.

    An example is a line of JSON with its id, prompt (text or messages), answer and aliases.

    Raises:
      UserError: the task's files are not there, or are not what they should be.
    """
    found = {}
    for name, split in load_task_of_run(config)[0].splits.items():
        digest = hashlib.sha256()
        for example in split.examples:
            prompt = example.prompt if isinstance(example.prompt, str) else [dict(turn) for turn in example.prompt]
            fields = {"id": example.id, "prompt": prompt, "answer": example.answer, "aliases": list(example.aliases)}
            digest.update(json.dumps(fields).encode() + b"\n")
        found[name] = (len(split.examples), digest.hexdigest())
    return found
