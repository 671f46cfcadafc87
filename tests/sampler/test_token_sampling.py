"""Token sampling: which token two uniform numbers choose, and which tokens a truncation keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backends import close, on_cpu
from tests.support.rollouts import truncation
from tsallis_rl.sampler.token_sampling import (
    SAMPLING_BLOCK,
    TokenSampling,
    choose_tokens,
    sample_tokens,
    truncate_logits,
)


def chosen(*arguments) -> tuple[jax.Array, jax.Array]:
    """Chooses tokens by one program, compiled each time, since tests change the processor's choices."""
    return jax.jit(lambda *arguments: choose_tokens(*arguments))(*arguments)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_token_of_a_large_vocabulary_follows_the_softmax_though_its_block_is_drawn_first(temperature):
    logits = jax.random.normal(jax.random.key(1), (2 * SAMPLING_BLOCK + 44,))
    uniform = jax.random.uniform(jax.random.key(2), (50_000, 2))
    tokens, _ = jax.jit(jax.vmap(choose_tokens, in_axes=(0, None)))(uniform, logits / temperature)
    expected = 50_000 * np.asarray(jax.nn.softmax(logits / temperature))
    rare = expected < 20
    found = np.bincount(np.asarray(tokens), minlength=logits.size)
    found, expected = (np.append(x[~rare], x[rare].sum()) for x in (found, expected))
    chi_square = ((found - expected) ** 2 / expected).sum()
    degrees = len(found) - 1
    assert degrees > 100
    assert chi_square < degrees + 3.1 * np.sqrt(2 * degrees)  # about the 0.999 quantile


@pytest.mark.parametrize("how", ["cuts_vocabulary", "sums_together"])
@pytest.mark.parametrize("vocab", [3, SAMPLING_BLOCK + 1, 5 * SAMPLING_BLOCK + 7])
def test_a_vocabulary_that_is_summed_otherwise_draws_the_same_tokens(monkeypatch, vocab, how):
    logits = jax.random.normal(jax.random.key(3), (40, 50, vocab)).at[:, :, 1].set(-jnp.inf)
    uniform = jax.random.uniform(jax.random.key(4), (40, 50, 2))
    folded, _ = chosen(uniform, logits, 0.8)
    on_cpu(monkeypatch, **{how: True})
    tokens, log_sum = chosen(uniform, logits, 0.8)
    np.testing.assert_array_equal(tokens, folded)
    expected = np.log(np.exp(np.float64(logits)).sum(axis=-1))  # at temperature 1
    np.testing.assert_allclose(log_sum, expected, atol=close(2e-6))
    assert len(np.unique(folded)) > min(vocab, 100) / 2


@pytest.mark.parametrize("cuts_vocabulary", [False, True])
def test_the_ends_of_the_unit_interval_draw_tokens_that_can_be_drawn(monkeypatch, cuts_vocabulary):
    on_cpu(monkeypatch, cuts_vocabulary=cuts_vocabulary)
    logits = np.where(np.isin(np.arange(3 * SAMPLING_BLOCK), (4, 11)), np.float32(0), -np.inf)
    largest = np.nextafter(np.float32(1), np.float32(0))
    assert chosen(jnp.array([0.0, 0.0]), logits)[0] == 4
    assert chosen(jnp.array([largest, largest]), logits)[0] == 11  # of another block


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(3, 1, 0), (0, 0.6, 0), (0, 1, 0.3), (4, 0.7, 0.2), (0, 1, 0)])
def test_truncation_keeps_the_tokens_that_its_definition_names(top_k, top_p, min_p):
    logits = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
    kept = np.isfinite(jax.jit(truncate_logits)(jnp.array(logits), truncation(top_k, top_p, min_p)))
    for row, found in zip(logits.astype(np.float64), kept, strict=True):
        order = sorted(range(20), key=lambda token: -row[token])[: top_k or None]
        p = {token: np.exp(row[token]) for token in order}
        total, before, expected = sum(p.values()), 0.0, set()
        for token in order:
            if before / total < top_p and p[token] >= min_p * p[order[0]]:
                expected.add(token)
            before += p[token]
        assert set(np.flatnonzero(found)) == expected


@pytest.mark.parametrize("size", [1.0, 10.0, 30.0])
def test_greedy_sampling_takes_the_largest_by_a_step_of_float32(size):
    logits = np.full(300, -5.0, np.float32)
    logits[[7, 200]] = size, np.nextafter(np.float32(size), np.float32(np.inf))
    uniform = jax.random.uniform(jax.random.key(5), (1, 2000, 2))
    for limits in (None, truncation(top_k=50, top_p=1.0, min_p=0.0)):
        greedy = TokenSampling(jnp.float32(0), limits)
        tokens, _ = jax.jit(sample_tokens)(uniform, jnp.broadcast_to(logits, (1, 2000, 300)), greedy)
        assert set(np.unique(tokens)) == {200}


def test_a_block_without_mass_is_never_drawn_though_its_sums_fall_by_rounding():
    """600 of Qwen3's tokens; with these numbers, sums of 1,187 blocks exceed the share at a block that has no token."""
    vocab, rng = 151_936, np.random.default_rng(0)
    logits = np.full(vocab, -np.inf, np.float32)
    kept = rng.choice(vocab, 600, replace=False)
    logits[kept] = rng.normal(0, 2, 600)
    blocks = -(-vocab // SAMPLING_BLOCK)
    mass = np.exp(np.float64(logits)).reshape(SAMPLING_BLOCK, blocks).sum(0)  # blocks divide it
    sums = np.asarray(jnp.cumsum(jnp.float32(mass)))
    falls = np.flatnonzero(np.diff(sums) < 0)
    assert len(falls)  # else this test would say nothing
    shares = (sums[np.concatenate([falls, falls + 1])] / sums[-1]).astype(np.float32)
    near = np.concatenate([np.nextafter(shares, np.float32(x)) for x in (0, 1)] + [shares])
    uniform = np.stack([near, np.full_like(near, 0.5)], axis=-1)
    tokens, _ = chosen(jnp.array(uniform), jnp.broadcast_to(logits, (len(near), vocab)))
    assert np.isfinite(logits[np.asarray(tokens)]).all()


def test_a_random_number_of_0_draws_no_block_that_nothing_would_draw():
    logits = np.where(np.arange(256) % 2, 0.0, -60.0).astype(np.float32)  # even ids are block 0
    (token,), _ = chosen(jnp.array([[0.0, 0.5]]), jnp.array([logits]))
    assert logits[token] == 0.0
