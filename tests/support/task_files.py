"""Writes files like the official ones of FinQA, HotPotQA and MuSiQue, with hand-written records."""

import json


def finqa(**changes):
    qa = {
        "question": "what was the change in revenue ?",
        "answer": "11.1%",
        "exe_ans": 0.11111,
        "gold_inds": {"table_1": "revenue", "text_2": "it grew ."},
    }
    base = {
        "id": "A/2010/page_1.pdf-1",
        "pre_text": ["first sentence .", "."],
        "post_text": ["it grew .", "last sentence ."],
        "table": [["", "2010", "2009"], ["revenue", "$ -20 ( 20 )", "10% ( 10 % )"], ["revenue", "-", ""]],
        "qa": qa | {key: value for key, value in changes.items() if key in qa},
    }
    return base | {key: value for key, value in changes.items() if key in base}


def write_finqa(folder, train, dev, test=None):
    for name, records in (("train", train), ("dev", dev), ("test", test)):
        if records is not None:
            (folder / f"{name}.json").write_text(json.dumps(records))
    return folder


def many_finqa(n, prefix=""):
    return [finqa(id=f"{prefix}{i}") for i in range(n)]


FILES = {
    "hotpotqa": ("hotpot_train_v1.1.json", "hotpot_dev_distractor_v1.json"),
    "musique": ("musique_ans_v1.0_train.jsonl", "musique_ans_v1.0_dev.jsonl"),
}


def hotpotqa(id="h", **changes):
    return {
        "_id": id,
        "question": " Who  wrote it? ",
        "answer": "Ann",
        "context": [
            ["Simon &amp; Simon", ["It is a series.", " Ann wrote it.", ""]],
            ["Empty", []],
            ["Ann (writer)", ["She writes."]],
        ],
        "supporting_facts": [["Simon &amp; Simon", 1], ["Ann (writer)", 0]],
        "type": "bridge",
        "level": "hard",
    } | changes


def musique(id="2hop__1_2", **changes):
    paragraphs = [
        {"idx": 2, "title": "River", "paragraph_text": "It flows\nnorth.", "is_supporting": False},
        {"idx": 0, "title": "River", "paragraph_text": "It flows south.", "is_supporting": True},
        {"idx": 1, "title": "Town", "paragraph_text": "It lies there.", "is_supporting": True},
    ]
    return {
        "id": id,
        "paragraphs": paragraphs,
        "question": "Where does it flow?",
        "question_decomposition": [],
        "answer": "south",
        "answer_aliases": ["the south"],
        "answerable": True,
    } | changes


RECORD = {"hotpotqa": hotpotqa, "musique": musique}


def write_paragraphs(task, folder, train, dev, as_lines=None):
    for file, records in zip(FILES[task], (train, dev), strict=True):
        if task == "musique" if as_lines is None else as_lines:
            (folder / file).write_text("".join(json.dumps(r) + "\n" for r in records))
        else:
            (folder / file).write_text(json.dumps(records))
    return folder
