"""Layers joined for decoding compute what layers compute, whatever has adapters, biases, norms or a window."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from tests.support.backends import close
from tsallis_rl.models import Architecture, Layer, bind, initialize, parameter_shapes, residual
from tsallis_rl.models.attention import decoding
from tsallis_rl.models.joined_layer import JoinedLayer
from tsallis_rl.sampler.decode import gather_layers

QWEN = Architecture(
    vocab_size=40, width=24, layers=3, heads=4, kv_heads=2, head_dim=8, ffn=32, context=32, lora_rank=3, lora_alpha=5.0
)
ARCHITECTURES = {
    "adapters everywhere": QWEN,
    "some adapters, and biases": dataclasses.replace(
        QWEN, lora_targets=("key", "out", "up"), attention_bias=True, qk_norm=False
    ),
    "adapters of queries and values, post-norms and a window": dataclasses.replace(
        QWEN,
        lora_targets=("query", "value"),
        post_norms=True,
        norm_offset=1.0,
        activation="gelu",
        local_layers=(True, False, True),
        window=4,
    ),
    "no adapters": dataclasses.replace(QWEN, lora_rank=0),
}


def drawn(arch: Architecture) -> dict:
    """Draws parameters. Adapters would start at zero, and biases too."""
    params = initialize(arch, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(params["layers"]))
    layers = {
        name: leaf + 0.2 * jax.random.normal(key, leaf.shape)
        for key, (name, leaf) in zip(keys, params["layers"].items(), strict=True)
    }
    return params | {"layers": layers}


@pytest.mark.parametrize("arch", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_joined_layers_compute_the_same(arch):
    params = drawn(arch)
    layers = gather_layers(params, arch=arch).layers
    assert [type(layer) for layer in layers] == [JoinedLayer] * arch.layers
    tokens = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])
    decoder = bind(arch, params)
    (hidden, kv), (same, same_kv) = decoder.prefill(tokens), decoder.prefill(tokens, layers)
    np.testing.assert_allclose(same, hidden, atol=close(1e-5))
    for n, of_layer in enumerate(same_kv):
        np.testing.assert_allclose(of_layer.keys, kv.keys[n], atol=close(1e-5))
        np.testing.assert_allclose(of_layer.values, kv.values[n], atol=close(1e-5))
    plain = {name: jnp.zeros_like(leaf) if "lora_out" in name else leaf for name, leaf in params["layers"].items()}
    change = np.abs(bind(arch, params | {"layers": plain}).prefill(tokens)[0] - hidden).max()
    assert change > 0.1 if arch.adapted else change == 0.0


@pytest.mark.parametrize("arch", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_gpus_joined_layers_add_products_in_pieces(arch, monkeypatch):
    params, tokens = drawn(arch), jnp.array([[3, 1, 4], [1, 5, 9]])[..., None]
    decoder, first = bind(arch, params), jnp.zeros_like(tokens)
    hidden, kv = decoder.extend(tokens, first)

    pieces, add = [], residual.add_and_norm

    def interpreted(x, *more):
        pieces.append(len(x.pieces))
        return add(x, *more, interpret=True)

    monkeypatch.setattr(decoding, "uses_kernel", lambda *_: True)
    monkeypatch.setattr(residual, "add_and_norm", interpreted)
    layers = gather_layers(params, arch=dataclasses.replace(arch, context=arch.context + 1)).layers  # compiled anew
    same, same_kv = decoder.extend(tokens, first, layers=layers)
    np.testing.assert_allclose(same, hidden, atol=close(1e-5))
    for n, of_layer in enumerate(same_kv):
        np.testing.assert_allclose(of_layer.values, kv.values[n], atol=close(1e-5))
    # Of 32 inputs, two pieces of 16; of 32, an adapter's and zeros up to 128, eight.
    out, down = (8 if name in arch.adapted else 2 for name in ("out", "down"))
    assert pieces == [out, down, out, down]  # a layer after an array, one after a sum, and the final norm


@pytest.mark.parametrize(("tensor", "kind"), [(1, JoinedLayer), (2, Layer)])
def test_matrices_that_are_split_over_devices_are_not_joined(tensor, kind):
    mesh = AbstractMesh((2, tensor), ("data", "tensor"))
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec())),
        parameter_shapes(QWEN),
    )
    layers = jax.eval_shape(lambda params: gather_layers(params, arch=QWEN), params).layers
    assert {type(layer) for layer in layers} == {kind}
