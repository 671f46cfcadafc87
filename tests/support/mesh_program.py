"""Takes three steps on meshes of eight virtual devices and on one device; prints what test_mesh.py checks, as JSON.

python -m tests.support.mesh_program, with XLA_FLAGS=--xla_force_host_platform_device_count=8
"""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from benchmarks.collectives import collectives
from tests.support.compiled import sampler_programs
from tsallis_rl.config.schema import base_config
from tsallis_rl.models import SIZES, backends, initialize, parameter_shapes
from tsallis_rl.models.sharding import prompt_shards, prompts_sharding, shard_prompts, state_shardings, to_host
from tsallis_rl.objectives import Coefficients
from tsallis_rl.sampler import RolloutShape, decode, roll_out
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.keys import TRAIN, example_keys
from tsallis_rl.sampler.record import Rollouts
from tsallis_rl.sampler.rules import Rules
from tsallis_rl.sampler.sampler import score_without_rationale
from tsallis_rl.sampler.sampling_settings import Sampling
from tsallis_rl.sampler.schedule import NO_COMPACTION, ScheduleLimits
from tsallis_rl.sampler.token_sampling import SAMPLING_BLOCK, TokenSampling
from tsallis_rl.training.learner import update
from tsallis_rl.training.optimizer import make_optimizer, start_state
from tsallis_rl.training.packing import Slices, one_row_each, pack

MESHES = ((8, 1, 1), (2, 4, 1), (2, 2, 2))  # data, fsdp, tensor
P, M, T0, A = 8, 4, 12, 3
MAX_RATIONALE = 6
VOCAB = 7 * SAMPLING_BLOCK  # a number of blocks that no tensor axis divides, as Qwen3's 1187
ARCH = dataclasses.replace(SIZES["tiny"], vocab_size=VOCAB, heads=8, kv_heads=4, layers=3, tied=True)
MANY_STOP_IDS = jnp.arange(5, VOCAB // 3)  # end rollouts early
RULES = Rules(  # one stop id, repeated to the length of MANY_STOP_IDS, so that the same programs take both
    budget=jnp.int32(MAX_RATIONALE),
    end_of_think=jnp.array([2]),
    stop_ids=jnp.full_like(MANY_STOP_IDS, 3),
    joint=jnp.array([5]),
    close_unclosed=jnp.array(False),
)
SAMPLING = Sampling(TokenSampling(temperature=jnp.float32(1)), RULES)
OPTIMIZER = make_optimizer(base_config().optimizer, 10)
LIMITS = ScheduleLimits(min_segment=4, compact_from=1, row_shares=(16, 8))  # few, since each is compiled on each mesh
SHAPE = RolloutShape(ARCH, num_rollouts=M, max_rationale=MAX_RATIONALE)


def three_steps(mesh: Mesh) -> tuple[Rollouts, dict, dict]:
    """Takes three steps; returns the first one's rollouts, its first moments (a tenth of the gradient), and facts."""
    rng = np.random.default_rng(0)
    batch = PromptBatch(
        prompt=rng.integers(5, VOCAB, (P, T0)),
        prompt_length=rng.integers(1, T0 + 1, P),
        gold=rng.integers(5, VOCAB, (P, A)),
        gold_length=rng.integers(1, A, P),
    )
    batch = shard_prompts(mesh, jax.tree.map(np.int32, batch))
    score, path = np.float32(rng.normal(size=(2, P, M)))
    coefficients = shard_prompts(mesh, Coefficients(score=score, path=path))
    make_state = jax.jit(lambda key: start_state(initialize(ARCH, key), OPTIMIZER))
    state = jax.device_get(make_state(jax.random.key(0)))
    state = jax.tree.map(jax.device_put, state, state_shardings(mesh, state))
    shards = prompt_shards(mesh.shape)
    slices = Slices(micro_batches=1 if shards == P else 2, shards=shards)
    step = jax.jit(
        functools.partial(update, arch=ARCH, optimizer=OPTIMIZER, slices=slices),
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), None),
        donate_argnums=0,
    )
    facts: dict = {"losses": [], "held": held(state.params), "held_by_optimizer": held(state.opt_state)}
    for i in range(3):
        rollouts = roll_out(state.params, batch, example_keys(0, TRAIN, i, np.arange(P)), SAMPLING, SHAPE).rollouts
        if i == 0:
            without = score_without_rationale(state.params, batch, RULES, ARCH, at_once=P if mesh.size == 1 else P // 2)
            facts["log_p_without"] = to_host(without).tolist()
            facts |= retired_and_packed(mesh, state.params, batch, rollouts, coefficients)
        state, metrics = step(state, one_row_each(rollouts, coefficients))
        facts["losses"].append(float(metrics["surrogate"]))
        if i == 0:
            first, moments = to_host(rollouts), to_host(state.opt_state[1].mu)
            facts["programs_of_first"] = sampler_programs()
    facts["programs"] = [sampler_programs(), step._cache_size()]
    if mesh.size > 1:
        keys = example_keys(0, TRAIN, 0, np.arange(P))
        whole = jax.jit(functools.partial(roll_out, shape=SHAPE, limits=NO_COMPACTION))
        sampled = whole.lower(state.params, batch, keys, SAMPLING).compile()
        facts["roll_out"] = collectives(sampled.as_text())
        facts["update"] = collectives(step.lower(state, one_row_each(rollouts, coefficients)).compile().as_text())
    return first, moments, facts


def retired_and_packed(
    mesh: Mesh, params: dict, batch: PromptBatch, rollouts: Rollouts, coefficients: Coefficients
) -> dict:
    """Returns what retiring finished rows changes, and where a packed record with one used row in M is placed."""
    keys = example_keys(0, TRAIN, 0, np.arange(P))
    rules = RULES._replace(stop_ids=MANY_STOP_IDS, close_unclosed=jnp.array(True))
    uneven = SAMPLING._replace(rules=rules)
    stayed = roll_out(params, batch, keys, uneven, SHAPE).rollouts
    decode_segment, called = decode.decode_segment, []

    def kept(*args, **static):
        called.append((jax.tree.map(placed, args), static))
        return decode_segment(*args, **static)

    decode.decode_segment = kept
    retired = roll_out(params, batch, keys, uneven, SHAPE, limits=LIMITS).rollouts
    decode.decode_segment = decode_segment
    args, static = next(call for call in called if call[0][1].rows.rollout.size < P * M)
    sent = collectives(decode_segment.lower(*args, **static).compile().as_text()) if mesh.size > 1 else []
    over = prompts_sharding(mesh)
    used = jax.tree.map(lambda x: x.at[:, 1:].set(0), coefficients)
    packed, _ = pack(rollouts, used, Slices(shards=prompt_shards(mesh.shape)), over)
    caches = [args[1].rows.cache[0].keys for args, _ in called]
    split = (retired.inputs, packed.tokens.inputs, packed.prompt, packed.tokens.coefficient)
    return {
        "tokens_of_others_that_left": int((to_host(retired).targets != to_host(stayed).targets).sum()),
        "fewer_rows": sent,
        "devices_of_caches": [x.size // math.prod(x.sharding.shard_shape(x.shape)) for x in caches],
        "layouts": len({tuple(y.sharding for y in jax.tree.leaves(args[1].rows)) for args, _ in called}),
        "packed": packed.tokens.inputs.shape,
        "split_over_prompts": [x.sharding.is_equivalent_to(over, x.ndim) for x in split],
    }


def placed(x):
    """Returns what a program is compiled for: an argument's shape, dtype and sharding."""
    if not isinstance(x, jax.Array):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if x.committed else None)


def held(tree) -> int:
    """Counts the bytes on the first device."""
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device.id == 0)


def gap(found, expected) -> float:
    """Returns the largest difference, relative to the largest entry of its array."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


def main() -> None:
    """Runs on one device first, and compares the meshes with it."""
    several_chunks = backends.BACKENDS["cpu"]._replace(chunk_elements=2 * P * VOCAB)  # of log-probabilities
    backends.BACKENDS["cpu"] = several_chunks._replace(cuts_vocabulary=True)  # where tensor leaves it whole
    make_mesh = functools.partial(jax.make_mesh, axis_names=("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    alone, moments, facts = three_steps(make_mesh((1, 1, 1), devices=jax.devices()[:1]))
    found = {"one": facts}
    for shape in MESHES:
        rollouts, others, facts = three_steps(make_mesh(shape))
        facts["other_tokens"] = int((rollouts.targets != alone.targets).sum())
        facts["log_w_gap"] = float(np.abs(np.exp(rollouts.log_w - alone.log_w) - 1).max())
        facts["gradient_gap"] = gap(others, moments)
        found["×".join(map(str, shape))] = facts
    params = parameter_shapes(ARCH)
    found["parameters"] = {jax.tree_util.keystr(path): x.shape for path, x in jax.tree.leaves_with_path(params)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
