"""The message when a device's memory is used up, tested with XLA's own error for an array too large for any machine."""

import re

import jax
import jax.numpy as jnp
import pytest

from tests.support.plans import ARCH, settings
from tests.support.runs import small
from tsallis_rl.models.sharding import mesh_shape
from tsallis_rl.runs.errors import UserError
from tsallis_rl.training.checks import check
from tsallis_rl.training.out_of_memory import COMPARISON, EVALUATION, LOADING, ROLLOUTS, UPDATE, advise, explained
from tsallis_rl.training.setup import prepare


def test_an_array_that_is_too_large_becomes_a_sentence_and_other_errors_stay():
    setup = prepare(small(train__micro_batch=0))
    with pytest.raises(UserError) as told, explained(UPDATE, setup):
        jnp.zeros(1 << 50).block_until_ready()
    assert re.fullmatch(
        r"an update ran out of a device's memory \(RESOURCE_EXHAUSTED: Out of memory allocating \d+ bytes\); by the "
        r"count of --plan it needs \d\.\d GiB, and \d\.\d with --config\.train\.micro_batch=2: set that, or see --plan",
        str(told.value),
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explained(UPDATE, setup):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.parametrize(
    ("phase", "changes", "devices", "setting"),
    [
        (UPDATE, {}, 1, "train.micro_batch=2"),
        (UPDATE, {}, 4, "train.micro_rollouts=4"),
        (UPDATE, {"train__micro_batch": 1}, 1, "train.micro_rollouts=4"),
        (UPDATE, {"train__micro_batch": 1, "train__micro_rollouts": 1}, 1, "model.remat=layers"),
        (ROLLOUTS, {}, 1, "rollouts.at_once=2"),
        (EVALUATION, {"evaluate__prompts": 8, "evaluate__samples": 8}, 1, "evaluate.prompts=4"),
        (LOADING, {}, 4, "mesh.fsdp=4"),
        (LOADING, {"mesh__data": 4}, 4, "mesh.fsdp=4 --config.mesh.data=0"),
    ],
)
def test_the_setting_that_is_named_is_accepted_and_lowers_the_count(phase, changes, devices, setting):
    config = settings(**({"evaluate__prompts": 4} | changes))
    told = advise(phase, config, ARCH, 1, devices)
    assert f"with --config.{setting}: set that" in told
    for field, value in (part.split("=") for part in setting.split(" --config.")):
        config.update_from_flattened_dict({field: value if field.startswith("model") else int(value)})
    check(config, devices)
    assert mesh_shape(config.mesh, devices)
    before, after = map(float, re.findall(r"(\d+\.\d+) (?:GiB|with)", told))
    assert after <= before


def test_where_nothing_is_left_to_lower_a_smaller_model_or_more_devices_are():
    assert "choose a smaller config.model.size, adapters" in advise(LOADING, settings(), ARCH, 1, 1)
    assert "set --config.shadow.every=0" in advise(COMPARISON, settings(), ARCH, 1, 1)
