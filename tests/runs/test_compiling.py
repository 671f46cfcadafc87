"""Seconds of compiling: programs from the cache are counted apart, and the one being compiled is named."""

import jax
import jax.numpy as jnp
import pytest

from tsallis_rl.runs.compiling import compile_seconds, under_way


@pytest.fixture
def cache(tmp_path):
    """An empty cache of compiled programs, which keeps all of them."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path), 0), strict=True):
        jax.config.update(name, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()


def long_sum(x):
    for i in range(40):
        x = jnp.sin(x @ x) + i
    return x


def test_a_program_is_compiled_once_then_read_and_then_there(cache):
    seen: list[str | None] = []

    def listen(event: str, *_, **__) -> None:
        seen.append(program.name if (program := under_way()) else None)

    x, start = jnp.ones((8, 8)), compile_seconds()
    jax.monitoring.register_event_listener(listen)  # jax tells of the cache while it compiles
    try:
        jax.jit(long_sum)(x).block_until_ready()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert "long_sum" in seen and under_way() is None
    compiled = compile_seconds().since(start)
    assert compiled.compiled > 0 and compiled.cached == 0
    jax.clear_caches()  # of this process
    start = compile_seconds()
    again = jax.jit(long_sum)
    again(x).block_until_ready()
    read = compile_seconds().since(start)
    assert read.cached > 0  # which nothing but reading adds to
    start = compile_seconds()
    again(x).block_until_ready()
    assert compile_seconds().since(start) == (0, 0)
