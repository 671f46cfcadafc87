"""Assumptions of tests about their processor: choices that differ between processors, and tolerances of rounding."""

import jax
import jax.numpy as jnp
import pytest

from tsallis_rl.models.backends import BACKENDS

# Factors on the tests' bounds, which were found on a CPU. Products of float32 are float32 on every processor, but sums
# have other orders, and exponentials are other approximations. Not measured.
FACTORS = {"cpu": 1, "gpu": 10, "tpu": 10}

only_on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="states what a CPU does, or its compiler")


def on_cpu(monkeypatch: pytest.MonkeyPatch, **choices) -> None:
    """Changes choices of the CPU for one test, and skips it elsewhere; compiled programs keep the old choices."""
    if jax.default_backend() != "cpu":
        pytest.skip("changes choices that are the CPU's")
    monkeypatch.setitem(BACKENDS, "cpu", BACKENDS["cpu"]._replace(**choices))


def close(bound: float, dtype: str = "float32") -> float:
    """Returns the tolerance on this processor in this type, given the `bound` of float32 on a CPU."""
    return bound * FACTORS[jax.default_backend()] * float(jnp.finfo(dtype).eps / jnp.finfo("float32").eps)
