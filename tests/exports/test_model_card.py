"""The model card: what it states, and text of others that must not break it."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from tests.support.runs import small
from tsallis_rl.exports.data import fingerprints
from tsallis_rl.exports.model_card import Card, model_card
from tsallis_rl.exports.rounding import Kept
from tsallis_rl.tasks import load_task

RECORDS = [
    {"step": 0, "eval/test/pass@1": 0.125, "eval/test/log_p_hat": None},
    {"step": 0, "eval/validation/pass@1": 0.1},
    {"step": 4, "eval/validation/pass@1": 0.2, "eval/validation/maj@4": 0.3},
    {"step": 4, "eval/test/pass@1": 0.25, "eval/test/checkpoint_step": 4},
]


def card(tmp_path, records=RECORDS, config=None, **changes) -> str:
    config = config or small()
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "config.json").write_text(config.to_json())
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    fields = dict(
        run=tmp_path / "run", config=config, source=tmp_path, base="owner/name", step=4, dtype="float32",
        adapter=False, kept=None,
    )  # fmt: skip
    return model_card(Card(**fields | changes))


def front(text: str) -> dict:
    """The YAML in front."""
    opening, block, _ = text.split("---\n", 2)
    assert not opening
    return yaml.safe_load(block)


def test_it_states_base_scores_settings_step_and_rounding(tmp_path):
    text = card(tmp_path, dtype="bfloat16", kept=Kept(1000, 0.25, 0.5, 0.7))
    assert front(text) == {
        "base_model": "owner/name", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["tsallis_rl", "reasoning"],
    }  # fmt: skip
    assert "| | validation, step 4 | test, before training | test, step 4 |" in text
    assert "| pass@1 | 0.2 | 0.125 | 0.25 |" in text and "| maj@4 | 0.3 | – | – |" in text
    assert "log\\_p\\_hat" not in text  # it was not finite
    assert "Checkpoint of step 4 of 4, in bfloat16" in text
    assert "of the 1,000 numbers that training moved, 25.0% still differ" in text
    settings = text.split("```json\n")[1].split("\n```")[0]
    assert json.loads(settings) == json.loads(small().to_json())


@pytest.mark.parametrize(
    ("changes", "states"),
    [
        ({}, "estimator garl, q = 0.75, cold start"),
        ({"estimator__commitment": "floor", "estimator__tau": 0.05}, "estimator garl, floor τ = 0.05, cold start"),
        ({"proposal__name": "mixture"}, "estimator garl, q = 0.75, proposal mixture, cold start"),
        ({"estimator__name": "iwae"}, "estimator iwae, q = 1, cold start"),
        ({"estimator__name": "grpo"}, "estimator grpo, cold start"),
        ({"estimator__name": "gone.own"}, "estimator gone.own, cold start"),  # whose module is not here
    ],
)
def test_it_states_estimator_commitment_and_proposal(tmp_path, changes, states):
    assert states in card(tmp_path, config=small(**changes))


def test_scores_of_another_checkpoint_are_named_as_such(tmp_path):
    text = card(tmp_path, step=2)
    assert "validation, step" not in text and "| test, before training | test, step 4 |" in text
    assert "The run has recorded none for this checkpoint." in card(tmp_path, records=[])


def test_the_card_of_an_adapter_is_one_of_peft(tmp_path):
    text = card(tmp_path, adapter=True)
    assert front(text)["library_name"] == "peft" and "lora" in front(text)["tags"]


@pytest.mark.parametrize(
    ("given", "stated"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model\n", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: 'tongyi'\nlicense_link: https://x.y/LICENSE\n---\n",
            {"license": "other", "license_name": "tongyi", "license_link": "https://x.y/LICENSE"},
        ),
        ("---\ntags: [x]\n---\nlicense: mit\n", {}),
        ('---\nlicense: "mit\\n---\\n"\n---\n', {}),
        ("license: mit\n", {}),
    ],
)
def test_the_licence_is_the_one_that_the_base_states(tmp_path, given, stated):
    (tmp_path / "README.md").write_text(given)
    found = front(card(tmp_path))
    assert {name: value for name, value in found.items() if name.startswith("license")} == stated


def test_text_of_others_breaks_neither_yaml_nor_markdown(tmp_path):
    config = small()
    evil = "x\n---\n# big | <script>alert(1)</script> ```` [a](b) `c`"
    with config.unlocked():
        config.model.size = evil
        config.task.note = evil
    records = [{"step": 4, f"eval/validation/{evil}": 0.5}]
    text = card(tmp_path, records, config, base='a/b"\nlicense: mit')
    assert front(text)["base_model"] == 'a/b"\nlicense: mit' and "license" not in front(text)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in text.splitlines() if line.startswith(("# ", "## "))
    ]
    assert text.count("\n---\n") == 1 and "\n# big" not in text
    fence = "`" * 5
    before, settings, after = text.split(f"{fence}json\n")[0], *text.split(f"{fence}json\n")[1].split(f"\n{fence}")
    assert "<script>" not in before.replace("\\<script\\>", "") and "`" not in before.split("## Data")[0].replace(
        "\\`", ""
    )
    assert json.loads(settings)["model"]["size"] == evil and after == "\n"
    (row,) = [line for line in before.splitlines() if "0.5" in line]
    assert row.replace("\\|", "").count("|") == 3


def test_the_fingerprint_is_the_hash_of_the_examples(tmp_path):
    lines = [{"prompt": f"the cat {i} sät", "answer": "on", "aliases": ["at"]} for i in range(3)]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = small()
    with config.unlocked():
        config.task = {
            "name": "jsonl", "path": str(tmp_path), "start": "cold", "metric": "exact", "label_noise": 0.0,
            "end_of_think": "auto", "joint": "auto", "think_prefix": "", "end_of_answer": "auto",
            **dict.fromkeys(("train_examples", "validation_examples", "test_examples"), 0),
        }  # fmt: skip
    task = load_task(config.task, 0)
    found, examples = fingerprints(task), task.splits["train"].examples
    rows = [{"id": e.id, "prompt": e.prompt, "answer": e.answer, "aliases": list(e.aliases)} for e in examples]
    expected = hashlib.sha256("".join(json.dumps(row) + "\n" for row in rows).encode()).hexdigest()
    assert found["train"] == (3, expected)
    assert f"| train | 3 | `{expected}` |" in card(tmp_path, config=config)
    (tmp_path / "train.jsonl").write_text(json.dumps(lines[0] | {"answer": "under"}) + "\n")
    assert fingerprints(load_task(config.task, 0))["train"][1] != expected
    Path(tmp_path / "train.jsonl").unlink()
    told = card(tmp_path, config=config).split("## Data\n\n")[1].splitlines()[0]
    assert told.startswith("Not available: ") and "no split 'train'" in told.replace("\\", "")
