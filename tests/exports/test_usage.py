"""The part of a model card that says how to prompt: its program runs in transformers, and reads what the run read."""

import json

import jax.numpy as jnp
import pytest

from tests.support.model_folders import write_folder
from tests.support.paths import ROOT
from tests.support.tokenizer_files import TEMPLATE, write_model
from tsallis_rl.config import command_line as settings
from tsallis_rl.exports.usage import opening, usage
from tsallis_rl.tasks import load_task_of_run
from tsallis_rl.tasks.markers import find_markers, keep_markers
from tsallis_rl.tasks.pretrained_tokenizers import pretrained_tokenizer

QUESTION = "is the cat 3 on the mat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pretrained folder with a chat template, and a task of twelve questions beside it."""
    folder = tmp_path_factory.mktemp("model")
    write_folder(folder, jnp.float32)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    write_model(folder, config=names)
    lines = [{"prompt": f"is the cat {i} on the mat", "answer": "on"} for i in range(12)]
    (folder / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def make(folder, run, start, **fields):
    """The task, tokeniser, program and explanation of a run that began like this."""
    config = settings.load_config(f"{ROOT / 'configs' / 'jsonl.py'}:start={start},model={folder}")
    config.task.update(path=str(folder / "task.jsonl"), max_prompt=128, max_answer=4)
    config.rollouts.max_rationale = 6
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    task, tokenizer = load_task_of_run(config)
    (run / "markers.json").unlink(missing_ok=True)
    keep_markers(find_markers(config.task, tokenizer), tokenizer, run)
    return config, task, tokenizer, *usage(run, config, task, "", adapter=False)


@pytest.mark.parametrize("start", ["cold", "chat", "warm"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"task__think_prefix": "<think>\n"}, {"evaluate__rationale": "none", "evaluate__greedy": True}],
    ids=["plain", "prefix", "no-rationale"],
)
def test_the_program_runs_in_transformers_on_the_ids_that_the_run_read(folder, tmp_path, start, fields):
    pytest.importorskip("torch", reason="needs the extra parity: torch and transformers")
    pytest.importorskip("transformers", reason="needs the extra parity: torch and transformers")
    config, task, tokenizer, program, _ = make(folder, tmp_path, start, **fields)
    asked = program.replace("…", QUESTION).replace('folder = "."', f"folder = {str(folder)!r}")
    names = {}
    exec(asked, names)
    prompt = next(e.prompt for split in task.splits.values() for e in split.examples if str(e.prompt).count(QUESTION))
    expected = tokenizer.encode_prompt(prompt, config.task.think_prefix)
    if "evaluate__rationale" in fields:
        markers = find_markers(config.task, tokenizer)
        expected += [*markers.end_of_think, *markers.joint]
        assert "rationale" not in names
    assert names["inputs"]["input_ids"][0].tolist() == expected
    assert isinstance(names["answer"], str)


def test_the_program_has_the_runs_budget_sampling_and_stops(folder, tmp_path):
    config, _, tokenizer, program, told = make(folder, tmp_path, "warm", evaluate__temperature=0.7, evaluate__top_k=20)
    tokens = 6 + find_markers(config.task, tokenizer).fixed_tokens + 4
    stop = pretrained_tokenizer(folder).encode("<|im_end|>", special=True)
    assert f"do_sample=True, temperature=0.7, top_k=20, top_p=1.0, max_new_tokens={tokens}," in program
    assert f"eos_token_id={stop}" in program and "written.partition('</think>')" in program
    assert "allowed 6 tokens for a rationale" in told
    *_, greedy, told = make(folder, tmp_path, "cold", evaluate__rationale="none", evaluate__greedy=True)
    assert "do_sample=False, max_new_tokens=4," in greedy and "apply_chat_template" not in greedy
    assert "question + '</think>" in greedy and told.endswith("answers at once, without a rationale.")


def test_an_adapters_program_takes_the_tokeniser_of_its_base(folder, tmp_path):
    config, task, *_ = make(folder, tmp_path, "chat")
    program, _ = usage(tmp_path, config, task, "owner/base", adapter=True)
    assert "from peft import AutoPeftModelForCausalLM" in program
    assert "AutoTokenizer.from_pretrained('owner/base')" in program


def test_what_every_prompt_begins_with_is_shown_and_nothing_of_one_alone(folder, tmp_path):
    _, warm, *_, program, _ = make(folder, tmp_path, "warm")
    begins = opening(warm)
    assert begins.endswith("\n\n") and "Think step by step" in begins and "cat" not in begins
    assert f"question = {begins!r} + " in program
    _, cold, *_ = make(folder, tmp_path, "cold")
    assert not opening(cold)
    lines = [{"prompt": "All.\n\nOne.\n\nTwo.", "answer": "on"}, {"prompt": "All.\n\nOther.\n\nTwo.", "answer": "on"}]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines * 10))
    config, *_ = make(folder, tmp_path, "cold")
    config.task.path = str(tmp_path / "two.jsonl")
    assert opening(load_task_of_run(config)[0]) == "All.\n\n"


def test_hostile_markers_end_no_literal_and_a_run_without_markers_is_said(folder, tmp_path):
    config, task, *_ = make(folder, tmp_path, "chat")
    evil = "'''\"\"\"\n```\nimport os; os.abort() #"
    ids = {"ids": [1], "text": evil}
    names = ("think_prefix", "end_of_think", "joint", "end_of_answer", "stop_ids")
    (tmp_path / "markers.json").write_text(json.dumps(dict.fromkeys(names, ids)))
    program, _ = usage(tmp_path, config, task, evil, adapter=True)
    compile(program, "card", "exec")
    assert not [line for line in program.splitlines() if line.startswith(("import os", "```"))]
    for broken in ("{}", "[]", '{"think_prefix": 1}'):
        (tmp_path / "markers.json").write_text(broken)
        program, told = usage(tmp_path, config, task, "", adapter=False)
        assert not program and "kept no markers.json" in told
