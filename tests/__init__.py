"""Tests of the project. Importing this package makes compilation quick rather than thorough; do so before jax."""

import os
from importlib.metadata import version

# Every version of XLA that is supported knows these: one that it does not know ends the process.
# What is set from outside comes last, and wins.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
)
# A flag of jax 0.10 alone, and worth its line: fusion emitters take most of the time in which a program compiles there.
if version("jaxlib").startswith("0.10."):
    QUICK += ("--xla_cpu_use_fusion_emitters=false",)
if QUICK[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join([*QUICK, os.environ.get("XLA_FLAGS", "")]).strip()
# Of every instruction jax keeps the hundred calls above it: a tenth of a program's tracing, lowering and compilation.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
