"""The notebooks: what they compute when shortened, and that the outputs they store are those of their code."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError

from notebooks.execute import FOLDER, address, code, digest, execute, opening, set_address
from tsallis_rl.config.files import load_config
from tsallis_rl.models import SIZES, Architecture
from tsallis_rl.models.backends import BACKENDS, KINDS
from tsallis_rl.runs.devices import Device
from tsallis_rl.training.memory_plan import GIB, peak, plan

FIGURES = {"cold_start": 1, "continuum": 7, "estimators": 6, "your_task": 1}


def run(name: str, where: Path, facts: Sequence[str], before: str = "", **parameters: Any) -> dict[str, Any]:
    """Runs a notebook, then evaluates expressions in its kernel."""
    values = ", ".join(f"{fact!r}: {fact}" for fact in facts)
    last = f"{before}\nimport json, numpy\nprint(json.dumps({{{values}}}, default=lambda x: numpy.asarray(x).tolist()))"
    done = execute(FOLDER / f"{name}.ipynb", where, parameters, last)
    return json.loads(done.cells[-1].outputs[-1].text)


@pytest.mark.parametrize("name", FIGURES)
def test_kept_outputs_are_whole_and_of_the_code_that_stands_there(name):
    file = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(file, as_version=4)
    assert notebook.metadata.get("executed") == digest(notebook), f"run python notebooks/execute.py {name}"
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[name]
    assert not any(place in file.read_text() for place in ("/root/", "/home/", "/tmp/", "/work/"))
    assert file.stat().st_size < 1.5e6


def test_every_notebook_is_tested_and_installs_in_its_first_cell():
    assert sorted(FIGURES) == sorted(file.stem for file in FOLDER.glob("*.ipynb"))
    first = {code(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))[0].source for name in FIGURES}
    assert len(first) == 1
    assert 'REPOSITORY = "' in (cell := first.pop()) and '%run "{checkout}/notebooks/install.py"' in cell


@pytest.mark.parametrize("name", ("cold_start", "your_task"))
def test_a_cell_that_is_stopped_signals_its_run_once(name):
    """Jupyter interrupts the kernel's whole session, and a run that gets two signals ends without saving."""
    source = "\n".join(cell.source for cell in code(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)))
    assert source.count("subprocess.Popen(") == source.count("start_new_session=True") == 1


@pytest.mark.parametrize("name", FIGURES)
def test_the_address_is_that_of_the_citation_and_is_written_in_one_go(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    changed = copy.deepcopy(notebook)
    set_address(changed, name, address())
    assert changed == notebook, "run python notebooks/execute.py --address"
    set_address(changed, name, "https://github.com/someone/a-fork.git")
    link = f"https://colab.research.google.com/github/someone/a-fork/blob/main/notebooks/{name}.ipynb"
    assert f"]({link})" in changed.cells[0].source
    assert '\nREPOSITORY = "https://github.com/someone/a-fork.git"  # ' in code(changed)[0].source
    assert digest(changed) == digest(notebook)  # outputs stay those of the code
    assert "colab.research" not in opening(name, "https://elsewhere.org/someone/a-fork")


# Kind, GiB that JAX takes (three quarters of the memory), compute capability.
T4 = Device("gpu", "Tesla T4", 1, 11.0, 7.5)
L4 = Device("gpu", "NVIDIA L4", 1, 16.6, 8.9)
A100 = Device("gpu", "NVIDIA A100-SXM4-40GB", 1, 29.6, 8.0)
SMOLLM2 = Architecture(
    vocab_size=49_152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, ffn=1536, context=8192, qk_norm=False
)


def settings(device, size):
    """The settings that your_task chooses for a model of so many GB, in a config."""
    cells = code(nbformat.read(FOLDER / "your_task.ipynb", as_version=4))
    (cell,) = [cell for cell in cells if "settings" in cell.metadata.get("tags", [])]
    scope: dict[str, Any] = {}
    exec(cell.source, scope)
    config = load_config("jsonl")
    config.update_from_flattened_dict(scope["settings"](device, size, tiny=False))
    return config


@pytest.mark.parametrize(
    ("device", "dtype", "prompts"), [(T4, "float32", 8), (L4, "bfloat16", 16), (A100, "bfloat16", 32)]
)
def test_your_task_computes_what_suits_the_gpu(device, dtype, prompts):
    config = settings(device, 0.27)
    assert (config.model.dtype, config.train.prompts, config.model.lora_rank) == (dtype, prompts, 0)
    assert settings(device, 1.5).model.lora_rank == 16


@pytest.mark.parametrize(("arch", "size"), [(SMOLLM2, 0.27), (SIZES["qwen3-0.6b"], 1.5)])
def test_your_task_fits_a_t4(arch, size):
    """By the count of --plan, and the largest chunk of logits that GPUs take."""
    config = settings(T4, size)
    changes = {name: config.model[name] for name in ("dtype", "lora_rank", "remat")}
    phases = plan(config, dataclasses.replace(arch, **changes), fixed=4, devices=1)
    assert peak(phases) + 12 * BACKENDS["gpu"].chunk_elements < 0.9 * T4.gib * GIB


def test_attention_takes_no_kernel_on_the_gpus_of_colab():
    assert not any(device.kind.startswith(kind) for device in (T4, L4, A100) for kind in KINDS)


@pytest.mark.processes
def test_continuum_escapes_at_the_times_of_the_closed_form_and_its_sliders_draw(tmp_path):
    """∫ du/(u²(1−u)²) = 2 ln(u/(1−u)) − 1/u + 1/(1−u), and ∫ du/(u(1−u)²) = ln(u/(1−u)) + 1/(1−u)."""
    facts = ("escape[0.0][0]", "escape[1.0][0]", "size[0.75][0] / size[0.0][0]", "shares[1.0]", "found[2]", "numbers")
    slide = "sliders.children[0].value = 0.0; before = sliders.result; sliders.children[1].value = -2.0"
    got = run("continuum", tmp_path, (*facts, "before", "sliders.result"), before=slide)
    logit = np.log(1e-6 / (1 - 1e-6))
    assert got["escape[0.0][0]"] == pytest.approx(1e6 - 1 / (1 - 1e-6) - 2 * logit, rel=1e-5)
    assert got["escape[1.0][0]"] == pytest.approx(2 - 1 / (1 - 1e-6) - logit, rel=1e-5)
    assert got["size[0.75][0] / size[0.0][0]"] == pytest.approx(10**4.5, rel=1e-6)
    assert got["shares[1.0]"] == pytest.approx([0.2] * 5)
    alpha = np.array([0.45, 0.3, 0.15, 0.1])
    assert got["found[2]"] == pytest.approx(alpha**2 / (alpha**2).sum(), abs=1e-6)
    assert got["numbers"]["contamination"] == pytest.approx(0.25 ** (4 / 3) / (1 + 0.25 ** (4 / 3)), rel=1e-6)
    assert got["numbers"]["loss"] == pytest.approx(4 * (1 - 10**-1))
    for result, p0 in (("before", 1e-4), ("sliders.result", 1e-2)):
        time = 1 / p0 - 1 / (1 - p0) - 2 * np.log(p0 / (1 - p0))
        assert got[result] == {
            "loss": pytest.approx(1 - p0),
            "time": pytest.approx(time, rel=1e-5),
            "contamination": 0.0,
        }


@pytest.mark.processes
def test_estimators_have_the_bias_variance_and_mean_that_the_text_says(tmp_path):
    facts = ("P", "measured", "bias", "along_q", "z", "variance", "hard")
    got = run("estimators", tmp_path, facts, GROUP_SIZES=(2, 8), DRAWS=1000)
    assert got["P"] == pytest.approx(0.1 * 0.8 + 0.54 * 0.03 + 0.36 * 0.005)
    w = np.array([0.8, *[0.03] * 4, *[0.005] * 3])
    assert got["measured"]["effective_sample_size"] == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-5)
    assert got["measured"]["negative_share"] == 7 / 8
    assert got["bias"]["leave-one-out"] == pytest.approx(got["bias"]["plug-in"], rel=1e-9)
    assert got["bias"]["plug-in"][0] > got["bias"]["plug-in"][1] > 2 * got["bias"]["jackknife"][1]
    assert all(bias[0] < 1e-12 for bias in got["along_q"].values())
    assert np.abs(got["z"]).max() < 4
    plug_in, loo, paft = (np.array(got["variance"][f"{n}"]) for n in ("GARL plug-in", "GARL leave-one-out", "PAFT"))
    assert (loo < plug_in).all() and (plug_in < paft * 1.1).all() and paft.sum() > plug_in.sum()
    assert got["hard"] > plug_in[0]


@pytest.mark.slow
def test_cold_start_is_left_at_q_1_and_not_at_q_0(tmp_path, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    small = {
        "base.steps": 300, "base.batch": 32, "task.validation_examples": 8, "task.test_examples": 8,
        "rollouts.num_rollouts": 8, "train.prompts": 8, "train.save_rollouts_every": 10, "evaluate.samples": 4,
    }  # fmt: skip
    gain = "{q: [r['eval/test/log_p_hat'] for r in records[q] if 'eval/test/log_p_hat' in r] for q in QS}"
    got = run("cold_start", tmp_path, ("first", gain, "updates"), QS=(0, 1), STEPS=30, SETTINGS=small)
    assert got["updates"] == 60
    assert got["first"]["0"]["train/max_advantage"] < 1e-6 < 0.1 < got["first"]["1"]["train/max_advantage"]
    assert got["first"]["0"]["train/below_eps"] > 0.95 > got["first"]["1"]["train/below_eps"]
    (stalled, stays), (start, leaves) = (got[gain][q] for q in ("0", "1"))
    assert stalled == pytest.approx(start)
    assert stays == pytest.approx(stalled, abs=0.5)
    assert leaves > start + 5


@pytest.mark.slow
def test_your_task_raises_the_answers_probability_and_exports_what_it_trained(tmp_path):
    log_p = "[r['eval/test/log_p_hat'] for r in records if 'eval/test/log_p_hat' in r]"
    got = run("your_task", tmp_path, (log_p, "out.name", "sorted(f.name for f in out.iterdir())"), STEPS=30)
    before, after = got[log_p]
    assert after > before + 3
    files = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(got["sorted(f.name for f in out.iterdir())"]) == files
    tensors = [
        (tmp_path / "your_task" / name / "model.safetensors").read_bytes() for name in ("tiny-qwen3", got["out.name"])
    ]
    assert 1.9 < len(tensors[1]) / len(tensors[0]) < 2  # bfloat16 begins, float32 is exported


@pytest.mark.slow
def test_a_mistake_in_your_task_is_one_sentence_and_ends_it(tmp_path):
    with pytest.raises(CellExecutionError, match=r"\nerror: config\.task\.path='no\.jsonl': no such file") as caught:
        run("your_task", tmp_path, (), DATA="no.jsonl")
    assert "Traceback" not in str(caught.value)
