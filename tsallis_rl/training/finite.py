"""Finds numbers that are not finite, in the model before the first step or in an evaluation, and says where."""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from tsallis_rl.models import Architecture
from tsallis_rl.models.sharding import to_host
from tsallis_rl.runs.errors import UserError


def check_parameters(params: dict, arch: Architecture, source: str) -> None:
    """Refuses parameters that are not finite, as they are or in the dtype of the computation.

    Every process must call this.

    Args:
      params: of the decoder.
      arch: its architecture.
      source: where they come from, for people.

    Raises:
      UserError: names the first that is not finite.
    """
    held, computed = (flatten_dict(tree, sep="/") for tree in to_host(_finite(params, dtype=arch.dtype)))
    when = f"{source}: the model is not finite before the first step"
    if broken := sorted(name for name, is_finite in held.items() if not is_finite):
        raise UserError(
            f"{when}: {broken[0]}{_others(broken)} holds NaN or infinity; get its files again, or train from another "
            "model"
        )
    if broken := sorted(name for name, is_finite in computed.items() if not is_finite):
        dtype = jnp.dtype(arch.dtype)
        raise UserError(
            f"{when}: {broken[0]}{_others(broken)} holds numbers beyond {jnp.finfo(dtype).max:g}, the largest of "
            f"config.model.dtype={dtype.name}; set config.model.dtype=bfloat16 or float32"
        )


@functools.partial(jax.jit, static_argnames="dtype")
def _finite(params: dict, *, dtype: str) -> tuple[dict, dict]:
    """Says of every parameter whether it is finite as it is, and in this dtype."""
    computed = jax.tree.map(lambda x: jnp.isfinite(x.astype(dtype)).all(), params)
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), params), computed


def _others(broken: list[str]) -> str:
    return f" (and {len(broken) - 1} more)" if broken[1:] else ""


def is_broken(log_p_hat: float) -> bool:
    """Returns whether a mean log P̂ is NaN or +∞. −∞ is valid: no rollout of some example has weight."""
    return math.isnan(log_p_hat) or log_p_hat == math.inf


def check_probabilities(scores: Mapping[str, float], config: ConfigDict, source: str) -> None:
    """Refuses a model whose probabilities are not finite before the first step, though its parameters are.

    Raises:
      UserError: log P̂ is NaN or +∞.
    """
    if is_broken(scores["log_p_hat"]):
        dtype, shorter = config.model.dtype, "set config.model.dtype=bfloat16 or float32"
        too_large = f"its activations are too large for config.model.dtype=float16; {shorter}"
        adapted = config.model.lora_rank or config.model.adapter
        remedy = "lower config.model.lora_alpha, or get its files again" if adapted else "get its files again"
        other = f"they are too large to compute with in config.model.dtype={dtype}; {remedy}"
        raise UserError(
            f"{source}: the model's probabilities are not finite before the first step (log P̂ is "
            f"{scores['log_p_hat']}), though its parameters are: {too_large if dtype == 'float16' else other}"
        )
