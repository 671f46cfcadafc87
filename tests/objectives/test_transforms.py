"""The same numbers under a plain call, jit, vmap, pmap and shard_map over eight virtual devices."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes

PROGRAM = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding
from tests.support.groups import group_of
from tsallis_rl.objectives import ESTIMATORS, coefficients, diagnostics, tsallis_loss

assert jax.device_count() == 8
P, M = 16, 6
rng = np.random.default_rng(0)
log_w = (-30 * rng.random((P, M))).astype(np.float32)
log_w[0], log_w[1, 2], log_w[2, 3] = -np.inf, np.nan, -1e4
rewards = (rng.random((P, M)) < 0.4).astype(np.float32)
q = np.linspace(0, 1, P, dtype=np.float32)
keys = jax.random.split(jax.random.key(1), P)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, jax.P("data"))

def everything(keys, log_w, rewards, q):
    '''Coefficients [rows, P, M] of every estimator but the aliases, and the loss.'''
    given = group_of(log_w, rewards, key=keys, q=q)
    got = [coefficients(row, {}, given) for row in ESTIMATORS.values() if row.q is None]
    return jnp.stack([part for pair in got for part in pair]), tsallis_loss(log_w[..., 1], q)

arrays = keys, log_w, rewards, q
plain = everything(*arrays)
eighths = jax.tree.map(lambda x: x.reshape(8, P // 8, *x.shape[1:]), arrays)
pmapped = jax.pmap(everything, out_axes=(1, 0))(*eighths)
ways = {
    "jit": jax.jit(everything)(*arrays),
    "vmap": jax.vmap(everything, out_axes=(1, 0))(*arrays),
    "jit over a mesh": jax.jit(everything, in_shardings=split)(*jax.device_put(arrays, split)),
    "pmap": (pmapped[0].reshape(-1, P, M), pmapped[1].reshape(P)),
    "shard_map": jax.jit(jax.shard_map(
        everything, mesh=mesh, in_specs=jax.P("data"), out_specs=(jax.P(None, "data"), jax.P("data"))
    ))(*arrays),
}
for name, (coefs, loss) in ways.items():
    np.testing.assert_allclose(coefs, plain[0], rtol=2e-6, atol=2e-7, err_msg=name)
    np.testing.assert_allclose(loss, plain[1], rtol=2e-6, err_msg=name)
    print("same:", name)

over_mesh = jax.jit(diagnostics, in_shardings=split)(*jax.device_put((log_w, q), split))
for name, value in diagnostics(log_w, q).items():
    np.testing.assert_allclose(over_mesh[name], value, rtol=1e-5, err_msg=name)
print("same: diagnostics")
"""


def test_estimators_give_the_same_numbers_under_every_transformation_of_jax():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ways = ("jit", "vmap", "jit over a mesh", "pmap", "shard_map", "diagnostics")
    assert done.stdout.split("\n")[:-1] == [f"same: {way}" for way in ways]
