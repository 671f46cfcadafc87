"""What tests assume of the processor they run on: choices that differ between processors, and how closely it rounds."""

import jax
import jax.numpy as jnp
import pytest

from tsallis_rl.models.backends import BACKENDS

# How many times as far as on a CPU, where the tests' bounds were found, sums may be off elsewhere. Products of float32
# are float32 on all, but sums are made in other orders, and exponentials are other approximations. Not measured.
FACTORS = {"cpu": 1, "gpu": 10, "tpu": 10}

only_on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="states what a CPU does, or its compiler")


def on_cpu(monkeypatch: pytest.MonkeyPatch, **choices) -> None:
    """Changes choices of the CPU for one test, which elsewhere is skipped; what is compiled already keeps the old."""
    if jax.default_backend() != "cpu":
        pytest.skip("changes choices that are the CPU's")
    monkeypatch.setitem(BACKENDS, "cpu", BACKENDS["cpu"]._replace(**choices))


def close(bound: float, dtype: str = "float32") -> float:
    """The tolerance on this processor in this type, where `bound` is that of float32 on a CPU."""
    return bound * FACTORS[jax.default_backend()] * float(jnp.finfo(dtype).eps / jnp.finfo("float32").eps)
