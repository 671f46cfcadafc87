"""HotPotQA (Yang et al. 2018), distractor setting: two supporting Wikipedia paragraphs among ten."""

import html
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import graders, paragraphs
from tsallis_rl.tasks.base import Task
from tsallis_rl.tasks.paragraphs import tidy
from tsallis_rl.tasks.records import Kind, Record, fits, read_records
from tsallis_rl.tasks.releases import Download, Release

GRADES = ("exact", "substring", "substring_bounded", "em", "f1")

_FIELDS = {"_id": str, "question": str, "answer": str, "context": list, "supporting_facts": list}
_WITHOUT_GOLD = 0.02  # share of records that may lack a supporting paragraph; in fullwiki files it is far higher


def _titled(pairs: list, kind: Kind) -> bool:
    """Returns whether each of `pairs` is a title and a value of a kind."""
    return all(fits(pair, list) and len(pair) == 2 and fits(pair[0], str) and fits(pair[1], kind) for pair in pairs)


def read(path: Path) -> Iterator[Record]:
    """Reads records of an official distractor file.

    Raises:
      UserError: it is a fullwiki file, whose records often lack a supporting paragraph.
    """
    count, lacking = 0, []
    for where, record in read_records(path, _FIELDS):
        context, facts = record["context"], record["supporting_facts"]
        if not _titled(context, [str]) or not _titled(facts, int):
            raise UserError(
                f"{where}: 'context' must be pairs of a title and its sentences, and 'supporting_facts' pairs of a "
                "title and a number, as in the official files"
            )
        gold = {title for title, _ in facts}
        count += 1
        lacking += [where] if gold - {title for title, _ in context} else []
        yield {
            "id": record["_id"],
            "question": tidy(record["question"]),
            "answer": tidy(record["answer"]),
            "aliases": [],
            "answerable": True,
            "paragraphs": [
                {"title": html.unescape(title), "text": tidy("".join(sentences)), "supporting": title in gold}
                for title, sentences in context
            ],
        }
    if len(lacking) > _WITHOUT_GOLD * count:
        raise UserError(
            f"{path}: {len(lacking)} of {count} records lack a supporting paragraph (first: {lacking[0]}); this is a "
            "fullwiki file, use the distractor files hotpot_train_v1.1.json and hotpot_dev_distractor_v1.json"
        )


_SITE = "http://curtis.ml.cmu.edu/datasets/hotpot"
_SHA256 = {
    "hotpot_train_v1.1.json": "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316",
    "hotpot_dev_distractor_v1.json": "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea",
}

RELEASE = Release(
    name="hotpotqa",
    title="HotPotQA",
    files={"train": ["hotpot_train_v1.1.json"], "dev": ["hotpot_dev_distractor_v1.json"]},
    features=paragraphs.FEATURES,
    read=read,
    downloads=[Download(f"{_SITE}/{file}", {file: digest}) for file, digest in _SHA256.items()],
)


def load(task: ConfigDict) -> Task:
    """Loads HotPotQA from config.task.folder; every seed sees the same examples."""
    return paragraphs.load(task, RELEASE, graders.hotpotqa, graders.normalize, ", or yes or no")
