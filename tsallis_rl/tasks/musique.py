"""MuSiQue-Answerable (Trivedi et al. 2022): questions of two to four hops over twenty paragraphs."""

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import graders, paragraphs
from tsallis_rl.tasks.base import Task
from tsallis_rl.tasks.paragraphs import tidy
from tsallis_rl.tasks.records import Record, check_fields, read_records
from tsallis_rl.tasks.releases import Download, Release

GRADES = ("exact", "substring", "substring_bounded", "em", "f1")

_FIELDS = {
    "id": str,
    "question": str,
    "answer": str,
    "answer_aliases": [str],
    "answerable": bool,
    "paragraphs": [dict],
}
_PARAGRAPH_FIELDS = {"idx": int, "title": str, "paragraph_text": str, "is_supporting": bool}
_UNANSWERABLE = 0.02  # share of records; none in the release, half of MuSiQue-Full


def read(path: Path) -> Iterator[Record]:
    """Reads records of an official file of MuSiQue-Ans; idx identifies a paragraph, since titles repeat.

    Raises:
      UserError: it is a file of MuSiQue-Full, half of which cannot be answered.
    """
    count = unanswerable = 0
    for where, record in read_records(path, _FIELDS):
        for paragraph in record["paragraphs"]:
            check_fields(paragraph, _PARAGRAPH_FIELDS, f"{where}, field 'paragraphs'")
        count += 1
        unanswerable += not record["answerable"]
        yield {
            "id": record["id"],
            "question": tidy(record["question"]),
            "answer": tidy(record["answer"]),
            "aliases": [tidy(alias) for alias in record["answer_aliases"]],
            "answerable": record["answerable"],
            "paragraphs": [
                {"title": tidy(p["title"]), "text": tidy(p["paragraph_text"]), "supporting": p["is_supporting"]}
                for p in sorted(record["paragraphs"], key=lambda p: p["idx"])
            ],
        }
    if unanswerable > _UNANSWERABLE * count:
        raise UserError(
            f"{path}: {unanswerable} of {count} questions are unanswerable; this is a file of MuSiQue-Full, use "
            "musique_ans_v1.0_train.jsonl and musique_ans_v1.0_dev.jsonl"
        )


_SHA256 = {
    "musique_ans_v1.0_train.jsonl": "83a75b1e11e4e9bb8f8308e72ac40ca617ae4431b3a0d955b61cab259248490a",
    "musique_ans_v1.0_dev.jsonl": "15fa63794d18a94ce12411aca6e2327e65b6e83b0b1490efab3f1962e48abf3b",
}

RELEASE = Release(
    name="musique",
    title="MuSiQue-Ans",
    files={
        "train": ["musique_ans_v1.0_train.jsonl", "musique_ans_v1.0_train.json"],
        "dev": ["musique_ans_v1.0_dev.jsonl", "musique_ans_v1.0_dev.json"],
    },
    features=paragraphs.FEATURES,
    read=read,
    downloads=[
        Download(
            "https://drive.usercontent.google.com/download?id=1tGdADlNjWFaHLeZZGShh2IRcpO6Lv24h&export=download&confirm=t",
            _SHA256,
            zipped=True,
        )
    ],
)


def load(task: ConfigDict) -> Task:
    """Loads MuSiQue from config.task.folder; every seed sees the same examples."""
    return paragraphs.load(task, RELEASE, graders.musique, graders.normalize)
