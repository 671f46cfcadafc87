"""What all tests share: a cache folder of the session's own, and compilation that is quick rather than thorough."""

import os
import shutil
import tempfile
from pathlib import Path

CACHE = Path(tempfile.mkdtemp(prefix="tsallis_rl-tests-"))

# Set before jax is imported, and inherited by the programs that tests start.
os.environ["TSALLIS_RL_CACHE"] = str(CACHE)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE / "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
).strip()


def pytest_sessionfinish() -> None:
    """Removes the cache."""
    shutil.rmtree(CACHE, ignore_errors=True)
