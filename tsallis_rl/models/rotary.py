"""Rotary positions: computes the angles of each position, and rotates queries and keys by them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from tsallis_rl.models.sizes import Architecture


def rotary_frequencies(arch: Architecture) -> np.ndarray:
    """Computes radians per position → [N, h / 2], float32, from each layer's base and the scaling for long contexts."""
    exponent = -np.arange(arch.head_dim // 2) / (arch.head_dim // 2)
    frequency = arch.rope_theta**exponent
    if scaling := arch.rope_scaling:
        turns = scaling.original_context * frequency / (2 * np.pi)
        kept = np.clip((turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor), 0, 1)
        frequency = kept * frequency + (1 - kept) * frequency / scaling.factor
    local = np.array(arch.local_layers or [False] * arch.layers)[:, None]
    return np.where(local, arch.local_rope_theta**exponent, frequency).astype(np.float32)


class Rotation(NamedTuple):
    """Cosine of every token's angles, and sine with its sign in each half; with a leading axis where layers differ.

    Both [P, M, T, 1, 2, h / 2] in float32.
    """

    cos: Array
    sin: Array


def rotations(arch: Architecture, positions: Array) -> Rotation:
    """Computes rotations of positions [P, M, T] for each row of `distinct_frequencies`."""
    frequencies = distinct_frequencies(arch)[0][:, None, None, None, None]
    angle = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return Rotation(jnp.stack([cos, cos], axis=-2), jnp.stack([-sin, sin], axis=-2))


def distinct_frequencies(arch: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """Finds the distinct rows of `rotary_frequencies`, [rows, h / 2], and the index of each layer's row, [N]."""
    rows, of_layer = np.unique(rotary_frequencies(arch), axis=0, return_inverse=True)
    return rows, of_layer.reshape(-1).astype(np.int32)


def rotate(x: Array, rotation: Rotation) -> Array:
    """Rotates x [P, M, T, heads, h] by position, pairing the two halves of a head, in float32; returns x's dtype.

    For T = 1 (decoding) heads stay whole: an axis of two halves would make a TPU move them there and back.
    """
    x32 = x.astype(jnp.float32)
    if x.shape[2] == 1:
        cos, sin = (y.reshape(*y.shape[:-2], x.shape[-1]) for y in rotation)
        turned = x32 * cos + jnp.roll(x32, x.shape[-1] // 2, axis=-1) * sin
    else:
        halves = x32.reshape(*x.shape[:-1], 2, -1)
        turned = halves * rotation.cos + jnp.flip(halves, axis=-2) * rotation.sin
    return turned.reshape(x.shape).astype(x.dtype)
