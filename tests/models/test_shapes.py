"""A call with arrays of a wrong shape or dtype is refused with the argument's name, its shape and the letters."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from tsallis_rl.models import SIZES, Context, KeyValues, bind, lora, parameter_shapes, scored_log_probs, token_log_probs
from tsallis_rl.models.attention import Part, WriteAt, attend, attend_in_order
from tsallis_rl.models.shapes import Expected, check_shapes
from tsallis_rl.models.sizes import LogitForm

ARCH = dataclasses.replace(SIZES["tiny"], vocab_size=11, layers=1)
P, M, T, K, G, H, S = 2, 3, 4, 2, 2, 8, 5


def refused(says: str, function, *args, **kwargs) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        jax.eval_shape(lambda: function(*args, **kwargs))


def test_letters_say_rank_size_and_dtype():
    x, square = jnp.zeros((2, 3)), jnp.zeros((3, 3))
    check_shapes(Expected("x", x, "P M"), Expected("y", jnp.zeros((2, 1, 3)), "P T|1 M"), Expected("z", None, "V"))
    check_shapes(Expected("x", x, "... M"), Expected("y", jnp.zeros((2, 7)), "... D"))
    for says, *arguments in (
        ("x has shape (2, 3), expected [P, M, T]", Expected("x", x, "P M T")),
        (
            "y has shape (3, 3), expected [P, M] with P = 2, M = 3",
            Expected("x", x, "P M"),
            Expected("y", square, "P M"),
        ),
        ("y has shape (2, 2), expected [P, M or 1]", Expected("x", x, "P M"), Expected("y", x @ x.T, "P M|1")),
        ("y has shape (3, 2), expected [..., D]", Expected("x", x, "... M"), Expected("y", x.T, "... D")),
        ("x has dtype float32, expected integer", Expected("x", x, "P M", jnp.integer)),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            check_shapes(*arguments)


def test_log_probabilities_of_transposed_targets_or_a_transposed_head_are_refused():
    hidden, head = jnp.zeros((P, T, 8)), jnp.zeros((8, 11))
    targets, coefficient = jnp.zeros((P, T), int), jnp.zeros((P, T))
    refused("targets has shape (4, 2), expected [...]", token_log_probs, hidden, head, targets.T)
    refused("hidden has shape (2, 4, 8), expected [..., D] with D = 11", token_log_probs, hidden, head.T, targets)
    refused("targets has dtype float32", token_log_probs, hidden, head, coefficient)
    refused("coefficient has shape (4, 2), expected [P, T]", scored_log_probs, hidden, head, targets, coefficient.T)
    refused("multiple of shards = 3", scored_log_probs, hidden, head, targets, coefficient, LogitForm(), 3)


def test_attention_refuses_keys_and_masks_of_another_layout():
    query = jnp.zeros((P, M, T, K, G, H))
    kv = KeyValues(jnp.zeros((P, K, H, S)), jnp.zeros((P, K, S, H)))
    mask = jnp.ones((P, 1, 1, S), bool)
    refused(
        "keys has shape (2, 2, 5, 8), expected [P, K, h, S]",
        attend,
        query,
        [Part(KeyValues(kv.values, kv.keys), mask)],
        1.0,
    )
    refused("mask has shape (2, 5), expected [P or 1, M or 1,", attend, query, [Part(kv, mask[:, 0, 0])], 1.0)
    refused("mask has shape (2, 1, 1, 1)", attend, query, [Part(kv, mask[..., :1])], 1.0)
    refused("mask has dtype float32", attend, query, [Part(kv, mask * 1.0)], 1.0)
    own = KeyValues(jnp.zeros((P, M, K, H, S)), jnp.zeros((P, M, K, S, H)))
    refused("own.kv.keys has shape", attend_in_order, query, [], Part(own, jnp.ones((1, 1, T, S), bool)), 1.0)


def test_a_decoder_refuses_tokens_positions_and_lengths_of_another_layout():
    params = parameter_shapes(ARCH)

    def extend(tokens, positions, **kwargs):
        return jax.eval_shape(lambda params: bind(ARCH, params).extend(tokens, positions, **kwargs), params)

    tokens = jnp.zeros((P, M, T), int)
    kv = KeyValues(jnp.zeros((1, P, M, 4, 16, S)), jnp.zeros((1, P, M, 4, S, 16)))
    at = WriteAt(jnp.zeros(1, int))
    past = Context(kv, jnp.full((P, M), S))
    for says, call in (
        ("tokens has shape (3, 4), expected [P, M, T]", lambda: extend(tokens[0], tokens)),
        ("tokens has dtype float32", lambda: extend(tokens * 1.0, tokens)),
        ("positions has shape (2, 2, 4), expected [P, M or 1, T]", lambda: extend(tokens, tokens[:, :2])),
        ("past.length has shape (2, 1)", lambda: extend(tokens, tokens, past=past._replace(length=past.length[:, :1]))),
        ("past.length has dtype bool", lambda: extend(tokens, tokens, past=past._replace(length=past.length > 0))),
        (
            "tokens has shape (2, 3, 4), expected [P, M, T] with",
            lambda: extend(tokens, tokens, past=past, write_at=at),
        ),
        ("without a past", lambda: extend(tokens, tokens, write_at=at)),
        ("start has shape (2, 4), expected [P, M, T]", lambda: extend(tokens, tokens, start=tokens[:, 0])),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            call()


def test_adapters_of_another_rank_than_the_architecture_says_are_not_merged():
    arch = dataclasses.replace(ARCH, lora_rank=2)
    params = parameter_shapes(arch)
    wrong = dataclasses.replace(arch, lora_rank=4)
    with pytest.raises(ValueError, match=r"_lora_in has shape .*expected \[N, inputs_0.*, r\] with .*r = 4"):
        jax.eval_shape(lambda params: lora.merge(params, wrong), params)
