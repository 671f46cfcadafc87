"""Helpers for tests of checkpoints: write some, read a state from disk, damage a file."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp

from tsallis_rl.runs.checkpoints import Checkpoints

STATE = {"params": {"w": jnp.arange(1000.0)}, "step": jnp.int32(0)}


def at(step: int) -> dict:
    return jax.tree.map(lambda x: x + step, STATE)


def saved(folder: Path, *qualities: float) -> None:
    """Saves checkpoints of steps 1, 2, …, one for each quality."""
    checkpoints = Checkpoints(folder)
    for step, quality in enumerate(qualities, 1):
        checkpoints.save(step, at(step), (quality,), {})
    checkpoints.close()


def largest(folder: Path) -> Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def saved_state(folder: Path, step: int) -> dict:
    """Reads a step's state from disk."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder / "checkpoints" / str(step))


def write_manifest(file: Path, manifest) -> None:
    """Writes a manifest with the right digest."""
    body = json.dumps(manifest).encode()
    file.write_bytes(body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n")
