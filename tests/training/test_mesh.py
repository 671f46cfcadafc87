"""Splitting a run over devices changes where arrays are and what devices send to each other, not the numbers."""

import math
import os

import numpy as np
import pytest

from benchmarks.collectives import Collective
from tests.support.mesh_program import ARCH, MAX_RATIONALE, MESHES, RULES, A, M, P
from tests.support.virtual_devices import printed
from tsallis_rl.sampler.token_sampling import SAMPLING_BLOCK

pytestmark = pytest.mark.processes

NAMES = ["×".join(map(str, shape)) for shape in MESHES]
TOKENS = MAX_RATIONALE + 1 + len(RULES.joint) + A  # tokens of a rollout's record


@pytest.fixture(scope="module")
def facts() -> dict:
    return printed("tests.support.mesh_program", 8, os.environ.get("XLA_FLAGS", ""))


@pytest.mark.parametrize("mesh", NAMES)
def test_a_mesh_draws_the_same_rollouts_and_makes_the_same_updates_as_one_device(facts, mesh):
    assert facts[mesh]["other_tokens"] == 0
    # Sums of float32 in another order: 2e-6 was found, which is 16 times the distance between such numbers.
    assert facts[mesh]["log_w_gap"] < 1e-5
    assert facts[mesh]["gradient_gap"] < 1e-5
    # The loss is a sum of hundreds of terms of either sign and up to ten: 8e-6 was found.
    assert facts[mesh]["losses"] == pytest.approx(facts["one"]["losses"], rel=0, abs=5e-5)


@pytest.mark.parametrize("mesh", ["one", *NAMES])
def test_rollouts_that_leave_and_records_that_are_packed_stay_with_their_prompts(facts, mesh):
    assert facts[mesh]["tokens_of_others_that_left"] == 0
    assert facts[mesh]["packed"][:2] == [P, 1]
    assert facts[mesh]["split_over_prompts"] == [True] * 4


@pytest.mark.parametrize("mesh", NAMES)
def test_answers_without_a_rationale_are_scored_in_the_order_of_their_prompts(facts, mesh):
    np.testing.assert_allclose(facts[mesh]["log_p_without"], facts["one"]["log_p_without"], rtol=1e-5)


@pytest.mark.parametrize("mesh", ["one", *NAMES])
def test_no_step_behind_the_first_compiles(facts, mesh):
    assert facts[mesh]["programs"] == [facts[mesh]["programs_of_first"], 1]  # rollouts, update


@pytest.mark.parametrize(("mesh", "parts"), list(zip(NAMES, (1, 4, 4), strict=True)))
def test_a_device_holds_its_share_of_parameters_and_moments(facts, mesh, parts):
    sizes = {name: 4 * math.prod(shape) for name, shape in facts["parameters"].items()}
    norms = sum(size for name, size in sizes.items() if "norm" in name)
    share = norms + (sum(sizes.values()) - norms) // parts
    assert facts[mesh]["held"] == share
    assert facts[mesh]["held_by_optimizer"] == 2 * share + 8  # two moments, two counts


def matrices(facts: dict, tensor: int = 1) -> dict[str, int]:
    """Entries of each parameter that fsdp splits, or of its part on a device where tensor splits it as well."""
    return {name: math.prod(x) // tensor for name, x in facts["parameters"].items() if "norm" not in name}


def pieces(facts: dict, tensor: int = 1) -> set[int]:
    """Sizes that a parameter has, whole or one layer of it; on a device where tensor splits it."""
    whole = matrices(facts, tensor) | {name: math.prod(x) for name, x in facts["parameters"].items() if "norm" in name}
    return set(whole.values()) | {size // ARCH.layers for name, size in whole.items() if "layers" in name}


def of(facts: dict, mesh: str, program: str) -> list[Collective]:
    """What is said in a program, but for single numbers (whether all are done, sums of the loss)."""
    return [found for found in (Collective(*row) for row in facts[mesh][program]) if math.prod(found.shape) > 1]


@pytest.mark.parametrize("mesh", NAMES)
def test_a_cache_is_split_over_all_devices_from_the_first_and_its_layout_stays(facts, mesh):
    assert len(facts[mesh]["devices_of_caches"]) > 1 and set(facts[mesh]["devices_of_caches"]) == {8}
    assert facts[mesh]["layouts"] == facts["one"]["layouts"] == 1


def test_over_data_devices_sample_alone_and_sum_nothing_but_gradients(facts):
    assert of(facts, "8×1×1", "roll_out") == of(facts, "8×1×1", "fewer_rows") == []
    said = of(facts, "8×1×1", "update")
    assert {found.operation for found in said} == {"all-reduce"}
    assert {math.prod(found.shape) for found in said} <= pieces(facts)
    assert not any(found.loop for found in said)


def test_over_fsdp_rollouts_gather_each_parameter_once_and_the_update_layer_by_layer(facts):
    rollouts, update = of(facts, "2×4×1", "roll_out"), of(facts, "2×4×1", "update")
    assert {(found.operation, found.loop, found.times) for found in rollouts} == {("all-gather", "", 1)}
    assert sorted(math.prod(found.shape) for found in rollouts) == sorted(matrices(facts).values())
    assert {found.operation for found in update} == {"all-gather", "all-reduce"}  # the latter a reduce-scatter on a TPU
    assert {math.prod(found.shape) for found in update} <= pieces(facts)
    gathered = {math.prod(found.shape) for found in update if found.operation == "all-gather"}
    stacked = {size for name, size in matrices(facts).items() if "layers" in name}
    assert gathered == {math.prod(facts["parameters"]["['embed']"])} | {size // ARCH.layers for size in stacked}


@pytest.mark.parametrize("program", ["roll_out", "fewer_rows", "update"])
def test_over_tensor_activations_are_summed_and_neither_keys_nor_logits_leave_their_device(facts, program):
    rows = P // 4  # of prompts on a device
    tokens = rows * M * TOKENS
    for found in of(facts, "2×2×2", program):
        size, last = math.prod(found.shape), found.shape[-1]
        parameter = size in pieces(facts, tensor=2) and not found.loop
        activations = found.operation == "all-reduce" and last == ARCH.width and size <= tokens * ARCH.width
        block = last == SAMPLING_BLOCK and size <= rows * M * SAMPLING_BLOCK
        a_number_a_token = size <= tokens
        assert parameter or activations or block or a_number_a_token, found
    moved = [found for found in of(facts, "2×2×2", program) if found.operation not in ("all-gather", "all-reduce")]
    assert all(found.operation == "collective-permute" and math.prod(found.shape) <= rows * M for found in moved)
