"""The command that evaluates: it reports of a checkpoint what the run reported, and refuses wrong arguments."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.support.backends import only_on_cpu
from tests.support.command_line import call, refused
from tests.support.model_folders import edit_json, write_folder
from tests.support.paths import ROOT
from tests.support.runs import SMALL
from tests.support.tokenizer_files import write_model
from tsallis_rl.config.command_line import load_config
from tsallis_rl.evaluate import main
from tsallis_rl.runs.errors import UserError
from tsallis_rl.training.loop import train
from tsallis_rl.training.regeneration import regenerate

JSONL = ROOT / "configs" / "jsonl.py"
FEW = {
    "task.max_prompt": 64, "task.max_answer": 6, "task.metric": "substring", "rollouts.max_rationale": 5,
    "rollouts.num_rollouts": 3, "rollouts.unclosed": "close", "evaluate.every": 1, "evaluate.samples": 4,
    "evaluate.prompts": 4, "train.steps": 2, "train.prompts": 2, "train.save_rollouts_every": 0,
}  # fmt: skip


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A run of two steps from a pretrained folder, on a task of which a random text gives many answers."""
    root = tmp_path_factory.mktemp("evaluate")
    examples = [{"prompt": f"the cat {i} sat", "answer": "aeiou"[i % 5]} for i in range(100)]
    (root / "task.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    (root / "model").mkdir()
    write_model(root / "model")
    write_folder(root / "model")
    config = load_config(f"{JSONL}:start=chat,model={root / 'model'}")
    more = {"task.path": str(root / "task.jsonl"), "rollouts.temperature": 0.5, "evaluate.kl": True}
    config.update_from_flattened_dict(FEW | more)
    train(config, root / "run")
    return root


def evaluated(files, *arguments, name="out"):
    assert call(main, f"--run={files / 'run'}", f"--out={files / name}", *arguments) is None
    return files / name


def test_a_runs_best_checkpoint_has_the_figures_that_the_run_ended_with(files, capsys):
    out = evaluated(files, "--k=4,1,2")
    told = capsys.readouterr().out
    (after,) = [r for r in lines(files / "run" / "metrics.jsonl") if "eval/test/checkpoint_step" in r]
    found = summary(out)
    assert found["step"] == after["eval/test/checkpoint_step"] and found["split"] == "test"
    figures = {name: figure["value"] for name, figure in found["figures"].items()}
    for name in ("pass@1", "pass@4", "maj@4", "mean_exact", "log_p_hat", "rationale_gain"):
        assert figures[name] == pytest.approx(after[f"eval/test/{name}"], rel=1e-5), name
    assert 0 < figures["pass@1"] < figures["pass@2"] < figures["pass@4"] < 1
    assert figures["maj@1"] == pytest.approx(figures["pass@1"])
    for figure in found["figures"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]
    for text in (f"p@2 {figures['pass@2']:>29.3f}", "m@4", "log P̂ ", str(out / "page.html"), "4 sampled answers each"):
        assert text in told, told

    about_answers = {
        name: after[f"eval/test/{name}"] for name in ("answer_length", "answer_truncated", "grader_errors")
    }
    assert found["answers"] == pytest.approx(about_answers) and about_answers["grader_errors"] == 0
    assert f"{about_answers['answer_truncated']:.1%} cut off before an end of sequence" in told
    of_rationales = found["rationales"]
    assert of_rationales.pop("kl_to_start") > 0  # which no test of a run measures
    assert of_rationales == pytest.approx({name: after[f"eval/test/{name}"] for name in of_rationales}, rel=1e-5)
    assert f"{of_rationales['unique_rationales']:.1%} differ from every earlier one" in told
    assert f"it is above 0 for {of_rationales['rationale_helps']:.1%} of the prompts" in told

    samples, examples = lines(out / "samples.jsonl"), lines(out / "examples.jsonl")
    assert len(samples) == 4 * len(examples) == 4 * found["examples"]
    assert np.mean([row["correct"] for row in samples]) == pytest.approx(figures["pass@1"])
    log_w = np.array([row["log_w"] for row in samples]).reshape(-1, 4)
    np.testing.assert_allclose(
        np.logaddexp.reduce(log_w, axis=1) - np.log(4), [row["log_p_hat"] for row in examples], rtol=1e-5
    )
    assert all(row["prompt"].endswith("<|im_start|>assistant\n") for row in examples)  # special tokens are visible
    shown = [row["rationale"] + row["sampled"] for row in samples]
    assert any(special in text for text in shown for special in ("<|im_end|>", "<|im_start|>", "<|endoftext|>"))
    assert not any("<|" in row["answer"] for row in samples)  # what is graded has none
    page = (out / "page.html").read_text()
    assert f"p@2 {figures['pass@2']:>29.3f}" in page and "as sampled" in page and page.count("<script") == 2


def test_more_answers_another_step_another_split_a_subset_and_another_sampling(files, capsys):
    out = evaluated(
        files, "--k=6", "--step=2", "--split=train", "--examples=3", "--config.evaluate.top_p=0.9", name="other"
    )
    told = capsys.readouterr().out
    assert "--k=6: 6 answers a prompt are sampled, not config.evaluate.samples=4" in told
    assert "temperature 1, top_p 0.9;" in told and "cross-entropies of that sampling" in told
    assert "log P̂ is over rationales sampled in that way" in told
    found = summary(out)
    assert [found[name] for name in ("step", "split", "examples", "samples", "top_p", "temperature")] == [
        2, "train", 3, 6, 0.9, 1.0,
    ]  # fmt: skip
    assert {"pass@6", "maj@6"} < found["figures"].keys() and found["of"] > 3
    greedy = evaluated(files, "--config.evaluate.greedy", "--step=latest", name="greedy")
    assert summary(greedy)["samples"] == 1 and summary(greedy)["step"] == 2
    seven = evaluated(files, "--config.evaluate.greedy", "--step=latest", "--config.seed=7", name="seven")
    assert lines(greedy / "samples.jsonl") == lines(seven / "samples.jsonl")


def test_a_model_before_training_says_what_the_runs_first_step_says(files, monkeypatch):
    monkeypatch.chdir(files)
    flags = [f"--config.{name}={value}" for name, value in FEW.items()]
    config = f"--config={JSONL}:start=chat,model={files / 'model'}"
    assert call(main, config, *flags, f"--config.task.path={files / 'task.jsonl'}", "--split=validation") is None
    out = files / "evaluations" / "model" / "jsonl-chat-validation-n4"
    assert summary(out)["run"] is None
    before = next(r for r in lines(files / "run" / "metrics.jsonl") if "eval/validation/pass@1" in r)
    for name in ("pass@1", "pass@4", "maj@4", "log_p_hat"):
        assert summary(out)["figures"][name]["value"] == pytest.approx(before[f"eval/validation/{name}"], rel=1e-5)
    told = lines(files / "run" / "evaluations" / "validation_000000.jsonl")
    texts = [{name: row[name] for name in ("example", "rollout", "rationale", "sampled", "grades")} for row in told]
    found = {(row["example"], row["rollout"]): row for row in lines(out / "samples.jsonl")}
    assert len(texts) == 8 * 4
    assert all(row.items() <= found[row["example"], row["rollout"]].items() for row in texts)


def test_the_kl_to_a_runs_start_is_that_of_the_run_itself(files, capsys):
    out = evaluated(files, "--split=validation", "--step=2", name="kl")
    (then,) = [r for r in lines(files / "run" / "metrics.jsonl") if r["step"] == 2 and "eval/validation/pass@1" in r]
    kl = summary(out)["rationales"]["kl_to_start"]
    assert kl == pytest.approx(then["eval/validation/kl_to_start"], rel=1e-4) and kl > 0
    assert f"KL to the run's start: {kl:.3f} nats a rationale\n" in capsys.readouterr().out
    colder = evaluated(files, "--split=validation", "--config.evaluate.temperature=0.5", name="colder")
    assert "NOTE: the KL to the run's start is not measured: that takes rationales drawn" in capsys.readouterr().out
    assert "kl_to_start" not in summary(colder)["rationales"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--config.model.lora_rank=2"], "config.model.lora_rank=2 (the run: 0)"),
        (["--config.model.size={files}/other"], "config.model.size='{files}/other' (the run: '{files}/model')"),
        (["--config.model.lora_targets=q_proj", "--config.model.lora_rank=1"], "config.model.lora_targets=('q_proj',)"),
    ],
)
def test_a_run_is_not_evaluated_as_another_model(files, capfd, flags, told):
    shutil.copytree(files / "model", files / "other", dirs_exist_ok=True)
    edit_json(files / "other" / "config.json", lambda config: config.update(rope_theta=7.0))
    flags = [flag.format(files=files) for flag in flags]
    said = refused(capfd, main, f"--run={files / 'run'}", f"--out={files / 'none'}", *flags)
    assert f"--run: {files / 'run'} holds another model than is set up here (inputs.json): the model's config" in said
    assert told.format(files=files) in said
    assert not (files / "none").exists()


def test_a_run_whose_inputs_are_not_kept_is_not_read_into_other_shapes(files, capfd, tmp_path):
    shutil.copytree(files / "run", tmp_path / "run")
    (tmp_path / "run" / "inputs.json").unlink()
    capfd.readouterr()
    assert call(main, f"--run={tmp_path / 'run'}", "--config.model.lora_rank=2") == 2
    warning, said = capfd.readouterr().err.splitlines()
    assert warning.startswith(f"WARNING: {tmp_path / 'run'} keeps no inputs.json, as the version that began")
    assert "is the checkpoint of another model: params/layers/" in said and "has shape none there and [" in said


def test_a_run_from_before_these_settings_has_them_at_their_defaults(files):
    settings = json.loads((files / "run" / "config.json").read_text())
    kept = dict(settings["evaluate"])
    settings["evaluate"] = {name: kept[name] for name in ("every", "samples", "prompts")}
    (files / "run" / "config.json").write_text(json.dumps(settings))
    assert call(main, f"--run={files / 'run'}", "--examples=2") is None
    settings["evaluate"] = kept
    (files / "run" / "config.json").write_text(json.dumps(settings))
    (out,) = (files / "run" / "evaluations").glob("test-step*-n4-2examples")
    assert summary(out)["temperature"] == 1.0


@pytest.mark.processes
@only_on_cpu
def test_a_run_of_other_devices_is_evaluated_on_those_that_are_here(files):
    """Four devices, a run whose mesh was of eight; batches of four prompts, two at once, made to be shared by four."""
    one = evaluated(files, "--examples=6", name="one device")
    settings = (files / "run" / "config.json").read_text()
    (files / "elsewhere").mkdir()
    (files / "elsewhere" / "config.json").write_text(settings.replace('"fsdp": 1', '"fsdp": 8'))
    (files / "elsewhere" / "checkpoints").symlink_to(files / "run" / "checkpoints")
    done = subprocess.run(
        [
            sys.executable, "-m", "tsallis_rl.evaluate", f"--run={files / 'elsewhere'}", "--examples=6",
            "--config.rollouts.at_once=2",
        ],
        cwd=ROOT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the run's config.mesh is of other devices than the 4 here" in done.stdout
    (four,) = (files / "elsewhere" / "evaluations").iterdir()
    texts = [[(row["example"], row["sampled"]) for row in lines(folder / "samples.jsonl")] for folder in (one, four)]
    assert texts[0] == texts[1] and len(texts[0]) == 6 * 4


def test_answers_without_a_rationale_follow_the_prompt(files, capsys):
    out = evaluated(files, "--examples=4", "--config.evaluate.rationale=none", name="bare")
    assert "4 sampled answers each without a rationale" in capsys.readouterr().out
    rationales = {row["rationale"] for row in lines(out / "samples.jsonl")}
    assert summary(out)["rationale"] == "none" and len(rationales) == 1  # end-of-think alone
    assert summary(out)["rationales"] == {} and "rationale_gain" not in summary(out)["figures"]
    sampled = evaluated(files, "--examples=4", name="reasoned")
    assert summary(sampled)["rationale"] == "sampled"
    assert len({row["rationale"] for row in lines(sampled / "samples.jsonl")}) > 1


def test_a_base_model_is_trained_for_its_evaluation_where_the_cache_has_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    few = {**SMALL, "task.test_examples": 3, "evaluate.samples": 2}
    flags = [f"--config.{name}={value}" for name, value in few.items()]
    call(main, f"--config={ROOT / 'configs' / 'hops.py'}", f"--out={tmp_path / 'out'}", *flags)
    assert summary(tmp_path / "out")["examples"] == 3 and "base model: " not in capsys.readouterr().out


def test_other_markers_than_the_runs_are_told_and_draw_no_rollout_again(files, capsys):
    evaluated(files, "--examples=2", "--config.task.joint= = ", name="joint")
    told = capsys.readouterr().out
    assert "the run began with joint = " in told and "now; the latter is evaluated" in told
    evaluated(files, "--examples=2", name="same")
    assert "the run began with" not in capsys.readouterr().out
    kept = (files / "run" / "markers.json").read_text()
    (files / "run" / "markers.json").write_text(kept.replace("</think>", "</thought>"))
    try:
        with pytest.raises(UserError, match=r"the run began with end_of_think = .*, or the rollout is another one"):
            regenerate(files / "run", step=0, example=0, rollout=0)
    finally:
        (files / "run" / "markers.json").write_text(kept)


def test_an_evaluation_that_fails_leaves_no_folder(files, tmp_path, capfd):
    flags = [f"--run={files / 'run'}", f"--out={tmp_path / 'out'}", f"--config.task.path={tmp_path / 'none.jsonl'}"]
    assert "none.jsonl" in refused(capfd, main, *flags) and not list(tmp_path.iterdir())


def test_what_is_given_wrongly_is_one_sentence(files, capfd):
    run = f"--run={files / 'run'}"
    for arguments, sentence in {
        (): "give either --run=FOLDER of a run or --config=FILE, one of the two",
        (run, f"--config={JSONL}"): "give either --run=FOLDER of a run or --config=FILE",
        (f"--run={files}",): f"--run: {files} is not the folder of a run",
        (f"--config={JSONL}", "--step=3"): "--step=3: it belongs to --run",
        (run, "--step=newest"): "--step=newest: choose best, latest or the number of a step",
        (run, "--step=1000"): "has sound checkpoints of [",
        (run, "--k=0"): "--k=0: give numbers from 1 up, as in --k=1,4,16",
        (run, "--k=1,x"): "--k=1,x: give numbers from 1 up",
        (run, "--config.evaluate.greedy", "--k=1,4"): "--k=4: greedy samples of an example are all the same",
        (
            run,
            "--config.evaluate.temprature=1",
        ): "--config.evaluate.temprature: the config has no such field",
        (run, "--config.evaluate.top_p=0"): "config.evaluate.top_p=0.0: choose a number above 0",
        (run, f"--out={files / 'task.jsonl'}"): "task.jsonl is a file, where a folder is needed); move",
        (run, f"--out={files / 'task.jsonl' / 'below'}"): f"below cannot be written ({files / 'task.jsonl'} is a file",
        (f"--config={JSONL}", "--config.evaluate.kl"): "config.evaluate.kl=True: a model before training has no start",
        (run, "--config.mesh.fsdp=7"): "config.mesh: data × fsdp × tensor = 0 × 7 × 1 does not make the 1 device(s)",
    }.items():
        assert sentence in refused(capfd, main, *arguments), arguments
