"""Draws batches of decoded tokens, and attends with the kernels and with the decoder's own functions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl.models import SIZES, KeyValues, RowCache, WriteAt, slots_for
from tsallis_rl.models.attention import Interval, Part, attend, decode_kernel
from tsallis_rl.models.attention.decode_kernel import Heads, Tile
from tsallis_rl.models.layer import rms_norm
from tsallis_rl.models.rotary import Rotation, rotate, rotations
from tsallis_rl.models.slots import Slots

EPS = 1e-6
SMALL = (Tile(keys=16, warps=4, stages=2, rows=16, splits=3), Tile(keys=16, warps=4, stages=2))


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of a batch: C shards of B rows, P prompts of S0 keys, caches of S tokens; see `Architecture` for others."""

    shards: int
    rows: int
    prompts: int
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 16
    cache: int = 40
    prompt: int = 50
    window: int | None = None
    slots: int | None = None
    norms: bool = True


def given(case: Case, dtype: str = "float32") -> dict[str, Any]:
    """Draws a batch; prompts have different lengths, one has none."""
    rng = np.random.default_rng(0)
    shards, rows, prompts, kv_heads, head_dim = case.shards, case.rows, case.prompts, case.kv_heads, case.head_dim

    def draw(*shape: int) -> Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    heads = Heads(
        query=draw(shards, rows, kv_heads * case.group, head_dim),
        key=draw(shards, rows, kv_heads, head_dim),
        value=draw(shards, rows, kv_heads, head_dim),
        query_scale=draw(head_dim) if case.norms else None,
        key_scale=draw(head_dim) if case.norms else None,
        eps=EPS,
    )
    end = jnp.asarray(rng.integers(0, case.prompt + 1, prompts), jnp.int32).at[0].set(0)
    of_shard = jnp.arange(shards)[:, None] * (prompts // shards)
    if case.slots is None:
        prompt_of, slots = jnp.broadcast_to(of_shard, (shards, rows)), None
        at = WriteAt(jnp.array([case.cache // 2]))
    else:
        of_row = jnp.asarray(rng.integers(0, prompts // shards, (shards, rows)))
        slots = slots_for(of_row, jnp.ones((shards, rows), bool), prompts // shards, case.slots)
        prompt_of = of_row + of_shard
        at = WriteAt(jnp.array([case.cache - 1, 5]), jnp.asarray(rng.integers(0, 2, (shards, rows))))
    position = jnp.broadcast_to(at.of_rows, (shards, rows))
    arch = dataclasses.replace(SIZES["tiny"], head_dim=head_dim)
    rotation = rotations(arch, (end[prompt_of] + position)[..., None])
    return {
        "heads": heads,
        "rotation": jax.tree.map(lambda x: x[0], rotation),
        "prompt": KeyValues(*(draw(prompts, kv_heads, *x) for x in ((head_dim, case.prompt), (case.prompt, head_dim)))),
        "end": end,
        "cache": RowCache(*(draw(shards, rows, kv_heads, case.cache, head_dim) for _ in range(2))),
        "at": at,
        "slots": slots,
        "at_prompt": (end[prompt_of] + position)[..., None],
        "position": position,
    }  # fmt: skip


def expected(case: Case, given: dict[str, Any]) -> tuple[Array, RowCache]:
    """Normalises, rotates and writes with the decoder's own functions, and attends under masks."""
    return _as_one_program(_expected, case, given)


def by_kernels(case: Case, given: dict[str, Any], **how: Any) -> tuple[Array, RowCache]:
    """Attends with the kernels, which read intervals instead of masks."""
    return _as_one_program(_by_kernels, case, given, **how)


def _as_one_program(function: Callable, case: Case, given: dict[str, Any], **how: Any) -> tuple[Array, RowCache]:
    """Compiles and calls, since some hundred small programs take longer; eps is static, as in the decoder."""

    def call(given: dict[str, Any]) -> tuple[Array, RowCache]:
        return function(case, given | {"heads": given["heads"]._replace(eps=EPS)}, **how)

    return jax.jit(call)(given | {"heads": given["heads"]._replace(eps=None)})


def _expected(case: Case, given: dict[str, Any]) -> tuple[Array, RowCache]:
    heads: Heads = given["heads"]
    query, key, value = (x[:, :, None] for x in heads[:3])
    if case.norms:
        query, key = (
            rms_norm(x, scale, heads.eps, x.dtype.name)
            for x, scale in ((query, heads.query_scale), (key, heads.key_scale))
        )
    rotation: Rotation = given["rotation"]
    query, key = rotate(query, rotation), rotate(key, rotation)
    grouped = query.reshape(*query.shape[:3], case.kv_heads, case.group, case.head_dim)
    cache = given["cache"].write(KeyValues(jnp.moveaxis(key, 2, -1), value.swapaxes(2, 3)), given["at"])
    slots: Slots | None = given["slots"]
    at_prompt = slots.to_slots(given["at_prompt"]) if slots else given["at_prompt"]
    of_prompt = (jnp.arange(case.prompt) < given["end"][:, None])[:, None, None]
    of_own = (jnp.arange(case.cache) <= given["position"][..., None])[:, :, None]
    if case.window:
        of_prompt &= at_prompt[..., None] - jnp.arange(case.prompt) < case.window
        of_own &= given["position"][..., None, None] - jnp.arange(case.cache) < case.window
    parts = [Part(given["prompt"], of_prompt, slots), Part(cache.key_values, of_own)]
    return attend(grouped, parts, case.head_dim**-0.5).reshape(heads.query.shape), cache


def _by_kernels(case: Case, given: dict[str, Any], **how: Any) -> tuple[Array, RowCache]:
    firsts: list[Array | None] = [None, None]
    if case.window:
        at_prompt = given["slots"].to_slots(given["at_prompt"]) if given["slots"] else given["at_prompt"]
        firsts = [jnp.maximum(x - case.window + 1, 0) for x in (at_prompt[..., 0], given["position"])]
    if "done" in given:  # as `Context.done` narrows what is read
        firsts[1] = jnp.where(given["done"], given["position"], 0 if firsts[1] is None else firsts[1])
    nothing = jnp.zeros(0, bool)
    prompt = Part(given["prompt"], nothing, given["slots"], Interval(firsts[0], given["end"]))
    own = Part(given["cache"], nothing, None, Interval(firsts[1], given["position"]))
    return decode_kernel.attend(given["heads"], given["rotation"], prompt, own, given["at"], case.head_dim**-0.5, **how)
