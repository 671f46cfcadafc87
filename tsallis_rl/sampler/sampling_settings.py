"""The settings of a rollout as the sampler's programs read them."""

from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from tsallis_rl.sampler.rules import Rules
from tsallis_rl.sampler.token_sampling import TokenSampling, Truncation
from tsallis_rl.tasks.markers import Markers


class Sampling(NamedTuple):
    """How tokens are sampled, and which rules they follow; all traced."""

    tokens: TokenSampling
    rules: Rules


def make_sampling(rollouts: ConfigDict, markers: Markers) -> Sampling:
    """Makes the sampler's numbers and ids from config.rollouts and the markers of the model and task."""
    truncates = (rollouts.top_k, rollouts.top_p, rollouts.min_p) != (0, 1, 0)
    truncation = Truncation(
        top_k=jnp.int32(rollouts.top_k), top_p=jnp.float32(rollouts.top_p), min_p=jnp.float32(rollouts.min_p)
    )
    return Sampling(
        tokens=TokenSampling(jnp.float32(rollouts.temperature), truncation if truncates else None),
        rules=Rules(
            budget=jnp.int32(rollouts.max_rationale),
            end_of_think=jnp.array(markers.end_of_think, jnp.int32),
            stop_ids=jnp.array(markers.stop_ids, jnp.int32),
            joint=jnp.array(markers.joint, jnp.int32),
            close_unclosed=jnp.array(rollouts.unclosed == "close"),
            min_rationale=jnp.int32(rollouts.min_rationale) if rollouts.min_rationale else None,
        ),
    )
