"""Tests of the project. Importing this package makes compilation quick rather than thorough; do so before jax."""

import os

# Every version of XLA that is supported knows these: one that it does not know ends the process.
# What is set from outside comes last, and wins.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
)
if QUICK[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join([*QUICK, os.environ.get("XLA_FLAGS", "")]).strip()
