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
    return Sampling(
        tokens=_token_sampling(rollouts.temperature, rollouts.top_k, rollouts.top_p, rollouts.min_p),
        rules=Rules(
            budget=jnp.int32(rollouts.max_rationale),
            end_of_think=jnp.array(markers.end_of_think, jnp.int32),
            stop_ids=jnp.array(markers.stop_ids, jnp.int32),
            joint=jnp.array(markers.joint, jnp.int32),
            close_unclosed=jnp.array(rollouts.unclosed == "close"),
            min_rationale=jnp.int32(rollouts.min_rationale) if rollouts.min_rationale else None,
        ),
    )


def evaluation_sampling(sampling: Sampling, evaluate: ConfigDict) -> Sampling:
    """Replaces the token sampling of training by that of config.evaluate; the rules stay."""
    temperature = 0.0 if evaluate.greedy else evaluate.temperature
    return sampling._replace(tokens=_token_sampling(temperature, evaluate.top_k, evaluate.top_p, min_p=0.0))


def without_rationale(sampling: Sampling) -> Sampling:
    """Closes every rationale before its first token: the answer follows the prompt."""
    return sampling._replace(rules=sampling.rules._replace(budget=jnp.int32(0)))


def _token_sampling(temperature: float, top_k: int, top_p: float, min_p: float) -> TokenSampling:
    """Makes traced numbers from settings, without a truncation if they leave no token out."""
    truncation = Truncation(top_k=jnp.int32(top_k), top_p=jnp.float32(top_p), min_p=jnp.float32(min_p))
    truncates = (top_k, top_p, min_p) != (0, 1, 0)
    return TokenSampling(jnp.float32(temperature), truncation if truncates else None)
