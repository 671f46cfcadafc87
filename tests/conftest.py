"""Caches of the session's own; programs that one test compiled are read by all others, and by programs they start."""

import os
import shutil
import tempfile
from pathlib import Path

CACHE = Path(tempfile.mkdtemp(prefix="tsallis_rl-tests-"))

# Set before jax is imported, and inherited by workers and by the programs that tests start. A worker has a cache folder
# of its own, and finds the compiled programs of the session that started it.
os.environ["TSALLIS_RL_CACHE"] = str(CACHE)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")


def pytest_sessionfinish() -> None:
    """Removes the cache."""
    shutil.rmtree(CACHE, ignore_errors=True)
