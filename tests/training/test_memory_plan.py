"""The memory plan of a run, compared with what XLA reports of the compiled programs, and with published sizes."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import pytest

from tests.support.backends import only_on_cpu
from tests.support.command_line import call
from tests.support.model_folders import write_folder
from tests.support.paths import ROOT
from tests.support.plans import ARCH, settings
from tests.support.tokenizer_files import write_model
from tsallis_rl.main import main
from tsallis_rl.models import lora, parameter_shapes
from tsallis_rl.objectives import Coefficients
from tsallis_rl.runs.errors import UserError
from tsallis_rl.sampler.record import record_shapes
from tsallis_rl.training.checks import check
from tsallis_rl.training.learner import update
from tsallis_rl.training.memory_plan import GIB, peak, plan, remedies, report
from tsallis_rl.training.optimizer import make_optimizer, start_state
from tsallis_rl.training.packing import Slices, one_row_each

MIB = 1 << 20


@only_on_cpu
@pytest.mark.parametrize(
    ("remat", "micro_batch"), [("none", 0), ("none", 2), ("matmuls", 0), ("attention", 0), ("layers", 0)]
)
def test_the_update_takes_what_the_compiled_program_takes(remat, micro_batch):
    arch = dataclasses.replace(ARCH, remat=remat)
    config = settings(train__micro_batch=micro_batch)
    optimizer = make_optimizer(config.optimizer, 10)
    params = parameter_shapes(arch)
    state = jax.eval_shape(functools.partial(start_state, optimizer=optimizer), params)
    rolled = record_shapes(4, 8, prompt_tokens=64, tokens=64 + 1 + 8)
    ones = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    micro_batches = 4 // (micro_batch or 4)
    step = jax.jit(
        functools.partial(update, arch=arch, optimizer=optimizer, slices=Slices(micro_batches)), donate_argnums=0
    )
    rows = jax.eval_shape(one_row_each, rolled, Coefficients(ones, ones))
    memory = step.lower(state, rows).compile().memory_analysis()
    planned = plan(config, arch, 1, 1)["update"]
    held = planned["parameters"] + planned["optimiser"]
    assert abs(held - memory.output_size_in_bytes) < 0.01 * MIB
    assert abs((sum(planned.values()) - held) / memory.temp_size_in_bytes - 1) < 0.2


@pytest.mark.parametrize("rank", [0, 4])
def test_references_are_counted_in_the_dtype_in_which_they_are_held(rank):
    arch = dataclasses.replace(ARCH, dtype="bfloat16", lora_rank=rank)
    both = {"regularizer__kl": 0.1, "regularizer__reference": "average", "evaluate__kl": True}
    state = parameter_shapes(arch)
    size = sum(leaf.size for leaf in jax.tree.leaves(lora.trained(state)))
    for changes, bytes_each in ({}, 0), ({"evaluate__kl": True}, 2), (both, 2 + 4):
        phases = plan(settings(**changes), arch, 4, 1)
        assert [parts.get("reference parameters", 0) for parts in phases.values()] == [bytes_each * size] * 2


def test_parameters_optimiser_and_caches_have_their_sizes():
    params = sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(ARCH)))
    phases = plan(settings(), ARCH, 4, 1)
    assert phases["rollouts"]["parameters"] == 4 * params
    assert phases["rollouts"]["optimiser"] == 8 * params + 8  # two moments, two counts
    assert (
        phases["rollouts"]["cache of the prompts"] == 4 * 64 * 4 * 2 * 2 * 32 * 4
    )  # P T0, layers, k and v, K h, bytes
    assert phases["rollouts"]["cache of the rollouts"] == 4 * 8 * (64 + 1 + 3 + 8) * 4 * 2 * 2 * 32 * 4
    halves = plan(settings(model__dtype="bfloat16"), dataclasses.replace(ARCH, dtype="bfloat16"), 4, 1)
    assert halves["rollouts"]["cache of the rollouts"] * 2 == phases["rollouts"]["cache of the rollouts"]
    assert halves["rollouts"]["parameters cast for computing"] == 2 * params


def test_what_is_split_over_a_mesh_takes_its_share():
    alone = plan(settings(), ARCH, 1, 1)
    data = plan(settings(), ARCH, 1, 4)
    assert data["update"]["parameters"] == alone["update"]["parameters"]
    assert data["rollouts"]["cache of the rollouts"] * 4 == alone["rollouts"]["cache of the rollouts"]
    fsdp = plan(settings(mesh__fsdp=4), ARCH, 1, 4)
    assert fsdp["update"]["optimiser"] < 0.26 * alone["update"]["optimiser"]
    assert fsdp["rollouts"]["parameters as decoding reads them"] == alone["rollouts"]["parameters"]
    tensor = plan(settings(mesh__tensor=2), ARCH, 1, 2)
    assert tensor["rollouts"]["cache of the rollouts"] * 2 == alone["rollouts"]["cache of the rollouts"]
    assert tensor["update"]["activations and logits"] < alone["update"]["activations and logits"]
    with pytest.raises(UserError, match=r"config\.mesh: data × fsdp × tensor = 1 × 3 × 1 does not make the 4 device"):
        plan(settings(mesh__fsdp=3), ARCH, 1, 4)


def test_adapters_leave_the_optimiser_next_to_nothing():
    whole, adapted = (plan(settings(), dataclasses.replace(ARCH, lora_rank=r), 1, 1)["update"] for r in (0, 2))
    assert adapted["optimiser"] + adapted["gradients"] < 0.1 * (whole["optimiser"] + whole["gradients"])


def test_a_plan_keeps_the_rank_that_an_adapter_brings(tmp_path):
    config = settings(model__size=str(tmp_path), model__adapter="a folder of peft")
    adapted = dataclasses.replace(ARCH, lora_rank=2)
    chosen, lowest = remedies(config, adapted, 1, 1, 1)
    assert "model.lora_rank" not in chosen and chosen["model.remat"] == "layers"
    config.update_from_flattened_dict(chosen)
    final = dataclasses.replace(adapted, dtype=config.model.dtype, remat=config.model.remat)
    assert lowest == peak(plan(config, final, 1, 1))


def test_remedies_name_the_cheapest_settings_that_fit():
    config = settings(evaluate__prompts=2)
    needed = peak(plan(config, ARCH, 1, 1))
    assert remedies(config, ARCH, 1, 1, needed) == ({}, needed)
    chosen, lowest = remedies(config, ARCH, 1, 1, needed // 2)
    assert chosen == {"train.micro_batch": 1} and lowest <= needed // 2
    config.train.micro_batch = 1
    assert peak(plan(config, ARCH, 1, 1)) == lowest
    # What helps the rollouts is found while it is the update that needs most.
    both = settings(evaluate__prompts=16, evaluate__samples=16)
    phases = {phase: sum(parts.values()) for phase, parts in plan(both, ARCH, 1, 1).items()}
    assert phases["rollouts"] < phases["update"]
    assert "evaluate.prompts" in remedies(both, ARCH, 1, 1, phases["rollouts"] // 2)[0]


def test_a_run_accepts_the_settings_that_a_plan_proposes():
    config = settings(evaluate__prompts=4, train__micro_batch=4, rollouts__at_once=4, mesh__data=2)
    chosen, lowest = remedies(config, ARCH, 1, 2, 1)
    assert lowest > 1
    config.update_from_flattened_dict(chosen)
    check(config, 2)
    assert config.train.prompts == config.train.micro_batch == config.mesh.fsdp == 2


def test_plan_of_qwen3_0_6b_needs_no_weights_and_says_what_a_run_would_do(tmp_path, capfd):
    write_folder(
        tmp_path / "qwen", tensors=False, vocab_size=151_936, hidden_size=1024, intermediate_size=3072,
        num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        max_position_embeddings=40_960, tie_word_embeddings=True,
    )  # fmt: skip
    write_model(tmp_path / "qwen")
    (tmp_path / "task.jsonl").write_text("\n".join(json.dumps({"prompt": f"{i}", "answer": "1"}) for i in range(40)))
    status = call(
        main, f"--config={ROOT / 'configs' / 'jsonl.py'}:model={tmp_path / 'qwen'}",
        f"--config.task.path={tmp_path / 'task.jsonl'}", "--config.rollouts.max_rationale=1024", "--plan",
        "--devices=8", "--memory=80",
    )  # fmt: skip
    assert not status
    told = capfd.readouterr().out
    assert "GiB on each of 8 device(s)" in told
    parameters = 596_049_920  # of the published model
    assert f"update    parameters                        {4 * parameters / GIB:9.3f}" in told
    assert (
        "an update is computed 8 prompts × 16 rollouts (remat matmuls) at a time, rollouts of 64 prompts are sampled "
        "at a time, as a run on such devices would choose\n"
    ) in told
    assert told.endswith(": it fits\n")


def test_a_plan_that_does_not_fit_says_what_to_lower():
    config = settings()
    limit = peak(plan(config, ARCH, 1, 1)) // 2
    assert "it does not fit\nwith --config.train.micro_batch=1 it needs" in report(config, ARCH, 1, 1, limit)
    assert "it does not fit, nor with --config.rollouts.at_once=1 --config.train.micro_batch=1" in report(
        config, ARCH, 1, 1, 1
    )
