"""README's path «Your own model», walked by its commands with folders as they are published, no token renamed."""

import contextlib
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.command_line import call, refused
from tests.support.gemma_folder import BEYOND, write_gemma
from tests.support.model_folders import load, write_folder
from tests.support.paths import ROOT
from tests.support.tokenizer_files import TEMPLATE, write_model
from tsallis_rl.config.command_line import load_config
from tsallis_rl.evaluate import main as evaluate
from tsallis_rl.export import main as export
from tsallis_rl.main import main as train
from tsallis_rl.models import bind, output_logits
from tsallis_rl.tasks import load_task
from tsallis_rl.tasks.__main__ import main as tasks
from tsallis_rl.tasks.markers import name_end_of_think
from tsallis_rl.tasks.pretrained_tokenizers import pretrained_tokenizer

SPELT = f"  is <end_of_turn> or <unused0>\n\nor {BEYOND} the mat?  "
TASK = ("--config.task.max_prompt=160", "--config.task.max_answer=20", "--config.task.metric=substring")
FEW = (
    *TASK, "--config.rollouts.max_rationale=8", "--config.rollouts.num_rollouts=6", "--config.train.steps=3",
    "--config.train.prompts=2", "--config.train.save_rollouts_every=1", "--config.train.save_rollouts_prompts=2",
    "--config.evaluate.every=3", "--config.evaluate.samples=4", "--config.evaluate.prompts=4",
)  # fmt: skip
DISAGREEMENT = "tokenizer_config.json ends a sequence with <eos>"


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_task(folder):
    """Four examples a split, the last of which spells the model's own tokens in its prompt and its answer."""
    folder.mkdir()
    for name, first in (("train", 0), ("validation", 10), ("test", 20)):
        records = [{"prompt": f"where did the cat {first + i} sit?\n\n", "answer": "on the mat"} for i in range(3)]
        records.append({"prompt": f"{first}{SPELT}", "answer": "a <end_of_turn>", "id": f"{name} spelt"})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder of what the commands wrote, and what each of them printed."""
    root, told = tmp_path_factory.mktemp("own_model"), {}
    write_task(root / "task")
    instruction = 'Think step by step. Then write "Final answer:" and give the answer alone, without words'
    write_gemma(root / "gemma", [instruction, "where did the cat sit? on the mat"] * 20)

    def config(model):
        argument = f"{ROOT / 'configs' / 'jsonl.py'}:q=0.75,start=warm,model={root / model}"
        return f"--config={argument}", f"--config.task.path={root / 'task'}"

    greedy = ("--config.evaluate.greedy", "--config.evaluate.samples=1")
    for name, program, arguments in (
        ("show", tasks, (*config("gemma"), *TASK, "--split=test", "--show=4")),
        ("plan", train, (*config("gemma"), *FEW, "--plan", f"--workdir={root / 'planned'}")),
        ("train", train, (*config("gemma"), *FEW, f"--workdir={root / 'run'}")),
        ("before", evaluate, (*config("gemma"), *FEW, "--split=test", f"--out={root / 'before'}")),
        ("after", evaluate, (f"--run={root / 'run'}", "--step=latest", "--k=1,2", f"--out={root / 'after'}")),
        ("export", export, (f"--checkpoint={root / 'run'}", "--step=3", f"--out={root / 'out'}")),
        ("exported", evaluate, (*config("out"), *FEW, "--split=test", "--k=1,2", f"--out={root / 'exported'}")),
        ("greedy", evaluate, (*config("out"), *FEW, *greedy, f"--out={root / 'greedy'}")),
    ):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert call(program, *arguments) is None, name
        told[name] = out.getvalue()
    return root, told


def test_tasks_shows_what_surrounds_rationale_and_answer(walked):
    shown = walked[1]["show"]
    prompt = (
        '<bos><start_of_turn>user\nThink step by step. Then write "Final answer:" and give the answer alone, without '
        "words or explanation.\n\nwhere did the cat 20 sit?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert f"{prompt}\n⟦rationale, sampled⟧Final answer:⟦joint, 1 tokens⟧\n⟦answer, " in shown
    assert "⟧on the mat<end_of_turn>\n" in shown
    assert f"20{SPELT.rstrip()}<end_of_turn>\n<start_of_turn>model\n" in shown  # the template trims
    assert "⟧a <end_of_turn><end_of_turn>\n" in shown
    assert "end of answer, scored after the gold answer: '<end_of_turn>' [11]" in shown
    assert "each of these ends an answer: '<end_of_turn>' [11], '<eos>' [1]" in shown
    assert "end-of-think: 'Final answer:' [" in shown
    assert "test: 4 examples" in shown and " kept: " not in shown  # every gold can be attained


def test_files_that_disagree_are_told_once_by_each_command(walked):
    for name in ("show", "plan", "train", "before", "after"):
        assert walked[1][name].count(DISAGREEMENT) == 1, name
    assert DISAGREEMENT not in walked[1]["export"]


def test_tokens_that_a_prompt_spells_are_text(walked):
    tokenizer = pretrained_tokenizer(walked[0] / "gemma")
    ids = tokenizer.encode_prompt(({"role": "user", "content": SPELT},))
    assert tokenizer.decode(ids) == f"user\n{SPELT.strip()}\nmodel\n"  # nothing of it is a special token
    assert tokenizer.decode(ids, special=True).count("<end_of_turn>") == 2
    assert ids.count(tokenizer.end_of_turn) == 1 and max(ids) < tokenizer.vocab_size
    with_gap = tokenizer.encode_prompt(({"role": "user", "content": "<unused0>"},))
    assert 6 in with_gap  # an added token that is not special is an id of text, as for transformers


def test_a_plan_says_whether_it_fits_and_writes_nothing(walked):
    root, told = walked
    assert "it fits" in told["plan"] and "activations and logits" in told["plan"]
    assert not (root / "planned").exists()


def test_a_run_keeps_its_markers_and_every_rollout_has_a_weight(walked):
    run = walked[0] / "run"
    markers = json.loads((run / "markers.json").read_text())
    assert {name: marker["text"] for name, marker in markers.items()} == {
        "end_of_think": "Final answer:", "joint": "\n", "end_of_answer": "<end_of_turn>", "think_prefix": "",
        "stop_ids": "<end_of_turn><eos>",
    }  # fmt: skip
    assert len(markers["end_of_think"]["ids"]) > 1
    steps = [record for record in lines(run / "metrics.jsonl") if "train/loss" in record]
    assert len(steps) == 3
    assert all(record["train/skipped"] == 0 and record["train/log_prob_gap"] < 1e-4 for record in steps)
    rows = [row for step in range(3) for row in lines(run / "rollouts" / f"step_{step:06d}.jsonl")]
    assert len(rows) == 3 * 2 * 6
    assert all(np.isfinite(row["log_w"]) for row in rows)
    ended = [row["rationale"] for row in rows if row["closed"] == "end of sequence replaced"]
    assert 3 < len(ended) < len(rows)
    for text in ended:  # what was sampled, and behind it all that the model read in its place
        assert text.endswith(("<end_of_turn>Final answer:", "<eos>Final answer:")), text
    assert all("Final answer:" in row["rationale"] for row in rows)
    assert json.loads((run / "config.json").read_text())["rollouts"]["unclosed"] == "close"


def test_an_evaluation_of_the_exported_folder_is_that_of_the_run(walked):
    root = walked[0]
    for name in ("before", "after", "exported"):
        assert {file.name for file in (root / name).iterdir()} == {
            "summary.json", "examples.jsonl", "samples.jsonl", "page.html"
        }  # fmt: skip
        assert len(lines(root / name / "examples.jsonl")) == 4
        assert len(lines(root / name / "samples.jsonl")) == 4 * 4
    samples, figures = (
        [reader(root / name / file) for name in ("before", "after", "exported")]
        for reader, file in (
            (lines, "samples.jsonl"),
            (lambda file: json.loads(file.read_text())["figures"], "summary.json"),
        )
    )
    assert samples[1] == samples[2] and figures[1] == figures[2]
    assert figures[0]["log_p_hat"] != figures[1]["log_p_hat"]
    (tested,) = [r for r in lines(root / "run" / "metrics.jsonl") if r.get("eval/test/checkpoint_step") == 3]
    assert figures[1]["log_p_hat"]["value"] == pytest.approx(tested["eval/test/log_p_hat"], rel=1e-5)
    assert any("<end_of_turn>" in row["sampled"] or "<eos>" in row["sampled"] for row in samples[1])
    assert not any("<eos>" in row["answer"] for row in samples[1])
    page = (root / "after" / "page.html").read_text()
    assert "\\u003cend_of_turn>" in page and "<end_of_turn>" not in page  # shown as text, and never as a tag


def test_an_export_is_a_folder_as_it_came_with_what_was_trained(walked):
    root, told = walked
    assert told["export"] == f"wrote step 3 in float32: {root / 'out'}\n"
    before, after = (json.loads((root / name / "config.json").read_text()) for name in ("gemma", "out"))
    assert after == before | {"torch_dtype": "float32"}
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        assert (root / "out" / name).read_bytes() == (root / "gemma" / name).read_bytes()
    before, after = (load_file(root / name / "model.safetensors") for name in ("gemma", "out"))
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert after[name].dtype == np.float32 and after[name].shape == array.shape
        assert np.abs(after[name] - array.astype(np.float32)).max() > 0, name
    card = (root / "out" / "README.md").read_text()
    assert "estimator garl, q = 0.75, warm start" in card and "| test | 4 |" in card
    assert "Checkpoint of step 3 of 3, in float32" in card


def test_transformers_loads_the_export_and_says_the_same(walked):
    torch = pytest.importorskip("torch", reason="needs the extra parity: torch and transformers")
    transformers = pytest.importorskip("transformers", reason="needs the extra parity: torch and transformers")
    folder = walked[0] / "out"
    tokenizer, theirs = pretrained_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    arch, params = load(folder)
    decoder = bind(arch, params)
    config = load_config(f"{ROOT / 'configs' / 'jsonl.py'}:start=warm,model={folder}")
    config.task.path = str(walked[0] / "task")
    rationales = [row["rationale"] for row in lines(walked[0] / "greedy" / "samples.jsonl")]
    examples = load_task(name_end_of_think(config.task, tokenizer), 0).splits["test"].examples
    assert len(examples) == len(rationales) == 4
    for example, rationale in zip(examples, rationales, strict=True):
        ids = tokenizer.encode_prompt(example.prompt)
        messages = [dict(message) for message in example.prompt]
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(ids, special=True) == text
        same = ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert same != example.id.endswith("spelt")  # they read what a user spells as control tokens
        assert len(ids) > arch.window
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        hidden, _ = decoder.prefill(jnp.array([ids]))
        found = output_logits(hidden[0], decoder.output_head(), arch.logit_form)
        assert expected.std() > 0.3
        np.testing.assert_allclose(found, expected, atol=2e-4)
        options = transformers.GenerationConfig(
            max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=list(tokenizer.stop_ids)
        )
        greedy = model.generate(torch.tensor([ids]), generation_config=options)[0, len(ids) :].tolist()
        assert rationale == theirs.decode([*greedy, *tokenizer.encode("Final answer:")])


def test_messages_that_the_template_refuses_are_named(walked, tmp_path, capfd):
    write_task(tmp_path / "task")
    with (tmp_path / "task" / "train.jsonl").open("a") as file:
        messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "where?"}]
        file.write(json.dumps({"id": "ninth", "prompt": messages, "answer": "there"}) + "\n")
    config = f"--config={ROOT / 'configs' / 'jsonl.py'}:start=chat,model={walked[0] / 'gemma'}"
    for program in (tasks, train):
        told = refused(capfd, program, config, f"--config.task.path={tmp_path / 'task'}")
        assert told.startswith("example 'ninth': ")
        assert told.endswith(
            "its chat template cannot render a prompt (System role not supported); change its messages, or leave it out"
        )


def test_a_base_model_whose_sequences_end_otherwise_than_its_turns(tmp_path, capsys):
    """As Qwen's base models are published: <|endoftext|> under a template whose turns end by <|im_end|>."""
    model = tmp_path / "qwen-base"
    model.mkdir()
    write_model(model, added=(), config={"eos_token": "<|endoftext|>", "chat_template": TEMPLATE})
    end = pretrained_tokenizer(model).stop_ids[0]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "max_new_tokens": 2048}))
    write_folder(model)
    write_task(tmp_path / "task")
    config = f"--config={ROOT / 'configs' / 'jsonl.py'}:q=0.75,start=chat,model={model}"
    settings = (config, f"--config.task.path={tmp_path / 'task'}", *FEW, "--config.task.max_prompt=64")
    steps = ("--config.train.steps=1", "--config.evaluate.every=1", f"--workdir={tmp_path / 'run'}")
    assert call(train, *settings, *steps) is None
    told = capsys.readouterr().out
    assert told.count("tokenizer_config.json ends a sequence with <|endoftext|>") == 1
    assert "and <|im_end|> is scored after the gold answer" in told
    markers = json.loads((tmp_path / "run" / "markers.json").read_text())
    assert markers["end_of_answer"]["text"] == "<|im_end|>" and markers["end_of_think"]["text"] == "Final answer:"
    assert markers["stop_ids"]["text"] == "<|im_end|><|endoftext|>"
    rows = lines(tmp_path / "run" / "rollouts" / "step_000000.jsonl")
    assert len(rows) == 2 * 6 and all(np.isfinite(row["log_w"]) for row in rows)
    assert all(row["prompt"].startswith("<|im_start|>user\n") and "Think step" not in row["prompt"] for row in rows)
    (step,) = [record for record in lines(tmp_path / "run" / "metrics.jsonl") if "train/loss" in record]
    assert np.isfinite(step["train/loss"]) and step["train/grad_norm"] > 0
