"""Gives a test session its own caches: all tests, and programs they start, read what one test compiled."""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

# The files that take longest start first, so that no worker is left with one at the end.
LONGEST = (
    "test_pinned.py", "test_mesh.py", "test_sweep.py", "test_sampler.py", "test_going_on.py", "test_reliability.py",
    "test_loop.py", "test_learner.py", "test_pod.py", "test_replay.py", "test_prompt_widths.py", "test_notebooks.py",
    "test_own_model.py", "test_memory_plan.py", "test_adapter_export.py", "test_evaluate.py",
    "test_attention_kernels.py", "test_gradient_comparison.py", "test_guards.py", "test_reference.py",
)  # fmt: skip
MAPS, MANY_MAPS = Path("/proc/self/maps"), 40_000
CACHE = Path(tempfile.mkdtemp(prefix="tsallis_rl-tests-"))

# Set before jax is imported; workers, and the programs that tests start, inherit these. A worker has a cache folder of
# its own, and finds the compiled programs of the session that started it.
os.environ["TSALLIS_RL_CACHE"] = str(CACHE)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "compiled"))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # workers and the programs they start share a GPU
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")


def pytest_collection_finish() -> None:
    """Collects garbage rarely, and not in the modules: while jax traces it takes a tenth of a test's processor time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Drops compiled programs between files before the system's limit on memory maps, 65,530, ends the process.

    At the limit, jax crashes while it keeps a program. Jax 0.12 takes 2.6 times the maps of 0.10, which stays below it,
    where compiling programs again would only take time.
    """
    jax = sys.modules.get("jax")
    if nextitem is None or nextitem.path == item.path or jax is None or jax.__version_info__ < (0, 12):
        return
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


def pytest_sessionfinish() -> None:
    """Removes the cache."""
    shutil.rmtree(CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))
