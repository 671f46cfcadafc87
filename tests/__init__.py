"""Tests of the project. Importing this package makes compilation quick rather than thorough; do so before jax."""

import os

# XLA's fusion emitters take three quarters of the time in which a CPU program compiles, and save microseconds here.
# What is set from outside comes last, and wins.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
if QUICK[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join([*QUICK, os.environ.get("XLA_FLAGS", "")]).strip()
