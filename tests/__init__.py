"""Tests of the project. Importing this package, before jax, makes compilation quick rather than thorough."""

import os
from importlib.metadata import version

# Every supported version of XLA knows these flags; an unknown one would end the process.
# Flags that are set from outside come last, and win.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
)
# A flag of jax 0.10 alone, and worth its line: fusion emitters take most of the compile time there.
if version("jaxlib").startswith("0.10."):
    QUICK += ("--xla_cpu_use_fusion_emitters=false",)
if QUICK[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join([*QUICK, os.environ.get("XLA_FLAGS", "")]).strip()
# jax records the hundred calls above every instruction: a tenth of a program's tracing, lowering and compilation.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
